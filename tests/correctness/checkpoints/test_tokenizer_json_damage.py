"""`tokenizer.json` and what lies beside it, damaged or contradicting one another."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from llama_perf.checkpoints.tokenizers.files import load_tokenizer
from llama_perf.errors import TokenizerError
from tests.correctness.support import hugging_face_samples as samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.hugging_face_samples import change_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    return samples.write_folder(tmp_path / "qwen2", "qwen2").parent


def start(id: int, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """A post-processor that puts a token before a text."""
    token = {"<x>": {"id": "<x>", "ids": [id], "tokens": ["<x>"]}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": token if known is None else known,
    }


UNREADABLE = "damaged, or of a version that the package `tokenizers` does not read"
CONFIG, OLDER = "tokenizer_config.json", "special_tokens_map.json"
FILE = "tokenizer.json"
A_TOKEN = "is not allowed; allowed: a token of tokenizer.json"
WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CONFIG, {"eos_token": "<|no|>"}, f"eos_token: '<|no|>' {A_TOKEN}"),
    (CONFIG, {"bos_token": {"content": "<b>"}}, f"bos_token: '<b>' {A_TOKEN}"),
    (OLDER, {"bos_token": "<b>"}, f"bos_token: '<b>' {A_TOKEN}"),
    (
        CONFIG,
        {"eos_token": 2},
        "eos_token: 2 is not allowed; allowed: text or an object",
    ),
    (
        CONFIG,
        {"chat_template": 2},
        "chat_template: 2 is not allowed; allowed: text or a list or an object",
    ),
    (
        CONFIG,
        {"added_tokens_decoder": {"7": samples.token("<new>")}},
        "added_tokens_decoder: '7' is not allowed for '<new>'; allowed: 405, its id in"
        " tokenizer.json or the next that is free",
    ),
    (
        FILE,
        {"added_tokens": [{"id": 7, **samples.token("<s>")}]},
        "added_tokens: 7 is not allowed for '<s>'; allowed: 400, its id in the"
        " vocabulary or the next that is free",
    ),
    (FILE, {"model": None}, "the field 'model' is missing"),
    (
        FILE,
        {"pre_tokenizer": {"type": "Digits", "individual_digits": 2}},
        f"{UNREADABLE}: invalid type: integer `2`, expected a boolean at line 1",
    ),
    (
        FILE,
        {"post_processor": start(7, known={})},
        f"{UNREADABLE}: no entry found for key",
    ),
    (
        FILE,
        {"post_processor": start(999)},
        "post_processor: 999 before a text is not allowed; allowed: 0 to 404",
    ),
    (
        FILE,
        {"version": "2.0"},
        f"{UNREADABLE}: Unknown tokenizer version '2.0' at line 1 column ",
    ),
    (
        "generation_config.json",
        {"eos_token_id": [1, 405]},
        "eos_token_id: 405 is not allowed; allowed: 0 to 404",
    ),
    (
        "generation_config.json",
        {"eos_token_id": "x"},
        "eos_token_id: 'x' is not allowed; allowed: a whole number or a list",
    ),
]


@pytest.mark.parametrize(("name", "fields", "message"), WRONG)
def test_wrong_fields(
    folder: Path, name: str, fields: dict[str, Any], message: str
) -> None:
    if not (folder / name).exists():
        samples.write_json(folder / name, {})
    change_json(folder / name, **fields)
    found = refusal(load_tokenizer, folder / FILE, error=TokenizerError)
    assert found.startswith(f"{folder / name}: {message}")


def test_an_empty_vocabulary(folder: Path) -> None:
    (folder / CONFIG).unlink()
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    change_json(folder / FILE, model=empty, added_tokens=[])
    message = refusal(load_tokenizer, folder / FILE, error=TokenizerError)
    assert message == f"{folder / FILE}: the vocabulary is empty"


def test_a_file_that_encodes_nothing(folder: Path) -> None:
    unknown = {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<no>"}
    change_json(
        folder / FILE, model=unknown, added_tokens=[], pre_tokenizer=None, decoder=None
    )
    (folder / CONFIG).unlink()
    tokenizer = load_tokenizer(folder / FILE)
    assert tokenizer.encode("a") == [0]
    message = refusal(tokenizer.encode, "b", error=TokenizerError)
    reason = "Unk token `<no>` not found in the vocabulary"
    assert message == f"{folder / FILE}: {UNREADABLE}: {reason}"


def test_two_tokens_before_a_text(folder: Path) -> None:
    path = folder / FILE
    backend = Backend.from_file(str(path))
    marks = [("<|im_start|>", 401), ("<|im_end|>", 402)]
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> <|im_end|> $A", special_tokens=marks
    )
    backend.save(str(path))
    assert refusal(load_tokenizer, path, error=TokenizerError) == (
        f"{path}: post_processor: 2 tokens before a text are not allowed; allowed: one"
        " or none"
    )
    # What comes after a text is left out: it is to be continued.
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=marks
    )
    backend.save(str(path))
    plain = load_tokenizer(samples.folder_of("qwen2") / FILE).encode("a")
    assert load_tokenizer(path).encode("a") == [401, *plain]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{", b'{"model": {}}', b'{"a": 1}', b" {]", b"[]"]
)
def test_a_damaged_file(folder: Path, content: bytes) -> None:
    path = folder / FILE
    path.write_bytes(content)
    message = refusal(load_tokenizer, path, error=TokenizerError)
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize("name", [CONFIG, "generation_config.json"])
def test_a_damaged_file_beside_it(folder: Path, name: str) -> None:
    for content, message in {
        "": "the file is empty",
        "[1]": "[1] is not allowed; allowed: a map",
        "{": "Invalid JSON: ",
    }.items():
        (folder / name).write_text(content)
        found = refusal(load_tokenizer, folder / FILE, error=TokenizerError)
        assert found.startswith(f"{folder / name}: {message}")


def test_a_vocabulary_larger_than_the_models(folder: Path) -> None:
    path = folder / FILE
    assert load_tokenizer(path, vocab_size=405).vocab_size == 405
    found = refusal(load_tokenizer, path, vocab_size=404, error=TokenizerError)
    assert found == (
        f"{path}: a tokenizer of 405 tokens is not allowed for a model of 404; allowed:"
        " 0 to 404 tokens"
    )
