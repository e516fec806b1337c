"""Compares all sparse training methods at several sparsities."""
