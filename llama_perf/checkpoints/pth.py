"""Weights in `.pth` files: those of `save_model`, of gpt-fast, and Meta's.

Knows how a pickle is read without running what it asks for, and not what of a folder
is to be read.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama_perf.checkpoints import archive, packed_cuts
from llama_perf.checkpoints import config as configs
from llama_perf.checkpoints.cut import WHOLE, Cut
from llama_perf.checkpoints.hub import folder_name
from llama_perf.checkpoints.saved import Saved, check_content, read_saved
from llama_perf.checkpoints.saved_tensors import check_tensors
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.devices.ranks import Rank
from llama_perf.errors import WeightsError
from llama_perf.files import check_readable
from llama_perf.llama.transformer import is_unquantized
from llama_perf.quantize.registry import import_for

EMBEDDING = "tok_embeddings.weight"


class PthFile(NamedTuple):
    """A file that was opened: its tensors, and how one is read when it is asked for."""

    path: Path
    tensors: dict[str, Any]
    read: Callable[[str], Tensor]
    """A map of the file: only what is used of it comes into memory."""
    check_data: Callable[[Rank], None]
    """Raises WeightsError for damage of the tensors' data: see `archive`."""


def open_pth(path: Path) -> StoredWeights:
    """Open a `.pth` file; its configuration is looked for in the same folder.

    It holds a dict of tensors in Meta's names, as `consolidated.00.pth` does, or those
    of gpt-fast and torchao's benchmark, with `wqkv` fused; `save_model`'s are quantized
    too. Raises WeightsError.
    """
    opened = cache(partial(open_file, path))
    config, config_from = configs.folder_config(
        path.parent, vocab_size=lambda: embedding_rows(opened(None).tensors, path)
    )
    saved = read_saved(path.parent)
    if saved is not None and saved.scheme is not None:
        import_for(saved.scheme)
    _, tensors, read_map, check_data = opened(saved)
    if saved is not None:
        check_content(path)
    output = tensors.get("output.weight")
    if output is not None and is_unquantized(output):
        # What the file holds decides: a tied model's may have both names for one
        # storage, and one with an output layer of its own must not lose it.
        embedding = tensors.get(EMBEDDING)
        shared = embedding is not None and output.data_ptr() == embedding.data_ptr()
        config = replace(config, tied_embeddings=shared)

    def read(name: str, cut: Cut = WHOLE) -> Tensor:
        tensor = read_map(name)
        if cut.is_whole or is_unquantized(tensor):
            return cut.copied_from(tensor)
        return packed_cuts.share(tensor, cut)

    def check_cut(name: str, cut: Cut) -> None:
        if not cut.is_whole and not is_unquantized(tensors[name]):
            packed_cuts.share(packed_cuts.without_data(tensors[name]), cut)

    source = f"pth:{folder_name(path.parent)}"
    return StoredWeights(
        path=path,
        source=source if saved is None else f"{source} ({saved.origin.summary})",
        config=config,
        config_from=config_from,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        read=read,
        names={},
        block="layers",
        files=[path],
        saved=saved,
        own_output=output is not None and not is_unquantized(output),
        check_data=check_data,
        check_cut=check_cut,
    )


def open_file(path: Path, saved: Saved | None) -> PthFile:
    """The tensors of one file, which are what `saved` says; raises WeightsError.

    A pickle can ask for code to be run: nothing but tensors is ever unpickled. The file
    is mapped, so that only what is read comes into memory (one in the format of torch
    before 1.6 cannot be and is read completely).
    """
    check_readable(path, error=WeightsError)
    is_zip = zipfile.is_zipfile(path)
    loaded = _unpickle(path, saved, mmap=is_zip)
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        # The stories checkpoints of llama2.c keep the weights among other entries.
        loaded = loaded["model"]
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(
            f"{path}: {type(loaded).__name__} is not allowed; allowed: a dict of"
            " tensors, at least one"
        )
    tensors = {str(name): value for name, value in loaded.items()}
    check_tensors(tensors, saved, path)

    def read(name: str) -> Tensor:
        tensor: Tensor = tensors[name].detach()
        return tensor

    def check_data(rank: Rank) -> None:
        if is_zip:
            archive.check_data(path, rank)

    return PthFile(path, tensors, read, check_data)


def embedding_rows(tensors: Mapping[str, Any], path: Path) -> int:
    """The rows of the embedding; raises WeightsError where there is none."""
    embedding = tensors.get(EMBEDDING)
    if embedding is None or embedding.ndim != 2:
        raise WeightsError(f"{path}: the tensor {EMBEDDING}, of two sizes, is missing")
    return int(embedding.shape[0])


def _unpickle(path: Path, saved: Saved | None, *, mmap: bool) -> Any:
    if mmap:
        archive.check_small_records(path)
    problem = (
        "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a"
        " file that torch.save wrote"
    )
    try:
        # torch warns of what is refused or read below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if (match := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            why = "which can run code; nothing was executed; allowed: a dict of tensors"
            if match[1].startswith(("torchao.", "llama_perf.")):
                why = (
                    "a quantized tensor; allowed: unquantized tensors, or these with"
                    " the config.json that save_model wrote"
                    if saved is None or saved.scheme is None
                    else "which these versions do not have; it was saved with torchao"
                    f" {saved.torchao} and llama-perf {saved.llama_perf}"
                )
            problem = f"refused: it asks for {match[1]}, {why}"
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        pass
    raise WeightsError(f"{path}: {problem}")
