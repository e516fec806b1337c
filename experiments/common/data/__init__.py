"""Data sets, from the disk to batches."""
