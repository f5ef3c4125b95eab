"""The archive's files: written once, verified by reading them again, never overwritten.

A key is made by us (`custody_key`, `rendition_key`) and never holds a peer's string (security V2)."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from broker import ids
from broker.config import Settings
from broker.errors import ConfigError, DuplicateKey, UnknownKey, Unreadable

CHUNK_BYTES = 1024 * 1024


class Store(Protocol):
    """Create-only objects. sha256: hex, of the whole object."""

    def put(self, key: str, source: Path, sha256: str) -> None: ...
    def open(self, key: str) -> BinaryIO: ...
    def exists(self, key: str) -> bool: ...
    def sha256(self, key: str) -> str: ...
    def delete(self, key: str) -> None: ...
    def sweep(self, older_than_seconds: float) -> None: ...


def make_store(settings: Settings) -> Store:
    """Raises ConfigError for any archive but a local folder."""
    url = urlsplit(settings.archive)
    if url.scheme != "file" or url.netloc not in ("", "localhost"):
        raise ConfigError("archive_url", f"{url.scheme}://… is not supported; this version takes file:///a/folder only")
    return LocalStore(Path(unquote(url.path)))


def custody_key(instance_pk: int, sha256: str) -> str:
    """Where the received bytes of an instance lie: the same at every try, so that a repeated copy finds the first.

    sha256: of the data set as received."""
    return _key("custody", instance_pk, sha256)


def rendition_key(instance_pk: int, sha256: str) -> str:
    """Where a coerced rendition lies. sha256: of the rendition's own file; another decision makes another file."""
    return _key("rendition", instance_pk, sha256)


def _key(room: str, instance_pk: int, sha256: str) -> str:
    digest = hashlib.sha256(f"{instance_pk}:{sha256}".encode()).hexdigest()
    return f"{room}/{digest[:2]}/{digest[2:4]}/{digest}.dcm"


class LocalStore:
    """A folder. Files are written aside under `in/` first, on the same file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path, sha256: str) -> None:
        """Copy `source` to `key`, durable and read again. The same object again is success; another is DuplicateKey.

        Raises Unreadable where `source` has another hash than the one given."""
        target = self._root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            self._write(source, target, sha256)
        # Also where the file was there already: whoever wrote it may have been killed before this.
        for folder in (*(self._root / parent for parent in Path(key).parents), self._root.parent):
            _sync_folder(folder)
        if _hash_on_disk(target) != sha256:
            raise DuplicateKey(f"archive {key}", "holds other bytes than those that belong there")

    def open(self, key: str) -> BinaryIO:
        try:
            return (self._root / key).open("rb")
        except FileNotFoundError:
            raise UnknownKey(f"archive {key}", "is not in the archive") from None

    def exists(self, key: str) -> bool:
        return (self._root / key).is_file()

    def sha256(self, key: str) -> str:
        with self.open(key) as file:
            return hash_of(file)

    def delete(self, key: str) -> None:
        """Nothing automatic calls this."""
        (self._root / key).unlink(missing_ok=True)

    def sweep(self, older_than_seconds: float) -> None:
        """Remove the half copies of those who were killed."""
        for aside in (self._root / "in").glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - aside.stat().st_mtime > older_than_seconds:
                    aside.unlink()

    def _write(self, source: Path, target: Path, sha256: str) -> None:
        """A failed fsync is never tried again: the copy goes away (durability.md 1.1)."""
        room = self._root / "in"
        room.mkdir(exist_ok=True)
        aside = room / f"{ids.file_name()}.part"
        digest = hashlib.sha256()
        try:
            with source.open("rb") as reader, aside.open("xb") as writer:
                for chunk in chunks(reader):
                    digest.update(chunk)
                    writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
            if digest.hexdigest() != sha256:
                raise Unreadable(f"file {source.name}", "does not have the hash that was recorded for it")
            with contextlib.suppress(FileExistsError):  # another process was quicker; the caller compares its file
                os.link(aside, target)  # create-only, where a rename would overwrite
        finally:
            aside.unlink(missing_ok=True)


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """What is left to read, in bounded pieces."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def hash_of(file: BinaryIO) -> str:
    """SHA-256 (hex) of what is left to read."""
    digest = hashlib.sha256()
    for chunk in chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _hash_on_disk(path: Path) -> str:
    """Of what the disk gives back, not of what the page cache remembers."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hash_of(file)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
