"""The command `llama-perf`, one file a command."""
