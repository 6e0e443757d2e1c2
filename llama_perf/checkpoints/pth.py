"""`model.pth` in the reference's naming, and Meta's own `consolidated.00.pth`.

The reference is gpt-fast and the benchmark torchao derived from it. Its files hold a
dict of tensors with `wqkv` fused or as `wq`, `wk`, `wv`, and rows already in the order
of interleaved pairs; those of `save_model` hold quantized tensors too. A pickle can ask
for code to be run: nothing but tensors is ever unpickled here. Knows nothing of how the
file was converted.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_perf.checkpoints.config import folder_config
from llama_perf.checkpoints.saved import (
    Saved,
    check_tensors,
    import_tensors,
    read_saved,
)
from llama_perf.checkpoints.stored import Stored, StoredWeights
from llama_perf.errors import WeightsError
from llama_perf.llama.transformer import is_unquantized

_TOP = ("tok_embeddings.weight", "norm.weight", "output.weight")
_BLOCK = (
    "attention.wqkv.weight",
    "attention.wq.weight",
    "attention.wk.weight",
    "attention.wv.weight",
    "attention.wo.weight",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
    "attention_norm.weight",
    "ffn_norm.weight",
)
_NAMES = {name: name for name in _TOP} | {
    name: f"layers.{{}}.{name}" for name in _BLOCK
}
# Tables and caches that models of this family registered as buffers and saved.
_BUFFERS = re.compile(
    r"rope\.freqs|freqs_cis|freqs_cos|freqs_sin|causal_mask|mask"
    r"|layers\.\d+\.attention\.(inner_attention\.rope\.freqs|kv_cache\.[kv]_cache"
    r"|kv_cache\.[kv]_cache_scale)"
)


def open_pth(path: Path) -> StoredWeights:
    """Open a `.pth` file; its configuration is looked for beside it.

    The file is mapped, so that only what is read comes into memory (one in the format
    of torch before 1.6 cannot be and is read completely). Raises WeightsError.
    """
    config, config_from = folder_config(path.parent)
    saved = read_saved(path.parent)
    tensors = _load(path, saved)
    output, embedding = tensors.get("output.weight"), tensors.get(_TOP[0])
    if output is not None and is_unquantized(output):
        # What the file holds decides: a tied model's may have both names for one
        # storage, and one with an output layer of its own must not lose it.
        shared = embedding is not None and output.data_ptr() == embedding.data_ptr()
        config = dataclasses.replace(config, tied_embeddings=shared)
    return StoredWeights(
        Stored(
            path=path,
            source=_source(path, saved),
            config=config,
            config_from=config_from,
            names=_NAMES,
            shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
            read=lambda name: tensors[name].detach(),
            ignored=_BUFFERS,
            saved=saved,
            own_output=output is not None and not is_unquantized(output),
        )
    )


def _source(path: Path, saved: Saved | None) -> str:
    name = f"pth:{path.absolute().parent.name}"
    return name if saved is None else f"{name} ({saved.origin.summary})"


def _load(path: Path, saved: Saved | None) -> dict[str, Tensor]:
    if saved is not None and saved.scheme is not None:
        import_tensors()
    loaded = _unpickle(path, saved)
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        # The stories checkpoints of llama2.c keep the weights beside other entries.
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(
            f"{path}: a {type(loaded).__name__} of {_length(loaded)} entries is not"
            " allowed; allowed: a dict of tensors"
        )
    tensors = {str(name): value for name, value in loaded.items()}
    check_tensors(tensors, saved, path)
    return tensors


def _unpickle(path: Path, saved: Saved | None) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        if (asked := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise _damaged(path) from None
        raise _refused(path, asked[1], saved) from None
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        raise _damaged(path) from None


def _refused(path: Path, asked: str, saved: Saved | None) -> WeightsError:
    start = f"{path}: refused: it asks for {asked}, "
    if not asked.startswith(("torchao.", "llama_perf.")):
        return WeightsError(
            f"{start}which can run code; nothing was executed; allowed: a dict of"
            " tensors"
        )
    if saved is None or saved.scheme is None:
        return WeightsError(
            f"{start}a quantized tensor; allowed: unquantized tensors, or these with"
            " the config.json that save_model wrote"
        )
    return WeightsError(
        f"{start}which these versions do not have; it was saved with torchao"
        f" {saved.torchao} and llama-perf {saved.llama_perf}"
    )


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: damaged, truncated, or no checkpoint; nothing in it was executed;"
        " allowed: a file that torch.save wrote"
    )


def _length(value: object) -> int:
    return len(value) if isinstance(value, (dict, list, tuple)) else 1
