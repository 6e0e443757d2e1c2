"""`model.pth` in the reference's naming, and Meta's own `consolidated.00.pth`.

The reference is gpt-fast and the benchmark torchao derived from it. Its files hold a
dict of tensors with `wqkv` fused or as `wq`, `wk`, `wv`, and rows already in the order
of interleaved pairs; those of `save_model` hold quantized tensors too. A pickle can ask
for code to be run: nothing but tensors is ever unpickled here. Knows nothing of how the
file was converted.
"""

import dataclasses
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_perf.checkpoints.config import folder_config
from llama_perf.checkpoints.reader import StoredWeights
from llama_perf.checkpoints.save import Saved, check_tensors, import_tensors, read_saved
from llama_perf.errors import WeightsError
from llama_perf.llama.transformer import is_unquantized


def open_pth(path: Path) -> StoredWeights:
    """Open a `.pth` file; its configuration is looked for in the same folder.

    The file is mapped, so that only what is read comes into memory (one in the format
    of torch before 1.6 cannot be and is read completely). Raises WeightsError.
    """
    config, config_from = folder_config(path.parent)
    saved = read_saved(path.parent)
    tensors = _load(path, saved)
    output = tensors.get("output.weight")
    if output is not None and is_unquantized(output):
        # What the file holds decides: a tied model's may have both names for one
        # storage, and one with an output layer of its own must not lose it.
        embedding = tensors.get("tok_embeddings.weight")
        shared = embedding is not None and output.data_ptr() == embedding.data_ptr()
        config = dataclasses.replace(config, tied_embeddings=shared)
    source = f"pth:{path.absolute().parent.name}"
    return StoredWeights(
        path=path,
        source=source if saved is None else f"{source} ({saved.origin.summary})",
        config=config,
        config_from=config_from,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        read=lambda name: tensors[name].detach(),
        names={},
        block="layers",
        saved=saved,
        own_output=output is not None and not is_unquantized(output),
    )


def _load(path: Path, saved: Saved | None) -> dict[str, Tensor]:
    if saved is not None and saved.scheme is not None:
        import_tensors()
    loaded = _unpickle(path, saved)
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
    return tensors


def _unpickle(path: Path, saved: Saved | None) -> Any:
    problem = (
        "damaged, truncated, or no checkpoint; nothing in it was executed; allowed: a"
        " file that torch.save wrote"
    )
    try:
        mmap = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError) as error:
        problem = f"cannot be read: {error.strerror}"
    except pickle.UnpicklingError as error:
        if (match := re.search(r"GLOBAL (\S+)", str(error))) is not None:
            asked = match[1]
            problem = f"refused: it asks for {asked}, {_why_refused(asked, saved)}"
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        pass
    raise WeightsError(f"{path}: {problem}")


def _why_refused(asked: str, saved: Saved | None) -> str:
    if not asked.startswith(("torchao.", "llama_perf.")):
        return "which can run code; nothing was executed; allowed: a dict of tensors"
    if saved is None or saved.scheme is None:
        return (
            "a quantized tensor; allowed: unquantized tensors, or these with the"
            " config.json that save_model wrote"
        )
    return (
        f"which these versions do not have; it was saved with torchao {saved.torchao}"
        f" and llama-perf {saved.llama_perf}"
    )
