from __future__ import annotations

from typing import Any

import pytest

from llama_perf.checkpoints.config import from_hugging_face, from_meta
from llama_perf.errors import WeightsError

HUGGING_FACE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 48,
}
META: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 48}


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_attention_heads": None},
        {"num_hidden_layers": 2.5},
        {"rope_theta": "high"},
        {"rope_scaling": {"rope_type": "llama3"}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": "llama3"},
        {"vocab_size": [48]},
        {"rms_norm_eps": "tiny"},
    ],
    ids=str,
)
def test_a_wrong_config_json_is_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"^config\.json: ") as caught:
        from_hugging_face({**HUGGING_FACE, **change}, source="config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": "wide"},
        {"n_heads": 0},
        {"n_layers": 2.5},
        {"vocab_size": -1},
        {"vocab_size": "many"},
        {"multiple_of": 0},
        {"ffn_dim_multiplier": "twice"},
        {"rope_theta": "high"},
    ],
    ids=str,
)
def test_a_wrong_params_json_is_one_line(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"^params\.json: ") as caught:
        from_meta({**META, **change}, source="params.json")
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    without = {key: HUGGING_FACE[key] for key in HUGGING_FACE if key != "vocab_size"}
    with pytest.raises(WeightsError, match="'vocab_size' is missing"):
        from_hugging_face(without, source="config.json")
