"""Attacks on finished models: a catalogue of compositions, run by one loop."""
