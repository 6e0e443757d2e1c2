"""Loads the plugin from the root, so that its hooks come before pytest-benchmark's."""

from __future__ import annotations

pytest_plugins = ["llama_perf.pytest_plugin.plugin"]
