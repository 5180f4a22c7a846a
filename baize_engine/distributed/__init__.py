"""Processes that run one model together: who they are, what they exchange, and how all end when one does. Knows no model."""
