"""Products and attention on packed weights and caches.

One file a format: its formula in plain PyTorch; `products` and `attention` have the
operators. `cpu` and `triton/` hold the implementations. Knows no model and no scheme.
"""
