"""A rank's share of a weight is quantized to what the whole quantized weight has."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_perf.checkpoints.find import open_weights
from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.save import save_model
from llama_perf.checkpoints.sharded import sharded
from llama_perf.devices.ranks import own_rank
from llama_perf.errors import SpecError
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.layers import Linear
from llama_perf.measure.value_check import signal_to_noise_db
from llama_perf.quantize.apply import make_quantizer, record_scheme
from llama_perf.quantize.packed_tensor import (
    NativeConfig,
    PackedTensor,
    quantize_module,
)
from llama_perf.quantize.registry import import_all
from llama_perf.rows.schemes import Scheme
from tests.correctness.support.rank_pool import RankPool

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    dim=768,
    n_layers=2,
    n_heads=6,
    n_kv_heads=6,
    intermediate_size=768,
    vocab_size=96,
    head_dim=128,
    context=64,
)
"""It is shared by 2 and by 3 ranks, also in groups of 128."""
TOKENS = torch.arange(1, 8).view(1, -1)
SAME = (
    *("int8wo", "fp6", "float8wo", "int4wo-64", "int4wo-128", "uintx-4-64"),
    *("uintx-2-32", "sparse-marlin"),
)
ROUNDED = ("int8dq",)
"""Each rank rounds its own share of the activations."""


def logits(schemes: Sequence[str], config: ModelConfig = CONFIG) -> list[Tensor]:
    reader = SyntheticWeights(config, dtype=torch.float32, device=CPU)
    share, found = sharded(reader, own_rank()), []
    how: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    for scheme in schemes:
        quantizer = make_quantizer(scheme, kernels="native", **how)
        model = build_model(share, **how, quantizer=quantizer)
        found.append(model.logits(TOKENS))
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_logits_are_those_of_one_process(
    rank_pool: Callable[[int], RankPool], count: int
) -> None:
    wanted = logits((*SAME, *ROUNDED))
    for shared in rank_pool(count).run(logits, (*SAME, *ROUNDED)):
        for scheme, ours, whole in zip(SAME, shared, wanted, strict=False):
            close = torch.allclose(ours, whole, rtol=1e-5, atol=1e-5)
            assert close, f"{scheme}: {(ours - whole).abs().max()}"
        for ours, whole in zip(shared[len(SAME) :], wanted[len(SAME) :], strict=True):
            assert signal_to_noise_db(whole, ours) > 25


@pytest.mark.parametrize("scheme", [*SAME, *ROUNDED, "float8dq-tensor"])
def test_a_share_of_a_packed_weight(scheme: str) -> None:
    whole = quantized(torch.randn(88, 768), scheme)
    rows, columns = ((3, 20), (48, 88)), (256, 640)
    picked = torch.cat([whole.dequantize()[start:end] for start, end in rows])
    shared = whole.share(rows, columns)
    assert shared.shape == (57, 384)
    assert torch.equal(shared.dequantize(), picked[:, 256:640])
    assert torch.equal(whole.share(((0, 88),)).codes, whole.codes)
    if scheme.startswith(("int4wo", "uintx", "sparse")):
        with pytest.raises(SpecError, match="at multiples of the group size"):
            whole.share(rows, (0, 100))


def quantized(weight: Tensor, scheme: str) -> Any:
    linear = Linear(weight.shape[1], len(weight))
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    import_all()
    family = Scheme.parse(scheme).family
    (kind,) = (one for one in kinds_of(PackedTensor) if family in one.families)
    config = NativeConfig(Scheme.parse(scheme), kind)
    return quantize_module(linear, config).weight.data


def kinds_of(kind: Any) -> list[Any]:
    below = (kinds_of(one) for one in kind.__subclasses__())
    return [kind, *chain.from_iterable(below)]


def saved_logits(folder: Path) -> Tensor:
    share = sharded(open_weights(folder), own_rank())
    return build_model(share, dtype=torch.float32, device=CPU).logits(TOKENS)


def test_a_model_that_was_saved_quantized_is_shared(
    rank_pool: Callable[[int], RankPool], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"dtype": torch.float32, "device": CPU}
    for scheme in SAME:
        reader = SyntheticWeights(CONFIG, **how)
        quantizer = make_quantizer(scheme, kernels="native", **how)
        model = build_model(reader, **how, quantizer=quantizer)
        record_scheme(model, scheme=scheme, kernels="native")
        folder = tmp_path / scheme
        save_model(model, folder)
        wanted = saved_logits(folder)
        for shared in rank_pool(3).run(saved_logits, folder):
            assert torch.allclose(shared, wanted, rtol=1e-5, atol=1e-5), scheme


def refused(config: ModelConfig, scheme: str) -> str:
    try:
        logits((scheme,), config)
    except SpecError as error:
        return str(error)
    return "it is not refused"


def test_columns_that_are_no_whole_groups_are_refused_by_name(
    rank_pool: Callable[[int], RankPool],
) -> None:
    odd = replace(CONFIG, intermediate_size=576)
    for scheme, words in (
        ("sparse-marlin", "K = 192 of layers.0.feed_forward.w2 on a rank must be a"),
        ("int4wo-128", "the group size 128 must divide K = 192 of layers.0.feed_f"),
    ):
        for told in rank_pool(3).run(refused, odd, scheme):
            assert words in told
