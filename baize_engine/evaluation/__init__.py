"""The tasks of the model card: prompts, predictions and metrics, and what runs them on an engine."""
