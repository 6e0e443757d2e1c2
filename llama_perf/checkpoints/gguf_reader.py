"""llama.cpp's GGUF reader, made quick on long vocabularies and safe on damaged files.

Knows the container, not what any field or tensor means. Imports no torch.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType

from llama_perf.errors import UserError

DAMAGED = "damaged, truncated, or no GGUF file of version 2 or 3"


def read_container(
    path: Path, *, error: type[UserError], mode: Literal["r", "c"] = "r"
) -> GGUFReader:
    """Map a GGUF file and read its fields; raises `error`."""
    try:
        return BoundedReader(path, mode=mode)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        raise error(f"{path}: {DAMAGED}") from None


class BoundedReader(GGUFReader):
    """GGUFReader that stops at the file's end and takes an array at a time.

    The base class slices a memmap several times for every word of a vocabulary,
    which takes seconds, and past the end of a file in silence, which lets a damaged
    length loop for ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "data" and isinstance(value, np.memmap):
            value = value.view(np.ndarray)
        super().__setattr__(name, value)

    def _get(
        self, offset: int, dtype: npt.DTypeLike, count: int = 1, *rest: Any, **more: Any
    ) -> npt.NDArray[Any]:
        items = super()._get(offset, dtype, count, *rest, **more)
        if len(items) < count:
            raise EOFError(f"{count} items of {np.dtype(dtype)} at byte {offset}")
        return items

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        start = int(orig_offs)
        head = [self._get(start, np.uint32), self._get(start + 4, np.uint64)]
        kind, count = GGUFValueType(head[0][0]), int(head[1][0])
        if kind == GGUFValueType.STRING:
            items, end = self._strings(start + 12, count)
        elif (dtype := self.gguf_scalar_to_np.get(kind)) is not None:
            values = self._get(start + 12, dtype, count)
            items, end = list(values.reshape(-1, 1)), start + 12 + values.nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        indices = list(range(len(head), len(head) + count))
        types = [GGUFValueType.ARRAY, kind] if count else [GGUFValueType.ARRAY]
        return end - start, head + items, indices, types

    def _strings(self, at: int, count: int) -> tuple[list[npt.NDArray[Any]], int]:
        """`count` strings from byte `at`, each after its length, and their end."""
        raw, items = self.data.data, []
        for _ in range(count):
            text = at + 8
            at = text + int.from_bytes(raw[at:text], sys.byteorder)
            if max(at, text) > len(raw):
                raise EOFError(f"a string at byte {text}")
            items.append(self.data[text:at])
        return items, at
