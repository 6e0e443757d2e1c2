"""The most bytes alive besides weights and caches: filling, prefill and decoding.

Follows the tensors that the engine's operators return, one layer and the head, each run
eagerly: compiled code keeps less. Inside an operator only attention is counted.
`tests/correctness/support/meta_run.py` counts the same on the meta device, to the byte.
"""

import torch

from llama_perf.kernels.attention import at_a_time
from llama_perf.kernels.cache_codes import WIDENED
from llama_perf.llama.config import ModelConfig
from llama_perf.llama.engine import PREFILL_CHUNK
from llama_perf.rows.spec import RowSpec

# A position, a token id or a count is an int64.
_INT = 8


def working_bytes(config: ModelConfig, row: RowSpec) -> int:
    """The most bytes alive at once besides the weights and the caches of `row`."""
    return _Moments(config, row).most()


def inside_prefill_bytes(config: ModelConfig, row: RowSpec) -> int:
    """Bytes that `prefill_attention` takes besides its result."""
    size: int = getattr(torch, row.dtype).itemsize
    width = config.head_dim
    tokens = min(row.prefill_chunk or PREFILL_CHUNK, max(row.fill, row.prompt_length))
    # Queries and result by heads of the cache.
    grouped = 2 * row.batch_size * config.n_heads * tokens * width * size
    if row.kv_cache is None:
        return grouped
    heads = row.batch_size * config.n_kv_heads
    heads, positions = at_a_time(heads, width, tokens)
    behind = row.fill + row.prompt_length - tokens
    piece = heads * max(min(positions, behind), tokens) * width
    # Keys and values, and some of the values in float32; then the bits that fp8
    # is widened from, or what they are rounded to.
    rounded = size if size < 4 else 0
    if row.kv_cache == "fp8":
        rounded = max(rounded, 2)
    widened = min(piece, WIDENED) * (4 + rounded)
    # The merged result, in float32, and a piece's part of it.
    queries = heads * tokens * width * (config.n_heads // config.n_kv_heads)
    return grouped + 2 * piece * size + max(widened, queries * size) + queries * 4


class _Moments:
    """Bytes alive at the moments that can be the peak of a row; others never are."""

    def __init__(self, config: ModelConfig, row: RowSpec) -> None:
        self._config, self._row = config, row
        self._size: int = getattr(torch, row.dtype).itemsize
        # What is computed in float32 has a copy of 4 bytes where the dtype is shorter.
        self._wide = 4 if self._size < 4 else 0
        self._batch, self._width = row.batch_size, config.head_dim
        self._positions = row.allocated_positions
        self._sdpa = row.attention == "sdpa"
        # The rotary frequencies are made once: float32, one for each pair of a head.
        self._frequencies = 2 * self._width
        # The hidden state of one token in each sequence, and its logits.
        self._state: int = self._batch * config.dim * self._size
        self._logits: int = self._batch * config.vocab_size * self._size

    def most(self) -> int:
        """Of the row's filling, its prompt and a decode step."""
        row, token, on_cuda = self._row, self._batch * _INT, self._row.device == "cuda"
        length, vocabulary = row.prompt_length, self._config.vocab_size
        # Under a mask on CUDA no fused kernel takes grouped queries.
        is_math = on_cuda and row.fill > 0
        moments = [self._prompt(row.fill, length, length * token, is_math=is_math)]
        if row.fill:
            # Chunks in the middle are like the first and the last ones.
            chunk = row.prefill_chunk or (row.fill if self._sdpa else PREFILL_CHUNK)
            last = max(row.fill // chunk - 2, 0) * chunk
            for start, end in ((0, min(chunk, row.fill)), (last, row.fill)):
                moments.append(self._prompt(start, end - start, row.fill * token))
        # A step has the token of each sequence, the position, and what the token sees:
        # a row of the mask, or a count.
        step = token + _INT
        visible = self._positions if self._sdpa else _INT
        if row.temperature == 0:
            drawing = token
        else:
            # Scaled, the race, the probabilities and their quotient, in float32.
            chosen = 0 if row.top_k is None else min(row.top_k, vocabulary)
            drawing = self._batch * (16 * vocabulary + 4 * chosen)
        return max(
            *moments,
            self._layer(1, step + visible, self._sdpa, on_cuda),
            step + self._frequencies + self._logits + max(2 * self._state, drawing),
        )

    def _prompt(
        self, start: int, length: int, tokens_bytes: int, *, is_math: bool = False
    ) -> int:
        default_chunk = self._positions if self._sdpa else PREFILL_CHUNK
        chunk = self._row.prefill_chunk or default_chunk
        inside = inside_prefill_bytes(self._config, self._row)
        # A chunk's result is alive during the next one, the last one's in the head.
        before = most = 0
        for first in range(0, length, chunk):
            tokens = min(chunk, length - first)
            masked = self._sdpa and start + first > 0
            live = before + tokens * (_INT + (self._positions if masked else 0))
            most = max(most, self._layer(tokens, live, masked, is_math, inside))
            before = tokens * self._state
        head = before + self._frequencies + self._state + self._logits
        return tokens_bytes + max(most, head)

    def _layer(
        self, tokens: int, live: int, masked: bool, is_math: bool, inside: int = 0
    ) -> int:
        """Some tokens of each sequence that run together, with `live` bytes around.

        Attention has a mask over the cache where `masked` and then no fused kernel
        where `is_math`; its operator takes `inside` in addition to its result.
        """
        config, size = self._config, self._size
        rows = self._batch * tokens
        x, hidden = rows * config.dim * size, rows * config.intermediate_size * size
        # A norm has, in a shorter dtype, x, its product with the scale and the result;
        # in float32 the product and the result.
        norm = (10 if self._wide else 8) * rows * config.dim + 4 * rows
        # Cosines and sines are float32, one of each for a pair.
        live += self._frequencies + 4 * tokens * self._width
        attention = self._attention(tokens, masked, is_math, inside)
        # Behind attention: x, x + attention, what is normed, and gate and up.
        return live + max(attention, 2 * x + norm, 3 * x + max(3 * hidden, hidden + x))

    def _attention(self, tokens: int, masked: bool, is_math: bool, inside: int) -> int:
        config, size, kind = self._config, self._size, self._row.kv_cache
        rows = self._batch * tokens
        x = rows * config.dim * size
        # Elements of queries and of keys.
        q = rows * config.n_heads * self._width
        k = rows * config.n_kv_heads * self._width
        live = 2 * x + rows * config.qkv_size * size
        # Rotating takes four products and sums of half the pairs, in float32.
        rotating = self._wide + 8
        moments = [live + rotating * q, live + q * size + rotating * k]
        live += (q + k) * size
        if kind is not None:
            # Keys and values are stacked and quantized together, in float32. int8:
            # divided, rounded and as codes; fp8: six steps on the bits.
            steps = self._wide + (9 if kind == "int8" else 24)
            moments.append(live + 2 * k * (size + steps) + 8 * k // self._width)
        if not self._sdpa:
            return max(*moments, live + q * size + max(inside, x))
        if masked:
            cache = self._batch * config.n_kv_heads * self._positions * self._width
            if kind is not None:
                # Each of keys and values is dequantized whole: scales and values in
                # float32, and the bits of fp8 or the result.
                more = max(2 if kind == "fp8" else 0, size if self._wide else 0)
                scales = 4 * cache // self._width
                moments.append(live + scales + cache * (size + 4 + more))
                live += 2 * cache * size
            live -= k * size
            if is_math:
                moments.append(live + self._math_attention(tokens))
        elif kind is not None:
            # Keys and values are rounded as the cache holds them.
            live += k * size
        return max(*moments, live + q * size + x)

    def _math_attention(self, tokens: int) -> int:
        """Attention without a fused kernel, in float32, over the whole cache."""
        config, batch = self._config, self._batch
        groups = config.n_heads // config.n_kv_heads
        q = batch * tokens * config.n_heads * self._width
        cache = batch * config.n_kv_heads * self._positions * self._width
        scores = batch * config.n_heads * tokens * self._positions
        mask = tokens * self._positions * self._size
        # The scaled queries, and keys and values repeated for every query head.
        live = mask + self._wide * (q + 2 * cache) + 4 * q
        if groups > 1:
            live += 8 * cache * groups
        # The product takes queries whose sequences and heads are one dimension.
        copied = tokens > 1 and batch > 1 and config.n_heads > 1
        product = 4 * cache * groups + 4 * scores + (4 * q if copied else 0)
        # The result, and in a shorter dtype it and the probabilities once more.
        shorter = 2 * scores + 2 * q if self._wide else 0
        return live + max(product, 8 * scores, 4 * scores + 4 * q + shorter)
