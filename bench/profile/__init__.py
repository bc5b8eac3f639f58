"""`python -m bench profile`: where the microseconds of a request go."""
