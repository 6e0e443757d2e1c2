"""PTX that unpacks codes for tensor cores, executed instruction by instruction."""

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter takes no PTX", allow_module_level=True)

import torch

from llama_perf.kernels import row_scaled
from llama_perf.kernels.triton import digit_sums, sparse_codes, tile_codes
from llama_perf.kernels.weight import FLOAT8, FP6, INT8, UNSIGNED

WORD = 0xFFFFFFFF


def halves(register: int) -> np.ndarray:
    """The two float16 of a register."""
    return np.array([register], dtype=np.uint32).view(np.float16)


def from_halves(values: np.ndarray) -> int:
    return int(values.astype(np.float16).view(np.uint32)[0])


def bytes_chosen(low: int, high: int, selector: int) -> int:
    """As `prmt.b32`: of a selector's upper bit the sign of the byte eight times."""
    pool, result = low | high << 32, 0
    for index in range(4):
        chosen = selector >> 4 * index & 15
        byte = pool >> 8 * (chosen & 7) & 255
        if chosen & 8:
            byte = 255 * (byte >> 7)
        result |= byte << 8 * index
    return result


def logic(a: int, b: int, c: int, table: int) -> int:
    """As `lop3.b32`."""
    result = 0
    for row in range(8):
        if table >> row & 1:
            terms = (
                (value if row >> place & 1 else ~value)
                for value, place in zip((a, b, c), (2, 1, 0), strict=True)
            )
            result |= np.bitwise_and.reduce([term & WORD for term in terms])
    return int(result)


def fused(a: int, b: int, c: int) -> int:
    """Exact in float64 before the one rounding."""
    wide = [halves(register).astype(np.float64) for register in (a, b, c)]
    return from_halves(wide[0] * wide[1] + wide[2])


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "shl.b32": lambda a, count: a << count & WORD,
    "shr.b32": lambda a, count: a >> count,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "mul.lo.u32": lambda a, b: a * b & WORD,
    "lop3.b32": logic,
    "prmt.b32": bytes_chosen,
    "add.f16x2": lambda a, b: from_halves(halves(a) + halves(b)),
    "fma.rn.f16x2": fused,
}


def execute(text: str, results: int, *operands: int) -> list[int]:
    """The registers $0, $1 ... that `text` writes, of the next ones that it reads."""
    registers = {f"${results + index}": value for index, value in enumerate(operands)}
    for line in text.strip().strip("{}").split(";"):
        if not line.strip() or ".reg" in line:
            continue
        name, rest = line.split(None, 1)
        target, *sources = re.split(r",\s*", rest.strip())
        values = [
            registers[it] if it in registers else int(it, 0) & WORD for it in sources
        ]
        registers[target] = INSTRUCTIONS[name](*values)
    return [registers[f"${index}"] for index in range(results)]


def planes_of(codes: np.ndarray, bits: int) -> list[int]:
    """A register for each plane: pieces of codes (2, slots), a row for each half."""
    registers, low = [], 0
    for plane in (8, 4, 2, 1):
        if bits & plane:
            pieces = codes >> low & 2**plane - 1
            places = plane * np.arange(codes.shape[1]) + 16 * np.arange(2)[:, None]
            registers.append(int((pieces.astype(np.int64) << places).sum()))
            low += plane
    return registers


@pytest.mark.parametrize(
    ("bits", "decode"),
    [*((bits, UNSIGNED) for bits in range(1, 9)), *((8, INT8), (8, FLOAT8), (6, FP6))],
)
def test_every_code_of_every_column_becomes_its_value(bits: int, decode: int) -> None:
    slots = 16 // tile_codes.widest_plane(bits)
    generator = np.random.default_rng(bits)
    every = generator.permutation(np.arange(2**bits).repeat(2 * slots))
    texts = [tile_codes.decoding(bits, decode, slot) for slot in range(slots)]
    for codes in every.reshape(-1, 2, slots):
        stored = codes
        if decode == FP6:
            # The sign of a code lies with the next of four.
            stored = codes & 31 | np.roll(codes & 32, 1, axis=1)
        planes = planes_of(stored, bits)
        if decode == FP6:
            # As `widened` has the plane of two bits: each byte twice.
            pieces = planes[1] & 255 | planes[1] >> 8 & 0xFF00
            planes[1] = execute(tile_codes.widening(True), 2, pieces)[0]
        for slot, text in enumerate(texts):
            (register,) = execute(text, 1, *planes)
            expected = value_of(codes[:, slot], bits, decode)
            np.testing.assert_array_equal(halves(register), expected)


def value_of(codes: np.ndarray, bits: int, decode: int) -> Any:
    """Those of the formats, as tile_codes has them: 2**-12 or 2**-8 of a float."""
    words = torch.tensor(codes, dtype=torch.int32)
    if decode == FP6:
        return row_scaled.decode_fp6(words).numpy() / 4096
    if decode == FLOAT8:
        return row_scaled.decode_float8(words).numpy() / 256
    if decode == INT8:
        return codes - (codes >> bits - 1 << bits)
    return codes - 2 ** (bits - 1)


def test_bytes_are_widened() -> None:
    assert execute(tile_codes.widening(False), 2, 0x44332211) == [0x220011, 0x440033]
    twice = execute(tile_codes.widening(True), 2, 0x44332211)
    assert twice == [0x22221111, 0x44443333]


def test_values_of_every_pattern_of_a_quad_come_to_their_columns() -> None:
    # The later column first; a quad beyond the weight's columns has nothing but zeros.
    patterns = np.array([(1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2), (0, 0)])
    generator = np.random.default_rng(0)
    text = sparse_codes.columns_of_quads()
    for _ in range(300):
        pattern = generator.integers(0, 7, 4)
        values = generator.integers(0, 16, (4, 2)) * (pattern < 6)[:, None]
        places = patterns[pattern]
        stored = int((values << 4 * np.arange(8).reshape(4, 2)).sum())
        placed = int((places << 2 * np.arange(8).reshape(4, 2)).sum())
        # What is above a word's own sixteen bits is not looked at.
        placed |= int(generator.integers(0, 2**16)) << 16
        words = execute(text, 4, stored, placed)
        for column, quad in np.ndindex(4, 4):
            kept = np.where(places[quad] == column, values[quad], 0).sum()
            assert words[column] >> 8 * quad & 255 == kept << 4


def test_whole_numbers_are_cut_to_digits() -> None:
    edges = np.array([0, 1, -1, 127, 128, -128, -129, 2**30, -(2**30), 32767, -32768])
    generator = np.random.default_rng(0)
    numbers = np.append(edges, generator.integers(-(2**30), 2**30 + 1, 989))
    text, worth = digit_sums.cutting(), 256 ** np.arange(4)
    for four in numbers.reshape(-1, 4):
        biased = four + digit_sums.BIAS.value & WORD
        registers = np.array(execute(text, 4, *map(int, biased)), dtype=np.uint32)
        digits = registers.view(np.int8).reshape(4, 4).astype(np.int64)
        np.testing.assert_array_equal(worth @ digits, four)
