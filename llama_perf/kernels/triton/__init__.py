"""The operators on CUDA: Triton kernels, and the `launch_` files that start them.

Kernel files hold only what Triton compiles; they know shapes and constants, and no
device. Their long argument lists are grouped by meaning: tensors, sizes, the weight's
format, the tile. `# fmt: skip` keeps the formatter from giving each argument a line.
"""
