"""The scheme that is fastest for each linear layer, found by timing."""
