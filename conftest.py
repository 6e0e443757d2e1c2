"""Loads the plugin from the root, so that its hooks come before pytest-benchmark's."""

pytest_plugins = ["llama_perf.pytest_plugin.plugin"]
