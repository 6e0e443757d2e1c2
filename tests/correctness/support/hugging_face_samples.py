"""Folders with a `tokenizer.json`, made by the packages that read and train them."""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from llama_perf.files import process_folder
from tests.correctness.support import tokenizer_samples

LINES = 20 * [
    "the quick brown fox jumps over the lazy dog, 12 times in 345 days",
    "Hello world! What's the capital of France? Don't say <tool> or 'nothing'.",
    "def f(x):\n    if x >= 10:\n        return {'a': [1, 2]}\n\n",
    "naïve café, Ελληνικά, русский, עברית, 漢字かな交じり文, 한국어 텍스트",
]
# Patterns of transformers' classes, which tests compare with ours.
SPLITS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPECIAL = {
    "llama3": [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
        *("<|end_header_id|>", "<|eot_id|>"),
    ],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
NAMED = {
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "smollm": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
}
CLASSES = {"qwen2": "Qwen2Tokenizer"}
BYTE_LEVEL = tuple(SPECIAL)
KINDS = (*BYTE_LEVEL, "llama2", "llama2-older")


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def change_json(path: Path, **fields: Any) -> Path:
    """Set fields of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | fields
    kept = {name: one for name, one in value.items() if one is not None}
    return write_json(path, kept)


def token(content: str, **flags: bool) -> dict[str, object]:
    names = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {"content": content, **dict.fromkeys(names, False), **flags}


def write_folder(folder: Path, kind: str) -> Path:
    """A folder of this kind of tokenizer; returns its `tokenizer.json`."""
    folder.mkdir(exist_ok=True)
    if kind in BYTE_LEVEL:
        _byte_level(kind).save(str(folder / "tokenizer.json"))
        tokenizer_class = CLASSES.get(kind, "PreTrainedTokenizerFast")
        config = {"tokenizer_class": tokenizer_class, **NAMED[kind]}
        write_json(folder / "tokenizer_config.json", config)
        return folder / "tokenizer.json"
    _metaspace(folder)
    if kind == "llama2-older":
        _make_older(folder)
    return folder / "tokenizer.json"


def _byte_level(kind: str) -> Tokenizer:
    tokenizer = Tokenizer(BPE(ignore_merges=kind == "llama3"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    if kind in SPLITS:
        first = pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, level])
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL[kind]])
    if kind == "qwen2":
        # Found in every text, as Qwen has them.
        thought = [AddedToken(t, normalized=False) for t in ("<think>", "</think>")]
        tokenizer.add_tokens(thought)
    offsets = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = offsets
    if kind == "llama3":
        begin = SPECIAL[kind][0]
        start = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
        tokenizer.post_processor = processors.Sequence([offsets, start])
    return tokenizer


def _metaspace(folder: Path) -> None:
    """A sentencepiece model, and beside it transformers' files of its pieces."""
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    path = tokenizer_samples.train_sentencepiece(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = {model.id_to_piece(id): id for id in range(model.get_piece_size())}
    scores = {piece: model.get_score(id) for piece, id in vocab.items()}
    merges = generate_merges(vocab, scores)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    tokenizer.save_pretrained(folder)


def _make_older(folder: Path) -> None:
    """Write Llama 2's pieces as its own files do: spaces are normalized."""
    path = folder / "tokenizer.json"
    before = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.normalizer = normalizers.Sequence(before)
    tokenizer.save(str(path))
    change_json(path, pre_tokenizer=None)
    change_json(
        folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"
    )


@cache
def folder_of(kind: str) -> Path:
    """A folder of this kind that no test changes."""
    made = Path(mkdtemp(dir=process_folder()))
    write_folder(made, kind)
    return made


def reference_of(folder: Path) -> Any:
    """transformers' tokenizer of a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@cache
def reference(kind: str) -> Any:
    return reference_of(folder_of(kind))
