"""Chat prompts as token ids, in the template a model was trained with.

Where a tokenizer brings no template, its special tokens choose one of three. Special
tokens that a template writes become their ids, those that people write plain text.
Knows no tensors.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath

from llama_perf.checkpoints.tokenizers.templates import ChatTemplate, Message
from llama_perf.checkpoints.tokenizers.tokenizer import Found, Tokenizer
from llama_perf.errors import PromptError, TokenizerError

__all__ = ["Message", "encode_chat", "is_chat_model"]


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

    Raises TokenizerError where the template refuses the conversation, is damaged, or
    there is none; PromptError for a text that cannot be kept from being special.
    """
    if not messages:
        raise PromptError("messages: there are none; allowed: one or more")
    template = tokenizer.chat_template or _default_template(tokenizer)
    # A template gives an added token its meaning by writing it.
    written = {t for t in tokenizer.added if t in template.text and not t.isspace()}
    special = _any_of({*tokenizer.special})
    marks = _any_of({*tokenizer.special, *written})
    # An answer's added tokens, around its thoughts, are the model's own.
    typed = [_mark(m, special if m.role == "assistant" else marks) for m in messages]
    return _encode_marked(tokenizer, template.render(typed), marks)


def _any_of(texts: set[str]) -> str:
    """A pattern for any of `texts`, of two that begin alike for the longer one."""
    longest_first = sorted(texts, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"


# Around special tokens that people write: Unicode keeps these two from being text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


def _mark(message: Message, marks: str) -> Message:
    content = re.sub(f"[{_OPEN}{_CLOSE}]", "", message.content)
    content = re.sub(marks, rf"{_OPEN}\g<0>{_CLOSE}", content)
    return Message(message.role, content)


def _encode_marked(tokenizer: Tokenizer, text: str, marks: str) -> list[int]:
    """The ids of a conversation, in which what is marked is plain text.

    A template may have parted a token from its marks. What is left of them parts the
    text, so that its pieces form no special token.
    """
    # Text and marked tokens take turns; a mark alone leaves None for a token.
    first, *pieces = re.split(f"{_OPEN}({marks}){_CLOSE}|[{_OPEN}{_CLOSE}]", text)
    ids = tokenizer.encode_part(first, found="special")
    for number, piece in enumerate(pieces):
        if piece:
            found: Found = "special" if number % 2 else "none"
            ids += (more := _encode_inner(tokenizer, piece, found))
            known = {tokenizer.special.get(piece), tokenizer.added.get(piece)}
            if found == "none" and not known.isdisjoint(more):
                raise PromptError(
                    f"prompt: {piece!r} is not allowed; the tokenizer has no other"
                    " token for it than the special one"
                )
    return ids


def _encode_inner(tokenizer: Tokenizer, piece: str, found: Found) -> list[int]:
    """The ids of a piece from within a text, where no space is put before it."""
    line = tokenizer.encode_part("\n", found="added")
    ids = tokenizer.encode_part(f"\n{piece}", found=found)
    if ids[: len(line)] == line:
        return ids[len(line) :]
    return tokenizer.encode_part(piece, found=found)


def _default_template(tokenizer: Tokenizer) -> ChatTemplate:
    for marks, text in _TEMPLATES.values():
        if tokenizer.special.keys() >= set(marks):
            named = {"default": text}
            return ChatTemplate(source="chat_template", named=named, variables={})
    known = [f"{name}: {' '.join(marks)}" for name, (marks, _) in _TEMPLATES.items()]
    raise TokenizerError(
        "chat: the tokenizer has neither a template nor the special tokens of one;"
        f" allowed: {'; '.join(known)}"
    )


# As OpenAI's format has it.
_CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{{ '<|im_start|>assistant\n' }}"""
# As Meta's ChatFormat writes it; no system message of its own.
_LLAMA3 = """\
{{ '<|begin_of_text|>' }}
{%- for message in messages %}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{{- message.content.strip() + '<|eot_id|>' }}
{%- endfor %}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""
# As Meta's code writes it: each answer ends a text. `[INST]` and `<<SYS>>` are plain
# text to Llama 2, also where a user types them.
_LLAMA2 = """\
{% set ns = namespace(system='') %}
{% for message in messages %}
{% if message.role == 'system' %}
{% set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}
{% elif message.role == 'user' %}
{{ '<s>[INST] ' + (ns.system + message.content).strip() + ' [/INST]' }}
{%- set ns.system = '' %}
{% else %}
{{ ' ' + message.content.strip() + ' </s>' }}
{%- endif %}
{% endfor %}"""
# The special tokens that a template writes, and the template. `<s>` comes last:
# tokenizers of other templates may have it too.
_HEADER = ("<|start_header_id|>", "<|end_header_id|>")
_TEMPLATES = {
    "ChatML": (("<|im_start|>", "<|im_end|>"), _CHATML),
    "Llama 3": (("<|begin_of_text|>", *_HEADER, "<|eot_id|>"), _LLAMA3),
    "Llama 2": (("<s>", "</s>"), _LLAMA2),
}
