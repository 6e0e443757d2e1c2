"""Small checkpoints in files, and rows of them that are ready to run."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from llama_perf.checkpoints.load import OpenedModel
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.measure.prepare import PreparedRow, prepare_row
from llama_perf.rows.spec import RowSpec
from tests.correctness.support import engines
from tests.correctness.support.weights_samples import all_weights, write_json


@cache
def checkpoints() -> TemporaryDirectory[str]:
    """With a model that has an output layer, and one that shares its embedding."""
    folder = TemporaryDirectory()
    shape = engines.SMALL
    for name, tied in (("own", False), ("tied", True)):
        config = replace(shape, tied_embeddings=tied)
        reader = SyntheticWeights(config, dtype=torch.float32, device=engines.CPU)
        path = Path(folder.name) / name
        path.mkdir()
        torch.save(all_weights(reader), path / "model.pth")
        fields = {
            "model_type": "llama",
            "hidden_size": shape.dim,
            "num_hidden_layers": shape.n_layers,
            "num_attention_heads": shape.n_heads,
            "num_key_value_heads": shape.n_kv_heads,
            "head_dim": shape.head_dim,
            "intermediate_size": shape.intermediate_size,
            "vocab_size": shape.vocab_size,
            "rms_norm_eps": shape.norm_eps,
            "tie_word_embeddings": tied,
        }
        write_json(path / "config.json", fields)
    return folder


def built(model: str = "own", *, keep: bool = True, **fields: Any) -> PreparedRow:
    wanted = {"device": "cpu", "dtype": "float32", "max_new_tokens": 12, **fields}
    opened = OpenedModel(checkpoints=Path(checkpoints().name), keep=keep)
    return prepare_row(RowSpec(model=model, **wanted), opened=opened)
