"""llama.cpp's GGUF reader, made quick on long vocabularies and safe on damaged files.

Knows the container, not what any field or tensor means. Imports no torch.
"""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, ReaderTensor

from llama_perf.errors import UserError
from llama_perf.files import check_readable

Fields = dict[str, tuple[Any, list[GGUFValueType]]]
"""Names of fields, each with its value and its type (of an array its items' too)."""


def read_container(
    path: Path, *prefixes: str, error: type[UserError]
) -> tuple[Fields, list[ReaderTensor]]:
    """The fields of a GGUF file whose names start so, and its tensors; raises `error`.

    The tensors' data is a copy-on-write map: torch refuses to wrap read-only arrays.
    """
    check_readable(path, error=error)
    try:
        # An offset that overflows would be another offset.
        with np.errstate(all="raise"):
            reader = _BoundedReader(path, mode="c")
        fields = {
            name: (field.contents(), field.types)
            for name, field in reader.fields.items()
            if name.startswith(prefixes)
        }
    except Exception:  # damaged bytes end in any of a dozen kinds of exception
        damaged = "damaged, truncated, or no GGUF file of version 2 or 3"
        raise error(f"{path}: {damaged}") from None
    if reader.byte_order != "I":
        # gguf would dequantize its tensors as if they were this machine's.
        raise error(f"{path}: its numbers have another byte order than this machine's")
    # Several of them in one place are no file of llama.cpp's.
    by_place = sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
    for before, after in pairwise(by_place):
        if before.data_offset + before.n_bytes > after.data_offset:
            raise error(f"{path}: damaged: {before.name} and {after.name} overlap")
    return fields, reader.tensors


class _BoundedReader(GGUFReader):
    """GGUFReader that stops at the file's end and takes an array at a time.

    The base class slices a memmap several times for every word of a vocabulary,
    which takes seconds, and past the end of a file in silence, which lets a damaged
    length loop for ever. `numpy.frombuffer` refuses what is past the end.
    """

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Any = None,
    ) -> npt.NDArray[Any]:
        ordered = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        return np.frombuffer(self.data, ordered, int(count), int(offset))

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        start = int(orig_offs)
        parts = [self._get(start, np.uint32), self._get(start + 4, np.uint64)]
        kind, count, at = GGUFValueType(parts[0][0]), int(parts[1][0]), start + 12
        indices = range(2, 2 + count)
        if kind == GGUFValueType.STRING:
            for _ in indices:
                # Each string comes after its length.
                size = int.from_bytes(self.data.data[at : at + 8], sys.byteorder)
                parts.append(np.frombuffer(self.data, np.uint8, size, at + 8))
                at += 8 + size
        elif (dtype := self.gguf_scalar_to_np.get(kind)) is not None:
            values = self._get(at, dtype, count)
            parts += list(values.reshape(-1, 1))
            at += values.nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, kind] if count else [GGUFValueType.ARRAY]
        return at - start, parts, list(indices), types
