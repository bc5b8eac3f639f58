"""Measurements of a running server, each with its hardware, load, versions and commit."""
