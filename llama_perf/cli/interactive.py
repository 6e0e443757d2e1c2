"""`generate --interactive`: prompts from a terminal, text as it comes.

A chat model gets its template and keeps the conversation while the cache lasts;
another model continues each text by itself. Generation stops at end of text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat, is_chat_model
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError, TokenizerError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.measure.prepare import Prepared, prepare
from llama_perf.rows.spec import RowSpec


def talk(
    row: RowSpec, arguments: argparse.Namespace, tokenizer: Tokenizer | None
) -> int:
    """Answer prompts until the input ends."""
    if tokenizer is None:
        raise TokenizerError(
            f"interactive: {arguments.checkpoint_path!r} has no tokenizer"
        )
    chat = is_chat_model(arguments.checkpoint_path)
    with compiler_settings():
        # One position stands for the prompt; the cache must hold a real one.
        room = row.cache_size or max(2048, 2 * row.max_new_tokens)
        prepared = prepare(
            _with_cache(row, room),
            prompt=torch.zeros((1, 1), dtype=torch.int64),
            notify=print,
        )
        history: list[Message] = []
        for text in _prompts():
            history = [*history, Message(role="user", content=text)]
            try:
                if chat:
                    ids = encode_chat(tokenizer, history)
                else:
                    ids = tokenizer.encode(text)
                answer = _answer(prepared, tokenizer, ids, room)
            except PromptError as error:
                print(f"{error}; starting over", file=sys.stderr)
                history = []
                continue
            history.append(Message(role="assistant", content=answer))
    return 0


def _with_cache(row: RowSpec, cache_size: int) -> RowSpec:
    from dataclasses import replace

    return replace(row, cache_size=cache_size, batch_size=1)


def _prompts() -> Iterator[str]:
    while True:
        try:
            text = input("What is your prompt? ")
        except EOFError:
            print()
            return
        if text.strip():
            yield text


def _answer(prepared: Prepared, tokenizer: Tokenizer, ids: list[int], room: int) -> str:
    row, engine = prepared.row, prepared.engine
    device = engine.model.device
    prompt = torch.tensor([ids], device=device)
    left = min(row.max_new_tokens, room - engine.filled - len(ids))
    engine.check_prompt(prompt, max_new_tokens=max(left, 1))
    stream = engine.stream(prompt, max_new_tokens=left, sampling=prepared.sampling())
    new: list[int] = []
    shown = ""
    for token in stream:
        new.append(int(token))
        if new[-1] in tokenizer.eos_ids:
            new.pop()
            break
        text = tokenizer.decode(new)
        # An unfinished character decodes to the replacement mark: wait for the rest.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    return tokenizer.decode(new)
