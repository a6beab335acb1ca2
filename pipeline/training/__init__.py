"""The training loop: batches, optimisers, schedules, checkpoints; nothing of any method."""
