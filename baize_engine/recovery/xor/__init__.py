"""Finetunes published as XOR of whole files with their base's: payload -> the files themselves. Knows no tensors."""
