"""Weights of a model behind one layer-by-layer reader."""
