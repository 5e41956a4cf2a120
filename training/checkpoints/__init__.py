"""Checkpoints of a run: what they hold, how they are written, examined and read back."""
