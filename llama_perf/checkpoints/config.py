"""The configuration beside a checkpoint: `config.json`, `params.json`, a preset.

Knows which file is read first and turns whatever is wrong in it into one line; what
its fields mean is `llama_perf.llama.config`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama_perf.errors import WeightsError
from llama_perf.llama.config import (
    PRESETS,
    ModelConfig,
    from_hugging_face,
    from_meta,
    preset_name,
)

# Fields of a config.json that change the computation, and the values that do not.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu",),
    "quantization_config": (None,),
}


def folder_config(folder: Path) -> tuple[ModelConfig, str]:
    """The configuration of a `model.pth` in `folder`, and where it was found.

    From `config.json` (Hugging Face), else `params.json` (Meta), else the preset that
    the folder's name means. Raises WeightsError.
    """
    for name, read in (("config.json", hugging_face_config), ("params.json", _meta)):
        if (folder / name).is_file():
            return read(folder / name), name
    name = folder.absolute().name
    if (known := preset_name(name)) is not None:
        return PRESETS[known], f"the preset {known}, from the folder's name,"
    raise WeightsError(
        f"{folder}: the configuration is missing; allowed: config.json, params.json,"
        f" or a folder named after one of the presets {', '.join(PRESETS)}"
    )


def hugging_face_config(path: Path) -> ModelConfig:
    """Read a Hugging Face `config.json`; raises WeightsError."""
    fields = read_json(path)
    for name, allowed in _ALLOWED.items():
        if name in fields and fields[name] not in allowed:
            raise WeightsError(
                f"{path}: {name} {_short(fields[name])} is not allowed;"
                f" allowed: {json.dumps(allowed[0])}"
            )
    return from_hugging_face(fields, source=str(path))


def _meta(path: Path) -> ModelConfig:
    return from_meta(read_json(path), source=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises WeightsError."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{path}: it is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise WeightsError(f"{path}: {_short(fields)} is not allowed; allowed: a map")
    return fields


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
