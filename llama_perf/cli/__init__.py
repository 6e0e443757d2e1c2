"""The command `llama-perf`: a file for each command, `main.py` for what they share.

Reads options, calls the other rooms, prints. Knows no arithmetic.
"""
