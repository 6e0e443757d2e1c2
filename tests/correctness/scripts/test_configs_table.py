"""The table of torchao's configs has them all, each as a row's file has it."""

from llama_perf.quantize.own_configs import CONFIG, modules_of
from llama_perf.rows.schemes import Scheme
from scripts.doc_tables.configs import CALLS, TABLE, TRAINING


def test_every_config_of_torchao_is_a_row_of_the_table() -> None:
    configs = [Scheme.parse(call).config for call in CALLS]
    assert [config.text for config in configs if config is not None] == list(CALLS)
    listed = {config.name for config in configs if config is not None}
    assert modules_of(CONFIG).keys() <= listed | {*TRAINING}
    assert list(TABLE.documented()) == list(TABLE.keys)
