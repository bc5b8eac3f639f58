"""`python -m bench demo`: the whole chain on the shipped checkpoints, from export to pictures and scores."""
