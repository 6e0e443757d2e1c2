"""The commands of `llama-perf`, thin over the core."""
