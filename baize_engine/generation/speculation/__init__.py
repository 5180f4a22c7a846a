"""Speculation: tokens proposed before the model has chosen them, several of which one step can verify."""
