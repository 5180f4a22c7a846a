"""Base + diff -> recovered model, streamed: plan, stream, journal, verify, and the inverse. Knows nothing of the decoder."""
