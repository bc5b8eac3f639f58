"""What callers see: the native API, and how messages become jobs."""
