"""The text that a row and its unquantized twin read: where it is from, and its ids."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import NotRunnable, PromptError, SpecError, UserError
from llama_perf.files import read_prose
from llama_perf.words import counted

TOKENS = 256
"""Tokens of a text that are read where a user does not say."""
LEAST_TOKENS = 32
"""Fewer than these say little."""
# Characters of a file that are turned into tokens: more than are ever read.
_LONGEST = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text as int64 ids (T,) on the CPU, and its name.

    `asked` is how many of its tokens a user wants read; None: as many as fit, up to
    TOKENS.
    """

    name: str
    ids: Tensor
    asked: int | None = None

    def first(self, count: int) -> "Text":
        """Its first tokens."""
        return Text(name=self.name, ids=self.ids[:count], asked=self.asked)

    @property
    def summary(self) -> str:
        """Its name and a hash of its ids: two that differ are two texts."""
        numbers = self.ids.numpy().astype("<i8").tobytes()
        return f"{self.name} {hashlib.sha256(numbers).hexdigest()[:8]}"


def text_of(
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    file: Path | None = None,
    tokens: int | None = None,
) -> Text:
    """The text of `file`, or the built-in one, as a model with `tokenizer` reads it.

    Without a tokenizer ids are drawn, always the same. Raises NotRunnable where a file
    needs one, UserError for a text that is too short or cannot be read.
    """
    if tokenizer is None:
        if file is not None:
            raise NotRunnable(
                f"text: {file} cannot be read: this model has no tokenizer; without"
                " --text the ids are drawn"
            )
        seeded = torch.Generator().manual_seed(0)
        drawn = torch.randint(vocab_size, (tokens or TOKENS,), generator=seeded)
        return Text(name="drawn", ids=drawn, asked=tokens)
    if file is None:
        text = files(__package__).joinpath("text.txt").read_text(encoding="utf-8")
    else:
        text = read_prose(file, error=UserError)
    name = "built-in" if file is None else file.name
    try:
        ids = tokenizer.encode(text[:_LONGEST])
    except PromptError as error:
        raise UserError(f"text: {name}: {error}") from None
    where = f"{name} has {counted(len(ids), 'token')} in this model's vocabulary"
    if tokens is not None and len(ids) < tokens:
        raise SpecError("tokens", tokens, where)
    if len(ids) < LEAST_TOKENS:
        raise UserError(f"text: {where}; at least {LEAST_TOKENS} are needed")
    return Text(name=name, ids=torch.tensor(ids[: tokens or TOKENS]), asked=tokens)
