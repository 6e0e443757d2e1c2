"""The operators on CUDA: Triton kernels and the functions that launch them."""
