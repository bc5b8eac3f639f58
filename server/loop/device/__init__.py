"""Steps on torch tensors: on a GPU as CUDA graphs with the fused kernels, on the CPU with their torch twins."""

AHEAD = 2
"""Batches that a GPU is given: the one that runs, and the next."""
