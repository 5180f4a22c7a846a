"""Checkpoint files: where each tensor lies, and how to write new ones. Knows nothing of models or recovery."""
