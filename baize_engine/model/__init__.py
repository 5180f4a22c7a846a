"""The LLaMA decoder: config, weights, KV cache, step. Knows nothing of files being recovered, of text or of sampling."""
