"""Model sizes: what is computed, what was published, what is documented."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from llama_perf import quantize_model
from llama_perf.errors import SpecError
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import model_bytes
from scripts.doc_tables.sizes import MODELS, documented, markdown, sizes
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support.schemes import schemes_on

# No N is a multiple of sixteen rows, no K one of a group of 128 or a word's codes.
ODD = {"dim": 40, "intermediate_size": 200, "vocab_size": 328, "head_dim": 20}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "kernels", "shape"),
    [
        *((scheme, "native", {}) for scheme in (None, *schemes_on("native"))),
        *((scheme, "native", ODD) for scheme in ("int8wo", "fp6", "float8dq-tensor")),
        *((scheme, "native", ODD) for scheme in ("uintx-3-4", "uintx-7-8")),
        ("sparse-marlin", "native", ODD),
        *((scheme, "torchao", {}) for scheme in ("int8wo", "int8dq", "int4wo-64")),
        ("float8wo", "torchao", {}),
    ],
    ids=str,
)
def test_a_size_is_that_of_the_model_itself(
    scheme: str | None, kernels: str, shape: dict[str, Any], tied: bool
) -> None:
    config = replace(SMALL, n_layers=3, tied_embeddings=tied, **shape)
    model = small(config)
    if scheme is not None:
        quantize_model(model, scheme, kernels=kernels)
    found = model_bytes(config, scheme, kernels=kernels, dtype=torch.float32)
    assert found == model.weight_bytes()


def test_torchaos_int4_for_cuda_takes_what_was_published() -> None:
    def of(model: str, device: str) -> float:
        fields: dict[str, Any] = {"kernels": "torchao", "device": device}
        found = model_bytes(preset(model), "int4wo-64", dtype=torch.bfloat16, **fields)
        return round(found / 1e9, 2)

    # K = 11008 is padded to 11264 there; Llama-3's K are multiples of 1024.
    assert of("7B", "cuda") == 3.74 > of("7B", "cpu")
    assert of("Llama-3-8B", "cuda") == 4.22 == of("Llama-3-8B", "cpu")


def test_autoquant_is_predicted_as_the_least_it_can_choose() -> None:
    for name, least in (("autoquant", "int8wo"), ("autoquant-int4", "int4wo-64")):
        found = model_bytes(SMALL, name, dtype=torch.bfloat16, device="cuda")
        assert found == model_bytes(SMALL, least, dtype=torch.bfloat16)


def test_every_size_is_the_published_one_within_a_percent() -> None:
    for size in sizes():
        found = size.comparable_bytes / 1e9
        assert found == pytest.approx(size.published_gb, rel=0.01), size
        assert size.lean_bytes <= size.comparable_bytes, size
    assert documented() == markdown(), "python -m scripts.doc_tables sizes --write"
    with_layout = {size.scheme for size in sizes() if size.reference_bytes is not None}
    assert with_layout == {"uintx-4-64", "uintx-2-8", "sparse-marlin"}
    wanted = {*with_layout, None, "int8wo", "int8dq", "int4wo-64", "fp6"}
    for model in MODELS:
        assert wanted == {size.scheme for size in sizes() if size.model == model}


def test_a_scheme_that_does_not_fit_the_shape_has_no_size() -> None:
    odd = replace(preset("7B"), intermediate_size=11010)
    with pytest.raises(SpecError, match="the group size 64 must divide K = 11010"):
        model_bytes(odd, "int4wo-64", dtype=torch.bfloat16)
