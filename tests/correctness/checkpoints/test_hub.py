"""Names of models on the hub: found in its local cache, and never asked for."""

import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from llama_perf import load_model, save_model
from llama_perf.checkpoints import hub
from llama_perf.checkpoints.find import check_model, find_checkpoint, open_weights
from llama_perf.checkpoints.hub import HubName, hub_name
from llama_perf.checkpoints.load import open_model
from llama_perf.checkpoints.tokenizers.files import find_tokenizer
from llama_perf.errors import SpecError, TokenizerError, WeightsError
from llama_perf.llama.presets import PRESETS
from llama_perf.measure.prepare import predict_row, prepare_row
from llama_perf.rows.selection import select
from llama_perf.rows.spec import RowSpec
from tests.correctness.checkpoints import test_gguf
from tests.correctness.checkpoints.test_safetensors import make_model
from tests.correctness.support import weights_files
from tests.correctness.support import weights_samples as samples
from tests.correctness.support.errors import refusal

NAME, COMMIT, OTHER = "some-org/Tiny-2.1", "0123456789abcdef" * 2 + "01234567", "f" * 40
SHORT = f"{NAME}@{COMMIT[:12]}"
OPEN: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; whoever connects to anything fails."""

    def connect(*_: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def download(
    cache: Path, *, name: str = NAME, commit: str = COMMIT, ref: str = "main"
) -> Path:
    """The tiny model in shards as the hub's library keeps it: links to blobs."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    if ref:
        (folder / "refs" / ref).write_text(commit, encoding="utf-8")
    make_model().save_pretrained(folder / "made", max_shard_size="12KB")
    for path in (folder / "made").iterdir():
        path.rename(folder / "blobs" / f"{commit[:4]}-{path.name}")
        blob = f"../../blobs/{commit[:4]}-{path.name}"
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_name_with_and_without_a_revision(cache: Path) -> None:
    snapshot = download(cache)
    other = download(cache, commit=OTHER, ref="v2")
    for model, wanted in {
        NAME: snapshot,
        f"{NAME}@main": snapshot,
        f"{NAME}@{COMMIT}": snapshot,
        f"{NAME}@v2": other,
        f"{NAME}@{OTHER}": other,
        "some-org/Tiny": None,
        "Tiny-2.1": None,
        "some-org/Tiny-2.1/model.pth": None,
    }.items():
        assert find_checkpoint(model) == wanted
    reader, path = open_model(NAME, checkpoints=None, **OPEN)
    assert path == snapshot
    assert reader.source == f"safetensors:{SHORT}"
    wanted_weights = samples.all_weights(open_weights(snapshot))
    samples.assert_same(reader, wanted_weights)
    loaded = load_model(NAME)
    assert loaded.origin is not None
    assert loaded.origin.weights == f"safetensors:{SHORT}"
    save = partial(refusal, save_model, loaded, "saved", error=TokenizerError)
    assert save(tokenizer=NAME) == f"{snapshot}: no tokenizer in this checkpoint"


def test_a_path_and_checkpoints_come_before_the_cache(
    cache: Path, tmp_path: Path
) -> None:
    snapshot, checkpoints = download(cache), tmp_path / "mine"
    checkpoints.mkdir()
    find = partial(find_checkpoint, NAME, checkpoints=checkpoints)
    assert find() == snapshot
    (checkpoints / NAME).mkdir(parents=True)
    assert find() == checkpoints / NAME
    Path(NAME).mkdir(parents=True)
    assert find() == Path(NAME)


def test_a_gguf_in_the_cache_and_the_tokenizer_beside_it(cache: Path) -> None:
    snapshot = cache / "models--o--tiny-GGUF" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    refs = cache / "models--o--tiny-GGUF" / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT, encoding="utf-8")
    path = test_gguf.write(snapshot)
    (snapshot / "tokenizer.model").touch()
    reader, found = open_model("o/tiny-GGUF", checkpoints=None, **OPEN)
    assert reader.source == f"gguf:o/tiny-GGUF@{COMMIT[:12]}/{path.name}"
    assert found == snapshot
    assert find_tokenizer(snapshot) == snapshot / "tokenizer.model"


def test_metas_files_in_a_snapshot(cache: Path) -> None:
    folder = cache / "models--o--m" / "snapshots" / COMMIT / "original"
    folder.mkdir(parents=True)
    message = refusal(open_weights, folder, error=WeightsError)
    assert message.endswith(f"; `hf download o/m --revision {COMMIT}` downloads it")
    weights_files.consolidated(folder)
    assert open_weights(folder).source == f"pth:o/m@{COMMIT[:12]}/original"


def test_an_incomplete_snapshot_names_the_command(cache: Path) -> None:
    snapshot = download(cache)
    command = f"; `hf download {NAME} --revision {COMMIT}` downloads it"
    open_it = partial(refusal, open_model, NAME, checkpoints=None, **OPEN)
    shards = sorted(path.name for path in snapshot.glob("model-*"))
    shard = shards[1]
    absent = "cannot be read: No such file or directory"
    # The blob is gone, then its link is.
    (snapshot / shard).resolve().unlink()
    assert open_it(error=WeightsError) == f"{snapshot}/{shard}: {absent}{command}"
    (snapshot / shard).unlink()
    assert open_it(error=WeightsError) == (
        f"{snapshot}: the shard {shard} is missing; model.safetensors.index.json names"
        f" {len(shards)}{command}"
    )
    (snapshot / "config.json").unlink()
    assert open_it(error=WeightsError) == (f"{snapshot}/config.json: {absent}{command}")
    for path in snapshot.glob("model*"):
        path.unlink()
    message = open_it(error=WeightsError)
    assert message.startswith(f"{snapshot}: no weights in this folder; allowed: ")
    assert message.endswith(command)


def test_a_revision_that_is_not_in_the_cache(cache: Path) -> None:
    download(cache, ref="")
    folder = cache / "models--some-org--Tiny-2.1"
    for model, revision, option in (
        (NAME, "main", ""),
        (f"{NAME}@v3", "v3", " --revision v3"),
        (f"{NAME}@{OTHER}", OTHER, f" --revision {OTHER}"),
    ):
        assert refusal(find_checkpoint, model, error=WeightsError) == (
            f"checkpoint: '{model}': {folder} has no revision {revision}; it has"
            f" {COMMIT}; `hf download {NAME}{option}` downloads it"
        )
    (folder / "refs" / "main").write_bytes(b"\xff\xfe")
    message = refusal(find_checkpoint, NAME, error=WeightsError)
    assert message.startswith(f"{folder}: cannot be read: ")


LLAMA, NO_PATH = "meta-llama/Llama-3.2-1B", "no such file or folder"
ABSENT = f"{LLAMA} is not in the hub cache {{}}; `hf download {LLAMA}{{}}` downloads it"


def test_a_presets_name_that_is_not_in_the_cache(cache: Path) -> None:
    note = "synthetic weights: " + ABSENT.format(cache, "")
    assert check_model(LLAMA) == (note,)
    reader, path = open_model(LLAMA, checkpoints=None, **OPEN)
    assert (reader.source, reader.notes, path) == ("synthetic", (note,), None)
    # A revision is of definite weights, and a folder that is here is no owner.
    message = refusal(check_model, f"{LLAMA}@v1", error=WeightsError)
    absent = ABSENT.format(cache, " --revision v1")
    assert message == f"checkpoint: '{LLAMA}@v1': {NO_PATH}, and {absent}"
    Path("meta-llama").mkdir()
    message = refusal(check_model, LLAMA, error=WeightsError)
    assert message == f"checkpoint: '{LLAMA}': {NO_PATH}"
    open_unknown = partial(open_model, "some-org/unknown", checkpoints=None, **OPEN)
    assert refusal(open_unknown, error=WeightsError) == (
        f"checkpoint: 'some-org/unknown': {NO_PATH}, and some-org/unknown is not in the"
        f" hub cache {cache}; `hf download some-org/unknown` downloads it"
    )


def test_without_the_hubs_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(cache)
    monkeypatch.setattr(hub, "find_spec", lambda _: None)
    assert find_checkpoint(NAME) is None
    absent = "{} is not looked for: pip install huggingface_hub"
    message = refusal(check_model, NAME, error=WeightsError)
    assert message == f"checkpoint: '{NAME}': {NO_PATH}, and {absent.format(NAME)}"
    assert check_model(LLAMA) == ("synthetic weights: " + absent.format(LLAMA),)


def test_no_name_on_the_hub(cache: Path) -> None:
    assert hub_name("a/b@refs/pr/1") == HubName("a/b", "refs/pr/1")
    for model in (
        *("7B", "a/b/c", "/a/b", "./b", "a/..", "a/b@../c", "a/b@", "a--b/c", "a/b c"),
        *("a/model.pth", "a/b.gguf", "a/b.safetensors", "~/b", "a/", "\N{OHM SIGN}/b"),
    ):
        assert hub_name(model) is None, model
        assert find_checkpoint(model) is None
    assert not cache.exists()


def test_a_row_of_such_a_name(cache: Path) -> None:
    download(cache)
    sizes: Any = {"prompt_length": 2, "max_new_tokens": 2, "dtype": "float32"}
    row = RowSpec(model=f"{NAME}@main", device="cpu", **sizes)
    assert row.id == "some-org/tiny-2.1@main.none.fp32.cpu.eager.prompt-2.new-2"
    assert select([row], [row.id]) == select([row], ["*tiny-2.1*"]) == [row]
    assert prepare_row(row).weights == f"safetensors:{SHORT}"
    tiny = predict_row(row).model_size_bytes
    # Its shape is that of the checkpoint, not that of the preset in its name.
    download(cache, name="o/Llama-3.2-1B")
    named = RowSpec(model="o/Llama-3.2-1B", device="cpu", **sizes)
    assert predict_row(named).model_size_bytes == tiny


def test_a_row_of_made_up_weights_says_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "tiny-2L", samples.TINY)
    told: list[str] = []
    row = RowSpec(model="o/tiny-2L", dtype="float32", device="cpu")
    prepared = prepare_row(row, notify=told.append)
    assert prepared.weights == "synthetic"
    (note,) = prepared.weights_notes
    assert note in told
    absent = f"o/tiny-2L is not in the hub cache {cache}; "
    assert note.startswith(f"synthetic weights: {absent}")
    with pytest.warns(UserWarning, match=f"^{re.escape(note)}$"):
        load_model("o/tiny-2L")


def test_the_cache_is_where_the_environment_says(tmp_path: Path) -> None:
    """The hub's library reads these variables once, when it is imported."""
    code = "from llama_perf.checkpoints import hub; print(hub.cache_folder())"
    for variables, wanted in (
        ({"HF_HOME": str(tmp_path)}, tmp_path / "hub"),
        ({"HF_HUB_CACHE": str(tmp_path), "HF_HOME": "/none"}, tmp_path),
        ({"HOME": str(tmp_path)}, tmp_path / ".cache" / "huggingface" / "hub"),
    ):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "XDG_", "HUGGINGFACE"))
        }
        command = [sys.executable, "-c", code]
        said = subprocess.check_output(command, env=kept | variables, text=True)
        assert said.strip() == str(wanted)


def test_an_unknown_name_says_where_it_was_looked_for() -> None:
    message = refusal(check_model, "Lama-3.2-1B", error=SpecError)
    assert "a name under --checkpoints" in message
    assert "owner/name of a model in the hub cache" in message
