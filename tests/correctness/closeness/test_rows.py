"""Each selected quantized row beside its unquantized twin: `--set` or `--rows`.

Without these options this file is not collected, and with them no other is.
"""

from llama_perf.pytest_plugin.closeness import ClosenessPlugin


def test_closeness(closeness_row: str, closeness_runner: ClosenessPlugin) -> None:
    closeness_runner.run(closeness_row)
