"""Chat prompts as token ids, in the template a model was trained with.

Knows ChatML, Llama 3's headers and Llama 2's `[INST]`. Special tokens go in as ids,
what people write as plain text. Knows no tensors and no Jinja.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError, TokenizerError


class Message(NamedTuple):
    """One turn of a conversation; the role is system, user or assistant."""

    role: str
    content: str


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
    Raises PromptError for another order or role, TokenizerError if no template fits.
    """
    first = 1 if messages and messages[0].role == "system" else 0
    for index, message in enumerate(messages[first:], start=first):
        expected = ("user", "assistant")[(index - first) % 2]
        if message.role != expected:
            raise PromptError(
                f"messages[{index}].role: {message.role!r} is not allowed; allowed:"
                f" {expected!r}"
            )
    if (len(messages) - first) % 2 == 0:
        raise PromptError("messages: the last one must be the user's")
    default = _DEFAULT_SYSTEM.search(tokenizer.chat_template or "")
    if not first and default:
        messages = [Message("system", default[1]), *messages]
    for marks, template in _TEMPLATES.values():
        if tokenizer.special.keys() >= set(marks):
            ids: list[int] = []
            for part in template(messages, *(tokenizer.special[m] for m in marks)):
                if isinstance(part, int):
                    ids.append(part)
                else:
                    ids += tokenizer.encode(part, bos=False)
            return ids
    known = [f"{name}: {' '.join(marks)}" for name, (marks, _) in _TEMPLATES.items()]
    raise TokenizerError(
        "chat: the tokenizer has no template's special tokens; allowed:"
        f" {'; '.join(known)}"
    )


# The text that ChatML writes where a conversation has no system message.
# No mark is in it, or a template of nothing but marks would take minutes.
_DEFAULT_SYSTEM = re.compile(
    r"<\|im_start\|>system(?:\n|\\n)((?:(?!<\|im_)[^'\"{}])+)<\|im_end\|>"
)
# Each template gives texts, and special tokens as their ids.
Parts = list[int | str]


def _chatml(messages: Sequence[Message], start: int, end: int) -> Parts:
    """ChatML, as SmolLM2's template writes it (OpenAI's format)."""
    parts: Parts = []
    for role, content in messages:
        parts += [start, f"{role}\n{content}", end, "\n"]
    return [*parts, start, "assistant\n"]


def _llama3(messages: Sequence[Message], *marks: int) -> Parts:
    """Llama 3's headers, as Meta's ChatFormat writes them; no default system."""
    begin, start, end, end_of_turn = marks
    parts: Parts = [begin]
    for role, content in messages:
        parts += [start, role, end, "\n\n", content.strip(), end_of_turn]
    return [*parts, start, "assistant", end, "\n\n"]


def _llama2(messages: Sequence[Message], bos: int, eos: int) -> Parts:
    """Llama 2's `[INST]`, as Meta's code writes it; each answer ends a text.

    `[INST]` and `<<SYS>>` are plain text to Llama 2, also where a user types them.
    """
    turns = [message.content for message in messages]
    if messages[0].role == "system":
        system, user, *rest = turns
        turns = [f"<<SYS>>\n{system}\n<</SYS>>\n\n{user}", *rest]
    parts: Parts = []
    for user, answer in zip(turns[0:-1:2], turns[1::2], strict=True):
        parts += [bos, f"[INST] {user.strip()} [/INST] {answer.strip()} ", eos]
    return [*parts, bos, f"[INST] {turns[-1].strip()} [/INST]"]


_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
# The special tokens of a template, and what writes it with their ids. `<s>` comes
# last: tokenizers of other templates may have it too.
_TEMPLATES: dict[str, tuple[tuple[str, ...], Callable[..., Parts]]] = {
    "ChatML": (("<|im_start|>", "<|im_end|>"), _chatml),
    "Llama 3": (("<|begin_of_text|>", *_HEADER, "<|eot_id|>"), _llama3),
    "Llama 2": (("<s>", "</s>"), _llama2),
}
