"""Chat prompts as token ids, in the template a model was trained with.

Knows ChatML, Llama 3's headers and Llama 2's `[INST]`. Special tokens go in as ids,
what people write as plain text. Knows no tensors and no Jinja.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError, SpecError, TokenizerError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation; raises SpecError for an unknown role."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise SpecError("role", self.role, f"allowed: {', '.join(ROLES)}")


def is_chat_model(name: str) -> bool:
    """Whether a model's name has the word "chat" or "instruct".

    `name` may be the path of a checkpoint, where a file's folder counts too:
    `Llama-2-7b-chat-hf/model.pth` is a chat model.
    """
    path = PurePath(name)
    named = path.parts[-2:] if path.suffix in {".pth", ".gguf"} else path.parts[-1:]
    word = r"(?<![a-z])(chat|instruct)(?![a-z])"
    return any(re.search(word, part.lower()) for part in named)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids of a conversation, up to where the assistant's answer begins.

    An optional system message comes first, then user and assistant take turns; the
    last is the user's. The special tokens that the tokenizer has choose the template.
    Raises PromptError for another order, TokenizerError if no template fits.
    """
    _check_turns(messages)
    for template in _TEMPLATES:
        ids = [tokenizer.special_id(mark) for mark in template.marks]
        if None not in ids:
            return template.encode(tokenizer, messages)
    known = "; ".join(
        f"{template.name}: {' '.join(template.marks)}" for template in _TEMPLATES
    )
    raise TokenizerError(
        f"chat: the tokenizer has no template's special tokens; allowed: {known}"
    )


def _check_turns(messages: Sequence[Message]) -> None:
    first = 1 if messages and messages[0].role == "system" else 0
    for index, message in enumerate(messages[first:], start=first):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if message.role != expected:
            raise PromptError(
                f"messages[{index}].role: {message.role!r} is not allowed; allowed:"
                f" {expected!r}"
            )
    if (len(messages) - first) % 2 == 0:
        raise PromptError("messages: the last one must be the user's")


def _chatml(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """ChatML, as SmolLM2's template writes it (OpenAI's format)."""
    start, end = _special(tokenizer, "<|im_start|>"), _special(tokenizer, "<|im_end|>")
    if messages[0].role != "system" and (system := _default_system(tokenizer)):
        messages = [Message(role="system", content=system), *messages]
    newline = _plain(tokenizer, "\n")
    ids: list[int] = []
    for message in messages:
        text = _plain(tokenizer, f"{message.role}\n{message.content}")
        ids += [start, *text, end, *newline]
    return [*ids, start, *_plain(tokenizer, "assistant\n")]


# The text that a template writes where a conversation has no system message.
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\n|\\n)([^'\"{}]+)<\|im_end\|>")


def _default_system(tokenizer: Tokenizer) -> str | None:
    match = _DEFAULT_SYSTEM.search(tokenizer.chat_template or "")
    return match[1] if match else None


def _llama3(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Llama 3's headers, as Meta's ChatFormat writes them; no default system."""

    def header(role: str) -> list[int]:
        start = _special(tokenizer, "<|start_header_id|>")
        end = _special(tokenizer, "<|end_header_id|>")
        return [start, *_plain(tokenizer, role), end, *_plain(tokenizer, "\n\n")]

    ids = [_special(tokenizer, "<|begin_of_text|>")]
    for message in messages:
        ids += header(message.role)
        ids += _plain(tokenizer, message.content.strip())
        ids.append(_special(tokenizer, "<|eot_id|>"))
    return ids + header("assistant")


def _llama2(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Llama 2's `[INST]`, as Meta's code writes it; each answer ends a text.

    `[INST]` and `<<SYS>>` are plain text to Llama 2, also where a user types them.
    """
    bos, eos = _special(tokenizer, "<s>"), _special(tokenizer, "</s>")
    turns = [message.content for message in messages]
    if messages[0].role == "system":
        system, user, *rest = turns
        turns = [f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}", *rest]
    ids: list[int] = []
    for user, answer in zip(turns[0:-1:2], turns[1::2], strict=True):
        text = f"[INST] {user.strip()} [/INST] {answer.strip()} "
        ids += [bos, *_plain(tokenizer, text), eos]
    return [*ids, bos, *_plain(tokenizer, f"[INST] {turns[-1].strip()} [/INST]")]


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, bos=False)


def _special(tokenizer: Tokenizer, mark: str) -> int:
    id = tokenizer.special_id(mark)
    assert id is not None, f"a template was chosen without its {mark}"
    return id


@dataclass(frozen=True, kw_only=True, slots=True)
class _Template:
    name: str
    marks: tuple[str, ...]
    encode: Callable[[Tokenizer, Sequence[Message]], list[int]]


# `<s>` comes last: tokenizers of other templates may have it too.
_TEMPLATES = (
    _Template(name="ChatML", marks=("<|im_start|>", "<|im_end|>"), encode=_chatml),
    _Template(
        name="Llama 3",
        marks=(
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        encode=_llama3,
    ),
    _Template(name="Llama 2", marks=("<s>", "</s>"), encode=_llama2),
)
