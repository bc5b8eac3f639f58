"""Fused updates and the counter-based noise that they use; imports nothing else of the project."""
