"""Registers, shared memory and spills of every Triton kernel, compiled without a GPU."""
