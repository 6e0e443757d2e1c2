"""Programs beside the package: `llama_perf` never imports them."""
