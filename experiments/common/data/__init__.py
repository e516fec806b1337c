"""Data sets, from disk to batches."""
