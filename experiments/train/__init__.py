"""Trains a sparse network beside its dense twin."""
