"""Sparse pretraining of a language model, the size of a laptop and the shape of a pod."""
