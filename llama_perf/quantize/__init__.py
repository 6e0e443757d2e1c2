"""The name of a scheme turned into quantized weights."""
