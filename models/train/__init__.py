"""Training of the shipped checkpoints, from nothing, on a CPU: `python -m models.train`."""
