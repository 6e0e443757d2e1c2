"""Operators on quantized weights: formula, torch reference, CPU path, Triton kernel."""
