"""`python -m bench gpu`: everything that needs a GPU, in one command and a bounded time."""
