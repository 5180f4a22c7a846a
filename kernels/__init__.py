"""Triton kernels and `reference.py`, the plain-torch definition of every op. Imports nothing of baize_engine."""
