"""Compares results with a baseline: one verdict for each row, with its reason.

Imports no torch and runs nothing. It judges results that others measured.
"""
