#!/bin/bash
# One level of cells as an array of jobs, from the project's folder on a shared file system: sbatch docs/slurm.sh LEVEL
# What a cell needs is listed by: python -m pipeline cells --level LEVEL --all
#SBATCH --job-name=adt
#SBATCH --array=1-12
#SBATCH --gpus=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
set -euo pipefail
export ADT_LIVE=0 # no process that watches the others: the last job writes to MLflow
cd "$SLURM_SUBMIT_DIR"
exec python -m pipeline cells --level "$1" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
