"""Trains a sparse network together with its dense twin."""
