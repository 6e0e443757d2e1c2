"""What `pytest tests/perf` is: the plugin, its options, the table at the end."""
