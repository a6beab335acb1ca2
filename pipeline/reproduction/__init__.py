"""Reproduction, proven: a workspace held against a recorded one, and any number walked back to what made it."""
