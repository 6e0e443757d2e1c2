"""Model sizes: what is computed, what was published, what is documented."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llama_perf import quantize_model
from llama_perf.errors import SpecError
from llama_perf.llama.presets import preset
from llama_perf.measure.predict import model_bytes
from scripts.doc_tables.sizes import MODELS, is_built, sizes
from tests.correctness.quantize.test_apply import SMALL, small
from tests.correctness.support.schemes import schemes_on

# No N is a multiple of sixteen rows, no K one of a group of 128 or a word's codes.
ODD = {"dim": 40, "intermediate_size": 200, "vocab_size": 328, "head_dim": 20}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        *((scheme, {}) for scheme in (None, *schemes_on("native"))),
        *((scheme, ODD) for scheme in ("int8wo", "fp6", "float8dq-tensor")),
        *((scheme, ODD) for scheme in ("uintx-3-4", "uintx-7-8", "sparse-marlin")),
    ],
    ids=str,
)
def test_a_size_is_that_of_the_model_itself(
    scheme: str | None, shape: dict[str, int], tied: bool
) -> None:
    config = replace(SMALL, n_layers=3, tied_embeddings=tied, **shape)  # type: ignore[arg-type]
    model = small(config)
    if scheme is not None:
        quantize_model(model, scheme, kernels="native")
    found = model_bytes(config, scheme, dtype=torch.float32)
    assert found == model.weight_bytes()


def test_every_size_is_the_published_one_within_a_percent() -> None:
    for size in sizes():
        found = size.comparable_bytes / 1e9
        assert found == pytest.approx(size.published_gb, rel=0.01), size
        assert size.lean_bytes <= size.comparable_bytes, size


def test_every_scheme_of_the_published_table_that_is_built_is_there() -> None:
    wanted = {"int8wo", "int8dq", "int4wo-64", "uintx-4-64", "uintx-2-8", "fp6"}
    if is_built("sparse-marlin"):
        wanted.add("sparse-marlin")
    for model in MODELS:
        shown = {size.scheme for size in sizes() if size.model == model}
        assert shown == {*wanted, None}


def test_only_schemes_with_zero_points_have_a_reference_layout() -> None:
    with_layout = {size.scheme for size in sizes() if size.reference_bytes is not None}
    assert with_layout == {"uintx-4-64", "uintx-2-8", "sparse-marlin"}


def test_a_scheme_that_does_not_fit_the_shape_has_no_size() -> None:
    odd = replace(preset("7B"), intermediate_size=11010)
    with pytest.raises(SpecError, match="the group size 64 must divide K = 11010"):
        model_bytes(odd, "int4wo-64", dtype=torch.bfloat16)
