"""The operators on a CPU: compiled for one token, plain PyTorch for many."""
