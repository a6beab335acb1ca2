"""Data sets: where they come from (`sources`) and the one form they all take (`store`)."""
