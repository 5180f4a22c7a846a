"""Base + diff -> tuned, streamed. Knows nothing of the decoder."""
