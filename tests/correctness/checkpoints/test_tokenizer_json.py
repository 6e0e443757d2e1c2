"""`tokenizer.json` and what lies beside it, compared with transformers' reading."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from llama_perf.checkpoints.tokenizers.files import find_tokenizer, load_tokenizer
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError
from tests.correctness.checkpoints.test_tokenizer import FRAGMENTS, TEXTS, repeatable
from tests.correctness.support import hugging_face_samples as samples
from tests.correctness.support import tokenizer_samples
from tests.correctness.support.errors import refusal
from tests.correctness.support.hugging_face_samples import KINDS, change_json

every_kind = pytest.mark.parametrize("kind", KINDS)


def read(kind: str) -> Tokenizer:
    return load_tokenizer(samples.folder_of(kind) / "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    return samples.write_folder(tmp_path / "qwen2", "qwen2").parent


def assert_same(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    """Ours and transformers' ids of a text, and texts of the ids, are the same."""
    typed = theirs.encode(text, split_special_tokens=True, add_special_tokens=False)
    parsed = theirs.encode(text, add_special_tokens=False)
    assert tokenizer.encode_part(text, found="added") == typed
    assert tokenizer.encode_part(text, found="special") == parsed
    assert tokenizer.encode(text) == theirs.encode(text, split_special_tokens=True)
    for ids in (typed, parsed):
        shown = theirs.decode(ids, skip_special_tokens=True)
        assert tokenizer.decode(ids) == shown
        assert "".join(tokenizer.decode_stream(ids)) == shown


@every_kind
def test_texts_have_transformers_ids(kind: str) -> None:
    tokenizer, theirs = read(kind), samples.reference(kind)
    added = [*tokenizer.special, *tokenizer.added]
    for text in [*TEXTS, *added, "e\u0301 is é", f"a{' b'.join(added)}\n"]:
        assert_same(tokenizer, theirs, text)
    assert tokenizer.vocab_size == len(theirs)
    start = theirs.encode("")
    assert ([] if tokenizer.bos_id is None else [tokenizer.bos_id]) == start
    assert tokenizer.special.keys() >= set(theirs.all_special_tokens)
    assert theirs.eos_token_id in tokenizer.eos_ids


@every_kind
def test_any_mixture_has_transformers_ids(kind: str) -> None:
    tokenizer, theirs = read(kind), samples.reference(kind)
    pieces = [*FRAGMENTS, *tokenizer.special, *tokenizer.added, "<0x0A>", "▁"]

    @repeatable
    @given(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=12))
    def same(parts: list[str]) -> None:
        assert_same(tokenizer, theirs, "".join(parts))

    same()


@every_kind
def test_what_a_text_holds_is_never_special(kind: str) -> None:
    tokenizer = read(kind)
    unknown = {tokenizer.special.get("<unk>")}
    for mark, id in tokenizer.special.items():
        if id not in unknown:
            assert id not in tokenizer.encode_part(f"a{mark}b {mark}", found="added")
            assert id in tokenizer.encode_part(f"a{mark}b", found="special")


def test_tokens_of_the_author_are_found_in_every_text() -> None:
    tokenizer = read("qwen2")
    assert tokenizer.added == {"<think>": 403, "</think>": 404}
    assert 403 in tokenizer.encode("a<think>b")


@pytest.mark.parametrize("kind", ["llama2", "llama2-older"])
def test_the_sentencepiece_model_beside_it_agrees(kind: str) -> None:
    pieces = load_tokenizer(samples.folder_of(kind) / "tokenizer.model")
    ours = read(kind)
    for text in TEXTS:
        # Newer files put a space before a text only where it has none; none is empty.
        if text and (kind == "llama2-older" or not text.startswith(" ")):
            assert ours.encode(text) == pieces.encode(text)
            assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_ids) == (pieces.bos_id, pieces.eos_ids)
    # Meta's code encodes what follows a special token as a text of its own.
    if kind == "llama2-older":
        chat = "<s>[INST] Hello [/INST] the fox </s><s>[INST] again"
        found = ours.encode_part(chat, found="special")
        assert found == pieces.encode_part(chat, found="special")


def test_broken_text_of_a_terminal() -> None:
    tokenizer = read("qwen2")
    assert tokenizer.decode(tokenizer.encode("broken \udcff")) == "broken ?"


def test_a_stream_waits_for_the_whole_character() -> None:
    for kind in KINDS:
        tokenizer = read(kind)
        ids = tokenizer.encode("a\N{GRINNING FACE}b", bos=False)
        parts = list(tokenizer.decode_stream(ids))
        assert len(ids) > 3
        assert "\N{GRINNING FACE}" in parts
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)
        # What never becomes one is shown at the end.
        last = list(tokenizer.decode_stream(ids[:-2]))[-1]
        assert last.startswith("\N{REPLACEMENT CHARACTER}")


def test_which_file_of_a_folder_is_read(tmp_path: Path) -> None:
    model = tokenizer_samples.train_sentencepiece(tmp_path)
    (tmp_path / "original").mkdir()
    tokenizer_samples.write_tiktoken(tmp_path / "original" / "tokenizer.model")
    assert find_tokenizer(tmp_path) == model
    path = samples.write_folder(tmp_path, "llama3")
    for checkpoint in (tmp_path, tmp_path / "model.pth"):
        assert find_tokenizer(checkpoint) == path


def test_a_gguf_of_qwen2_has_the_same_ids(tmp_path: Path) -> None:
    path = samples.folder_of("qwen2") / "tokenizer.json"
    fields = json.loads(path.read_text("utf-8"))
    model, added = fields["model"], fields["added_tokens"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get)]
    tokens += [token["content"] for token in added]
    kinds = [TokenType.NORMAL] * len(model["vocab"])
    kinds += [TokenType.CONTROL] * 3 + [TokenType.USER_DEFINED] * 2
    ours = load_tokenizer(
        tokenizer_samples.write_gguf(
            tmp_path / "a.gguf",
            pre="qwen2",
            tokens=tokens,
            token_type=kinds,
            merges=[" ".join(merge) for merge in model["merges"]],
        )
    )
    theirs = samples.reference("qwen2")
    for text in [*TEXTS, "e\u0301 <|im_end|> <think>12"]:
        assert_same(ours, theirs, text)
    assert (ours.special, ours.added) == (read("qwen2").special, read("qwen2").added)


def test_settings_of_a_training_do_not_cut_a_text(folder: Path) -> None:
    path = folder / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(path))
    assert load_tokenizer(path).encode(TEXTS[-2]) == read("qwen2").encode(TEXTS[-2])


def test_a_byte_without_a_token_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    text = path.read_text("utf-8").replace('"ñ":', '"ññ":')
    path.write_text(text, "utf-8")
    assert refusal(load_tokenizer(path).encode, "a \U00050000", error=PromptError) == (
        "prompt: '\\U00050000' is not allowed; the vocabulary has no token for its"
        " byte 0xf1"
    )


def ends(folder: Path) -> set[int]:
    return set(load_tokenizer(folder / "tokenizer.json").eos_ids)


def test_what_ends_a_text(folder: Path) -> None:
    # <|endoftext|> and <|im_end|> by their names.
    assert ends(folder) == {400, 402}
    old = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
    change_json(folder / "tokenizer_config.json", eos_token=old)
    assert ends(folder) == {400, 402}
    for value, more in ((7, {7}), ([8, 9], {8, 9}), (None, set()), ([], set())):
        samples.write_json(folder / "generation_config.json", {"eos_token_id": value})
        assert ends(folder) == {400, 402} | more
    change_json(folder / "tokenizer_config.json", eos_token={"content": "<think>"})
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    assert 403 in tokenizer.eos_ids
    # It has become a special token.
    assert tokenizer.special["<think>"] == 403
    assert 403 not in tokenizer.encode("<think>")


def test_a_model_without_an_end_of_text(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(re.sub(r"<\|(im_end|endoftext)\|>", r"<|\1.|>", path.read_text()))
    (folder / "tokenizer_config.json").unlink()
    assert ends(folder) == set()


def test_older_folders_name_special_tokens_apart(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token=None)
    names = {"bos_token": "<think>", "eos_token": {"content": "</think>"}}
    samples.write_json(folder / "special_tokens_map.json", names)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    theirs = samples.reference_of(folder)
    assert theirs.eos_token_id == 404
    assert 404 in tokenizer.eos_ids
    assert_same(tokenizer, theirs, "a b 12")


def test_added_tokens_of_the_config(folder: Path) -> None:
    added = {
        "403": samples.token("<think>", special=True),
        "405": samples.token("<new>", lstrip=True),
    }
    added["406"] = {"content": "<É>", "special": True}
    added["407"] = {"content": "É! x"}
    # transformers' class for Qwen2 would number them anew.
    own = {"tokenizer_class": "PreTrainedTokenizerFast"}
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=added, **own)
    tokenizer, theirs = (
        load_tokenizer(folder / "tokenizer.json"),
        samples.reference_of(folder),
    )
    assert tokenizer.vocab_size == len(theirs) == 408
    # Only what is not special is normalized, and found so.
    decomposed = "a<E\u0301> b E\u0301! x"
    for text in ("a <new> b", "a<think>b </think>", "a<É> b É! x", decomposed):
        assert_same(tokenizer, theirs, text)
