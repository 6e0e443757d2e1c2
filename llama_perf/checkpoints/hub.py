"""Names of models on the Hugging Face hub -> their snapshots in the local hub cache.

Only looks into the cache, which `HF_HOME` and `HF_HUB_CACHE` place: it sends no
request, and downloads nothing. Knows no format of weights.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from llama_perf.errors import WeightsError
from llama_perf.words import shown

# The hub's own rules for names, which are checked again by its library.
_NAME = re.compile(
    r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]*))?", re.ASCII
)
_FILES = (".pth", ".gguf", ".safetensors")
# Owner, name, commit, and the place in the snapshot.
_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([^/]+)(.*)")
_SHORT = 12
_LIBRARY = "huggingface_hub"


class HubName(NamedTuple):
    """A model's name on the hub, `owner/name`, and the revision that was asked for."""

    repo: str
    revision: str | None = None

    @property
    def download(self) -> str:
        """The command that downloads it."""
        revision = "" if self.revision is None else f" --revision {self.revision}"
        return f"hf download {self.repo}{revision}"


def hub_name(model: str) -> HubName | None:
    """`model` as `owner/name` or `owner/name@revision`; None where it is neither.

    The name of a file of weights is a path.
    """
    found = _NAME.fullmatch(model)
    if found is None or ".." in model or "--" in found["repo"]:
        return None
    if model.endswith(_FILES):
        return None
    return HubName(found["repo"], found["revision"])


def find_snapshot(model: str) -> Path | None:
    """The folder of a model's snapshot in the hub cache; None where it is no hub name.

    None as well where the cache has nothing of the model, or where the hub's library,
    which comes with `tokenizers`, is not installed. Raises WeightsError where it
    has only other revisions than the one that is asked for, or cannot be read.
    """
    if (name := hub_name(model)) is None or find_spec(_LIBRARY) is None:
        return None
    # They take a third of a second, and only such names need them.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = _repo_folder(name)
    try:
        if not os.path.isdir(folder):
            return None
        # No patterns: which of its files are needed is for their reader to say.
        found = snapshot_download(
            name.repo, revision=name.revision, allow_patterns=[], local_files_only=True
        )
        return Path(found)
    except HFValidationError:
        return None
    except LocalEntryNotFoundError:
        raise WeightsError(
            f"checkpoint: {shown(model)}: {folder} has no revision"
            f" {name.revision or 'main'}; it has {_revisions(folder)};"
            f" `{name.download}` downloads it"
        ) from None
    except (OSError, ValueError) as problem:
        raise WeightsError(f"{folder}: cannot be read: {problem}") from None


def why_absent(name: HubName) -> str:
    """Why a model was not found, and how it is downloaded."""
    if find_spec(_LIBRARY) is None:
        return f"{name.repo} is not looked for: pip install {_LIBRARY}"
    return (
        f"{name.repo} is not in the hub cache {cache_folder()}; `{name.download}`"
        " downloads it"
    )


def cache_folder() -> Path:
    """The folder of the hub cache, as the hub's library finds it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _repo_folder(name: HubName) -> Path:
    return cache_folder() / f"models--{name.repo.replace('/', '--')}"


def _revisions(folder: Path) -> str:
    """The revisions that a model's folder in the cache has, in words."""
    refs = (path for path in folder.glob("refs/**/*") if path.is_file())
    names = sorted(str(path.relative_to(folder / "refs")) for path in refs)
    names += sorted(path.name for path in folder.glob("snapshots/*"))
    return ", ".join(names) or "none"


def snapshot_of(path: Path) -> HubName | None:
    """The model and the commit of the snapshot that a path lies in, or None."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return None if found is None else HubName(f"{found[1]}/{found[2]}", found[3])


def folder_name(folder: Path) -> str:
    """A folder's name in a result: `owner/name@commit` for a snapshot, else its own.

    A folder in a snapshot has its place behind it.
    """
    found = _SNAPSHOT.search(folder.absolute().as_posix())
    if found is None:
        return folder.absolute().name
    owner, name, commit, place = found.groups()
    return f"{owner}/{name}@{commit[:_SHORT]}{place}"
