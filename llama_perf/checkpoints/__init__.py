"""Weights and tokenizers, read from files and written to them."""
