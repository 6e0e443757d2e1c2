"""Products and attention on packed weights and caches.

One file an operator: its formula in plain PyTorch, and who runs it. `cpu/` and
`triton/` hold the implementations. Knows no model and no scheme.
"""
