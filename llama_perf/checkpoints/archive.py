"""The checksums in a file that torch.save wrote, which is a zip; torch checks none.

Knows a zip's records, and not what is in them.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from llama_perf.devices.ranks import Rank
from llama_perf.errors import WeightsError

_CHUNK = 1 << 20


def content(path: Path) -> str:
    """A checksum of all records, from those that the zip has; raises WeightsError.

    It takes no time: the records are not read.
    """
    return _checked(path, _content)


def check_small_records(path: Path) -> None:
    """Raise WeightsError if a record is damaged that holds no tensor's data."""
    _checked(path, lambda archive: _check(_records(archive, data=False), archive))


def check_data(path: Path, rank: Rank) -> None:
    """Raise WeightsError if the data of a tensor is damaged: about 2 GB a second.

    Of several ranks each looks at some of the records, together at all.
    """

    def check(archive: zipfile.ZipFile) -> str:
        records = _records(archive, data=True)
        records.sort(key=lambda record: record.file_size)
        return _check(records[rank.index :: rank.count], archive)

    _checked(path, check)


def _content(archive: zipfile.ZipFile) -> str:
    # The folder in the zip has the name that the file had when it was written.
    records = sorted(
        (record.filename.partition("/")[2], record.file_size, record.CRC)
        for record in archive.infolist()
    )
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]


def _records(archive: zipfile.ZipFile, *, data: bool) -> list[zipfile.ZipInfo]:
    """Those that hold a tensor's data, or the others."""
    infos = archive.infolist()
    return [record for record in infos if ("/data/" in record.filename) == data]


def _check(records: Iterable[zipfile.ZipInfo], archive: zipfile.ZipFile) -> str:
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            # torch would take the compressed bytes for the data.
            raise ValueError(f"{record.filename} is compressed")
        # 0 is what torch writes where a user turned its checksums off.
        if record.CRC:
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
