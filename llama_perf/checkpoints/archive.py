"""The checksums in a file that torch.save wrote, which is a zip; torch checks none.

Knows a zip's records, and not what is in them.
"""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from llama_perf.errors import WeightsError

_CHUNK = 1 << 20


def content(path: Path) -> str:
    """A checksum of all records, from those that the zip has; raises WeightsError.

    It takes no time: the records are not read.
    """
    return _checked(path, _content)


def check_small_records(path: Path) -> None:
    """Raise WeightsError if a record is damaged that holds no tensor's data."""
    _checked(path, lambda archive: _check(archive, data=False))


def check_data(path: Path) -> None:
    """Raise WeightsError if the data of a tensor is damaged: about 2 GB a second."""
    _checked(path, lambda archive: _check(archive, data=True))


def _content(archive: zipfile.ZipFile) -> str:
    # The folder in the zip has the name that the file had when it was written.
    records = sorted(
        (record.filename.partition("/")[2], record.file_size, record.CRC)
        for record in archive.infolist()
    )
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]


def _check(archive: zipfile.ZipFile, *, data: bool) -> str:
    for record in archive.infolist():
        if record.compress_type != zipfile.ZIP_STORED:
            # torch would take the compressed bytes for the data.
            raise ValueError(f"{record.filename} is compressed")
        # 0 is what torch writes where a user turned its checksums off.
        if ("/data/" in record.filename) == data and record.CRC:
            with archive.open(record) as file:
                while file.read(_CHUNK):
                    pass
    return ""


def _checked(path: Path, use: Callable[[zipfile.ZipFile], str]) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return use(archive)
    except Exception as error:  # damaged bytes end in any of a dozen kinds of exception
        raise WeightsError(f"{path}: damaged or truncated: {error}") from None
