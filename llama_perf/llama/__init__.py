"""The model and how it generates.

Knows token ids only: neither text, nor files, nor quantization schemes.
"""
