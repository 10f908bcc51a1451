"""The file around a pickle: what it is, what is told about it, and a digest over all of it.

magic [16], version [u32], length of what is told [u32], length of the payload [u64], sha256 [32];
what is told, as JSON; the payload. The digest is over everything but itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from avalanche_mgem.checkpoint.errors import CheckpointError

MAGIC = b"\x93AVALANCHE_MGEM\n"
VERSION = 1
_START = struct.Struct("<16sIIQ")
_DIGEST_SIZE = hashlib.sha256().digest_size
HEADER_SIZE = _START.size + _DIGEST_SIZE
_CHUNK = 1 << 20


class Sink(Protocol):
    """What a payload is written to."""

    def write(self, data: Any, /) -> int:
        """Write bytes."""

    def flush(self) -> None:
        """Hand on what was written."""


class _Digested:
    """Writes to a file, and keeps the digest and the length of what was written.

    failure: the first error of the file. Torch's writer makes others of it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.length = 0
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        with self._kept_failure():
            written = self._file.write(data)
        self.length += written
        return written

    def flush(self) -> None:
        with self._kept_failure():
            self._file.flush()

    @contextmanager
    def _kept_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            raise


def write_frame(file: BinaryIO, told: Mapping[str, Any], dump: Callable[[Sink], None]) -> None:
    """Write a checkpoint to a new file, from its start; dump writes the payload.

    Raises:
        OSError: the file cannot be written, whatever dump has made of it.
    """
    description = json.dumps(told).encode()
    file.write(bytes(HEADER_SIZE))  # until the length and the digest are known
    body = _Digested(file)
    body.write(description)
    try:
        dump(body)
    except Exception:
        if body.failure is None:
            raise
    if body.failure is not None:
        raise body.failure
    start = _START.pack(MAGIC, VERSION, len(description), body.length - len(description))
    body.digest.update(start)
    file.seek(0)
    file.write(start + body.digest.digest())
    file.flush()
    os.fsync(file.fileno())


class _From(io.RawIOBase):
    """A file from where it stands on, as one of its own: torch 2.5 seeks from its start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._file.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = self._start if whence == os.SEEK_SET else 0
        return self._file.seek(start + offset, whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start


class _Start(NamedTuple):
    told: int
    payload: int
    raw: bytes


@contextmanager
def open_frame(path: Path) -> Iterator[tuple[dict[str, Any], BinaryIO]]:
    """Check the whole file, then give what it tells and the payload, as a file of its own.

    Raises:
        FileNotFoundError: there is no file.
        OSError: it cannot be read.
        CheckpointError: it is no checkpoint, of a later format, cut short, or not what was written.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint")
    with path.open("rb") as file:
        start = _read_start(path, file)
        digest = hashlib.sha256()
        stored = file.read(_DIGEST_SIZE)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        digest.update(start.raw)
        if digest.digest() != stored:
            raise CheckpointError(f"{path} is damaged: its contents are not what was written")
        file.seek(HEADER_SIZE)
        told: dict[str, Any] = json.loads(file.read(start.told))
        yield told, io.BufferedReader(_From(file))


def is_whole(path: Path) -> bool:
    """Whether the file at path is a checkpoint, whole; what cannot be read is none."""
    try:
        with open_frame(path):
            return True
    except (CheckpointError, OSError):
        return False


def _read_start(path: Path, file: BinaryIO) -> _Start:
    raw = file.read(_START.size)
    size = os.fstat(file.fileno()).st_size
    if not raw.startswith(MAGIC):
        what = "cut short" if raw == MAGIC[: len(raw)] else "no checkpoint of avalanche_mgem"
        raise CheckpointError(f"{path} is {what}: {size} bytes that begin with {raw[:16]!r}")
    if size < HEADER_SIZE:
        raise CheckpointError(
            f"{path} is cut short: {size} bytes, not even its {HEADER_SIZE} first"
        )
    _, version, told, payload = _START.unpack(raw)
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this avalanche_mgem reads version {VERSION}"
        )
    expected = HEADER_SIZE + told + payload
    if size != expected:
        what = "cut short" if size < expected else "damaged"
        raise CheckpointError(f"{path} is {what}: {size} bytes instead of {expected}")
    return _Start(told, payload, raw)
