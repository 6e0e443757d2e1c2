"""Quantization schemes: which are built on which kernels, and applying one."""
