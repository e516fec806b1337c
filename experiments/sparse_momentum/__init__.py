"""Sparse networks from scratch (Dettmers & Zettlemoyer, 2019)."""
