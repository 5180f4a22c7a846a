"""Files of prompts: their records, the output that only grows, and the run between. Knows nothing of the command line."""
