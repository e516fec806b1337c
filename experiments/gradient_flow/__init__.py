"""Gradient flow in sparse networks, and how tickets win (Evci et al., 2020)."""
