"""Files of prompts: their records, the output that only grows, and the run. Knows nothing of the command line."""
