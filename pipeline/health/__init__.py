"""Whether a robustness evaluation is to be believed: probes of a model, and checks with thresholds."""
