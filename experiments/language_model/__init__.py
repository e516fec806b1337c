"""Sparse pretraining of a language model of laptop size, in the form used on a pod."""
