"""`generate --interactive`: prompts from a terminal, text as it comes.

A chat model gets its template and keeps the conversation until the cache is full;
another model continues each text on its own. Generation stops at end of text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from llama_perf.checkpoints.tokenizers.chat import Message, encode_chat, is_chat_model
from llama_perf.checkpoints.tokenizers.tokenizer import Tokenizer
from llama_perf.errors import PromptError, TokenizerError
from llama_perf.llama.compiler import compiler_settings
from llama_perf.measure.prepare import Prepared, prepare
from llama_perf.rows.spec import RowSpec


def talk(row: RowSpec, tokenizer: Tokenizer | None) -> int:
    """Answer prompts until the input ends."""
    if tokenizer is None:
        raise TokenizerError(f"interactive: {row.model!r} has no tokenizer")
    chat = is_chat_model(row.model)
    # The row's prompt is one position long; the cache must hold real prompts.
    row = replace(
        row,
        cache_size=row.cache_size or max(2048, 2 * row.max_new_tokens),
        batch_size=1,
    )
    with compiler_settings():
        prompt = torch.zeros((1, 1), dtype=torch.int64)
        prepared = prepare(row, prompt=prompt, notify=print)
        history: list[Message] = []
        for text in _prompts():
            history = [*history, Message(role="user", content=text)]
            try:
                if chat:
                    ids = encode_chat(tokenizer, history)
                else:
                    ids = tokenizer.encode(text)
                answer = _answer(prepared, tokenizer, ids)
            except PromptError as error:
                print(f"{error}; starting over", file=sys.stderr)
                history = []
                continue
            history.append(Message(role="assistant", content=answer))
    return 0


def _prompts() -> Iterator[str]:
    while True:
        try:
            text = input("What is your prompt? ")
        except EOFError:
            print()
            return
        if text.strip():
            yield text


def _answer(prepared: Prepared, tokenizer: Tokenizer, ids: list[int]) -> str:
    """Print the answer to a prompt of these ids as it comes; returns it."""
    row, engine = prepared.row, prepared.engine
    prompt = torch.tensor([ids], device=engine.model.device)
    free = row.allocated_positions - engine.filled - len(ids)
    max_new_tokens = min(row.max_new_tokens, free)
    engine.check_prompt(prompt, max_new_tokens=max(max_new_tokens, 1))
    stream = engine.stream(
        prompt, max_new_tokens=max_new_tokens, sampling=prepared.sampling()
    )
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
