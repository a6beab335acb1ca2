"""Studies over hyper-parameters; the only importers of Optuna."""
