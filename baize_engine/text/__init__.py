"""Tokenizers and chat formats: text to token ids and back. Knows no model and no decoder."""
