"""Configurations that contradict themselves, or say what is not computed, are refused.

Both fields and both values are named. What agrees, or says nothing, is read.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_perf.checkpoints.config import from_hugging_face, from_meta, to_hugging_face
from llama_perf.checkpoints.find import open_weights
from llama_perf.errors import SaveError, WeightsError
from llama_perf.llama.config import ModelConfig, RopeScaling
from llama_perf.llama.presets import PRESETS
from tests.correctness.checkpoints import test_pth, test_safetensors
from tests.correctness.support import architectures
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.architectures import MODELS, SHAPE
from tests.correctness.support.errors import refusal
from tests.correctness.support.weights_samples import TINY, file_refusal

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
FULL, SLIDING = "full_attention", "sliding_attention"
QWEN2 = {"model_type": "qwen2", "head_dim": None}
QWEN2_WINDOW = {**QWEN2, "use_sliding_window": True, "sliding_window": 8}
QWEN2_WINDOW |= {"max_window_layers": 1}
MISTRAL = {"model_type": "mistral", "sliding_window": 8}
SMOLLM3 = {"model_type": "smollm3", "no_rope_layer_interval": 2}


def read(change: dict[str, Any]) -> ModelConfig:
    return from_hugging_face({**samples.CONFIG_JSON, **change}, source="here")


def problem(change: dict[str, Any]) -> str:
    message = refusal(read, change, error=WeightsError)
    return message.removeprefix("here: ")


CONTRADICTIONS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        *("rope_theta: 10000.0", "rope_parameters.rope_theta: 1000000.0"),
    ),
    (
        {"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "rope_theta": 5e5}},
        *("rope_theta: 10000.0", "rope_scaling.rope_theta: 500000.0"),
    ),
    (
        {"rope_scaling": {"rope_type": "llama3", "type": "default"}},
        *("rope_scaling.rope_type: 'llama3'", "rope_scaling.type: 'default'"),
    ),
    (
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
        *("rope_parameters.rope_type: 'default'", "rope_scaling.rope_type: 'llama3'"),
    ),
    (
        {"rope_scaling": LLAMA3, "rope_parameters": {"factor": 32.0}},
        *("rope_parameters.factor: 32.0", "rope_scaling.factor: 8.0"),
    ),
    (
        {"model_type": "llama", "architectures": ["Qwen2ForCausalLM"]},
        *("model_type: 'llama'", "architectures: ['Qwen2ForCausalLM']"),
    ),
    (
        {"dtype": "bfloat16", "torch_dtype": "float16"},
        *("dtype: 'bfloat16'", "torch_dtype: 'float16'"),
    ),
    ({"n_layers": 3}, "num_hidden_layers: 2", "n_layers: 3"),
    ({"n_embd": 64}, "hidden_size: 32", "n_embd: 64"),
    (
        {"layer_types": [FULL] * 3},
        *("num_hidden_layers: 2", f"layer_types: ['{FULL}', '{FULL}', '{FULL}']"),
    ),
    (
        {**SMOLLM3, "no_rope_layers": [1, 1]},
        *("no_rope_layers: [1, 1]", "no_rope_layer_interval: 2"),
    ),
    (
        {**SMOLLM3, "no_rope_layers": [1, 0, 1]},
        *("num_hidden_layers: 2", "no_rope_layers: [1, 0, 1]"),
    ),
    (
        {**MISTRAL, "layer_types": [FULL, SLIDING]},
        *(f"layer_types: ['{FULL}', '{SLIDING}']", "sliding_window: 8"),
    ),
    (
        {**MISTRAL, "sliding_window": None, "layer_types": [SLIDING] * 2},
        *(f"layer_types: ['{SLIDING}', '{SLIDING}']", "sliding_window: none"),
    ),
    (
        {**QWEN2_WINDOW, "layer_types": [SLIDING] * 2},
        *(f"layer_types: ['{SLIDING}', '{SLIDING}']", "max_window_layers: 1"),
    ),
    (
        {**QWEN2, "use_sliding_window": False, "layer_types": [FULL, SLIDING]},
        *(f"layer_types: ['{FULL}', '{SLIDING}']", "use_sliding_window: false"),
    ),
    ({"layer_types": [FULL, SLIDING]}, "layer_types", "sliding_window: none"),
]


@pytest.mark.parametrize(("change", "first", "second"), CONTRADICTIONS)
def test_two_fields_that_contradict_each_other_are_named(
    change: dict[str, Any], first: str, second: str
) -> None:
    message = problem(change)
    assert message.startswith(first)
    assert f" contradicts {second}; correct or remove one of them" in message


AGREEMENTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # 10000 and 10000.0 are one number, and a null says nothing.
    ({"rope_theta": 10000, "rope_parameters": {"rope_theta": 1e4}}, {}),
    ({"rope_theta": None, "rope_parameters": {"rope_theta": 1e6}}, {"rope_base": 1e6}),
    ({"rope_scaling": None, "rope_parameters": {"rope_type": "default"}}, {}),
    ({"dtype": "bfloat16", "torch_dtype": "torch.bfloat16"}, {}),
    ({"architectures": ["LlamaForCausalLM"], "n_layers": 2}, {}),
    ({"model_type": None, "architectures": ["LLaMAForCausalLM"]}, {}),
    ({"model_type": None}, {}),
    # Of a type that is no text.
    ({"architectures": [10**5000], "dtype": 10**5000}, {}),
    ({"head_dim": 16}, {"head_dim": 16}),
    ({"use_sliding_window": False, "sliding_window": 4096}, {}),
    ({"layer_types": [FULL] * 2}, {}),
    (MISTRAL, {"sliding_window": 8}),
    ({**MISTRAL, "layer_types": [SLIDING] * 2}, {"sliding_window": 8}),
    ({"model_type": "mistral"}, {"sliding_window": 4096}),
    ({"model_type": "mistral", "sliding_window": None}, {}),
    # What a Qwen2 has that was never trained with a window.
    ({**QWEN2, "sliding_window": 131072, "use_sliding_window": False}, {}),
    (QWEN2_WINDOW, {"sliding_window": 8, "window_layers": (1,)}),
    (
        {**QWEN2_WINDOW, "layer_types": [FULL, SLIDING]},
        {"sliding_window": 8, "window_layers": (1,)},
    ),
    ({**SMOLLM3, "no_rope_layers": [1, 0]}, {"nope_layers": (1,)}),
    # What changes nothing, or is not used.
    ({"pretraining_tp": 2, "attention_dropout": 0.1, "mask_token_id": 7}, {}),
    ({"is_llama_config": True, "rope_interleaved": False, "clip_qkv": None}, {}),
    ({"logits_scaling": 1.0, "partial_rotary_factor": 1.0}, {}),
    ({"unsloth_fixed": True, "transformers.js_config": {"dtype": "q4"}}, {}),
]


@pytest.mark.parametrize(("change", "parts"), AGREEMENTS)
def test_what_agrees_is_read(change: dict[str, Any], parts: dict[str, Any]) -> None:
    config = read(change)
    assert {name: getattr(config, name) for name in parts} == parts
    if not parts and "model_type" not in change:
        assert config == TINY


UNKNOWN = (
    "; no model of llama has this field here, and it may change what is computed;"
    " allowed: null, or leave it out"
)
ONE = "; allowed: 1.0"
NOT_COMPUTED: list[tuple[dict[str, Any], str, str]] = [
    ({"sliding_window": 4096}, "sliding_window: 4096", "; allowed: None"),
    ({"attention_multiplier": 0.5}, "attention_multiplier: 0.5", UNKNOWN),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: 50.0", UNKNOWN),
    ({"num_local_experts": 8}, "num_local_experts: 8", UNKNOWN),
    ({"use_qk_norm": True}, "use_qk_norm: true", UNKNOWN),
    ({"alibi": True}, "alibi: true", UNKNOWN),
    ({"logits_scaling": 8.0}, "logits_scaling: 8.0", ONE),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5", ONE),
    *(
        ({key: {"rope_type": kind, "factor": 2.0}}, f"{key}: rope_type: '{kind}'", "")
        for key in ("rope_scaling", "rope_parameters")
        for kind in ("linear", "dynamic", "yarn", "longrope")
    ),
    # Without a type nothing would read the factor.
    ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: factor: 2.0", ONE),
    ({"rope_scaling": {**LLAMA3, "mscale": 0.7}}, "rope_scaling: mscale: 0.7", ""),
    (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        *("rope_parameters: partial_rotary_factor: 0.5", ONE),
    ),
    ({**QWEN2, "attention_bias": False}, "attention_bias: false", "; allowed: True"),
    ({"layer_types": ["chunked", FULL]}, f"layer_types: ['chunked', '{FULL}']", ""),
    ({**QWEN2_WINDOW, "max_window_layers": "all"}, "max_window_layers: 'all'", ""),
    ({**SMOLLM3, "no_rope_layer_interval": 0}, "no_rope_layer_interval: 0", ""),
    ({**SMOLLM3, "no_rope_layers": "none"}, "no_rope_layers: 'none'", ""),
    ({**MISTRAL, "sliding_window": -1}, "sliding_window: -1", ""),
    ({**MISTRAL, "sliding_window": "wide"}, "sliding_window: 'wide'", ""),
]


@pytest.mark.parametrize(("change", "field", "allowed"), NOT_COMPUTED)
def test_what_would_be_computed_otherwise_is_refused(
    change: dict[str, Any], field: str, allowed: str
) -> None:
    assert problem(change).startswith(f"{field} is not allowed{allowed}")


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    folder = test_safetensors.write(tmp_path, {})
    text = json.dumps(samples.CONFIG_JSON)
    path = folder / "config.json"
    path.write_text(text.replace("{", '{"rms_norm_eps": 1e-6, ', 1), encoding="utf-8")
    twice = "rms_norm_eps: 1e-06 contradicts rms_norm_eps: 1e-05"
    assert file_refusal(folder).startswith(f"config.json: {twice}")
    path.write_text(text.replace("{", '{"rms_norm_eps": 1e-5, ', 1), encoding="utf-8")
    assert open_weights(folder).config == TINY


def test_a_params_json_beside_a_config_json(tmp_path: Path) -> None:
    """Also beside safetensors, as Mistral publishes both."""
    for module, name in ((test_pth, "pth"), (test_safetensors, "safetensors")):
        folder = tmp_path / name
        folder.mkdir()
        if module is test_safetensors:
            test_safetensors.write(folder, {})
        else:
            samples.write_json(folder / "config.json", samples.CONFIG_JSON)
            test_pth.save(folder, samples.all_weights())
        agreeing = {**samples.PARAMS_JSON, "norm_eps": 1e-5, "vocab_size": -1}
        samples.write_json(folder / "params.json", agreeing)
        assert open_weights(folder).config == TINY
        for change, both in (
            ({"norm_eps": 1e-6}, "rms_norm_eps: 1e-05|norm_eps: 1e-06"),
            ({"multiple_of": 256}, "intermediate_size: 64|hidden_dim: 256"),
            ({"rope_theta": 1e6}, "rope_theta: 10000.0|rope_theta: 1000000.0"),
        ):
            samples.write_json(folder / "params.json", agreeing | change)
            first, second = both.split("|")
            wanted = f"config.json: {first} contradicts params.json: {second}; "
            message = refusal(open_weights, folder, error=WeightsError)
            assert message.startswith(f"{folder}: {wanted}")


def test_a_params_json_of_mistral_and_one_of_the_first_llamas(tmp_path: Path) -> None:
    mistral = {**samples.SIZES, "head_dim": 16, "hidden_dim": 72, "sliding_window": 8}
    config = from_meta(mistral, source="here")
    sizes = config.head_dim, config.intermediate_size, config.sliding_window
    assert sizes == (16, 72, 8)
    # Llama 1 and 2 leave the vocabulary's size to the tokenizer.
    path = test_pth.save(tmp_path, samples.all_weights())
    params = tmp_path / "params.json"
    samples.write_json(params, {**samples.PARAMS_JSON, "vocab_size": -1})
    assert open_weights(path).config == TINY
    test_pth.save(tmp_path, {"norm.weight": torch.ones(32)})
    missing = "the tensor tok_embeddings.weight, of two sizes, is missing"
    assert file_refusal(path) == missing
    scaled = {**samples.PARAMS_JSON, "use_scaled_rope": True}
    assert from_meta(scaled, source="here").rope_scaling == RopeScaling(factor=8.0)
    scaled["use_scaled_rope"] = "yes"
    message = refusal(from_meta, scaled, source="here", error=WeightsError)
    assert (
        message == "here: use_scaled_rope: 'yes' is not allowed; allowed: False, True"
    )
    experts = {**samples.PARAMS_JSON, "moe": {"num_experts": 8}}
    message = refusal(from_meta, experts, source="here", error=WeightsError)
    assert message.startswith('here: moe: {"num_experts": 8} is not allowed; no pa')


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path) -> None:
    config = open_weights(architectures.save(name, tmp_path)).config
    assert from_hugging_face(to_hugging_face(config), source="again") == config


def test_a_preset_is_written_and_read_and_other_parts_are_refused() -> None:
    for config in PRESETS.values():
        assert from_hugging_face(to_hugging_face(config), source="again") == config
    odd = replace(TINY, output_bias=True)
    message = refusal(to_hugging_face, odd, error=SaveError)
    assert message == "no config.json describes a model with these parts"


def test_every_field_that_transformers_writes_is_known() -> None:
    """Of each class: a new one that may change the computation would be refused."""
    for (config, _), own in MODELS.values():
        fields = config(**{**SHAPE, **own}).to_dict()
        assert from_hugging_face(fields, source="transformers").dim == 64
