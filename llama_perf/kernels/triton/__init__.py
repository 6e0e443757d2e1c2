"""The operators on CUDA: Triton kernels, and the `launch_` files that start them.

Kernel files hold only what Triton compiles; they know shapes and constants, and no
device. Constants have names in capitals, as M, N and other sizes that are arguments
have. Long argument lists are grouped by meaning: tensors and sizes, the weight's
format, the tile. `# fmt: skip` keeps the formatter from giving each argument a line.
"""
