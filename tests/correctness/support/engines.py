"""Small models on the CPU or on a card, engines over them, and what they compute.

Also a check that the host does not wait for the device.

On a card the activations are bfloat16. On the CPU, whose bfloat16 products are slow,
they are float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama_perf.checkpoints.load import build_model
from llama_perf.checkpoints.reader import SyntheticWeights
from llama_perf.checkpoints.save import save_model
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import Engine
from llama_perf.llama.options import GREEDY, EngineOptions
from llama_perf.llama.row_engine import RowEngine
from llama_perf.llama.transformer import Transformer
from tests.correctness.support.weights_samples import TINY

CPU = torch.device("cpu")
SIZE = 258
"""Positions up to the cache's last one: lengths 1, 2, 255, 256, 257 and 258."""
# Widths that every scheme's kernels take.
SMALL = replace(TINY, dim=256, intermediate_size=512, vocab_size=512, head_dim=64)
# torchao's int4 for CUDA pads a weight's columns to a multiple of 1024.
WIDE = replace(SMALL, dim=1024, n_heads=16, intermediate_size=1024)
MODELS = {"small": SMALL, "wide": WIDE}


def dtype_on(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def new_model(
    config: ModelConfig = TINY,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Transformer:
    """One that a test may change."""
    reader = SyntheticWeights(config, dtype=dtype, device=device)
    return build_model(reader, dtype=dtype, device=device)


def small_model(device: torch.device, model: str = "small") -> Transformer:
    return new_model(MODELS[model], dtype_on(device), device)


@cache
def model() -> Transformer:
    """A tiny one for all tests, which leave it as it is."""
    return new_model()


@cache
def _small_folder() -> TemporaryDirectory[str]:
    folder = TemporaryDirectory()
    save_model(new_model(SMALL), Path(folder.name) / "small")
    return folder


def small_checkpoints() -> Path:
    """A folder with the checkpoint `small`, whose widths every scheme's kernels take.

    It is there as long as the process.
    """
    return Path(_small_folder().name)


def engine(of: Transformer | None = None, **options: Any) -> Engine:
    return Engine(of or model(), EngineOptions(**{"cache_size": SIZE, **options}))


def tokens(batch: int = 1, length: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TINY.vocab_size, (batch, length), generator=generator)


def greedy(one: RowEngine, prompt: Tensor, count: int, **options: Any) -> Tensor:
    return one.generate(prompt, max_new_tokens=count, sampling=GREEDY, **options)


def logits_after(one: Engine, ids: Tensor, prompt: int, steps: int) -> Tensor:
    """Logits after `prompt` tokens of `ids` and after each of `steps` more."""
    with torch.no_grad():
        logits = [one.prefill(ids[:, :prompt])]
        for position in range(prompt, prompt + steps):
            token = ids[:, position : position + 1]
            at = torch.tensor([position], device=ids.device)
            logits.append(one.decode(token, at))
    return torch.stack(logits, dim=1)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative: of the norm of what differs to that of `expected`."""
    expected = expected.float()
    return float((actual.float() - expected).norm() / expected.norm())


class _NoWaiting(TorchDispatchMode):
    """Refuses, on the CPU, the operators that on a card make the host wait.

    Reading a value, or an output as long as the values say, waits for what leads to
    it; a tensor made of a Python list is copied to the card, and the copy waits.
    """

    WAITING = frozenset(
        {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh"}
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if (name := func.overloadpacket.__name__) in self.WAITING:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with _NoWaiting():  # type: ignore[no-untyped-call]
            yield
        return
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        # Whatever went wrong: every later test would be refused to wait as well.
        torch.cuda.set_sync_debug_mode("default")
