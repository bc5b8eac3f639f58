"""Steps on torch tensors: on a GPU as CUDA graphs with the fused kernels, on the CPU with their torch twins."""
