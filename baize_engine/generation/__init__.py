"""From logits to token ids and text: sampling, stop rules, the decode loop. Knows nothing of recovery."""
