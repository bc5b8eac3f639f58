"""`python -m bench end-to-end`: whole samples, scores and chains in this process, beside the loops they replace."""
