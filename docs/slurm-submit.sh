#!/bin/bash
# Everything on Slurm: the levels that need devices, each when the one before it is done, then the tables and MLflow.
set -euo pipefail
job=$(sbatch --parsable --array=1 docs/slurm.sh 0)
for level in 1 2; do
    job=$(sbatch --parsable --dependency="afterok:$job" docs/slurm.sh "$level")
done
sbatch --dependency="afterok:$job" --gpus=1 --wrap "python -m pipeline repro"
