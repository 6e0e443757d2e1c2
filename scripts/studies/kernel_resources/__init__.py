"""Registers, shared memory and spills of the Triton kernels, without a GPU."""
