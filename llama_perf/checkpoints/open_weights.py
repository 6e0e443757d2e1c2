"""A path -> the reader of what lies there.

Knows the formats by the names of files only; what is inside them is each reader's.
"""

from __future__ import annotations

from pathlib import Path

from llama_perf.checkpoints.gguf import open_gguf
from llama_perf.checkpoints.pth import open_pth
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.safetensors import INDEX, SINGLE, open_hugging_face
from llama_perf.errors import WeightsError

ALLOWED = (
    "allowed: a .pth file, a .gguf file, or a folder with model.pth,"
    " consolidated.00.pth, config.json and safetensors, or one .gguf"
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
