"""Programs beside the package: `llama_perf` never imports them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
