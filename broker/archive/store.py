"""The archive's files: written once, verified by reading them again, never overwritten.

A key is made by us (`custody_key`, `rendition_key`) and never holds a peer's string (security V2)."""

import contextlib
import hashlib
import os
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


def make_store(settings: Settings) -> Store:
    """Raises ConfigError for any archive but a local folder."""
    url = urlsplit(settings.archive)
    if url.scheme != "file" or url.netloc not in ("", "localhost"):
        raise ConfigError("archive_url", f"{url.scheme}://… is not supported, this version takes file:///a/folder only")
    return LocalStore(Path(unquote(url.path)))


def custody_key(instance_pk: int, sha256: str) -> str:
    """Where the received bytes of an instance lie: the same place at every try, so that a repeated copy finds the first.

    sha256: of the data set as received."""
    return _key("custody", f"{instance_pk}:{sha256}")


def rendition_key(instance_pk: int, sha256: str) -> str:
    """Where a coerced rendition lies. sha256: of the rendition's file, since a later decision makes another one."""
    return _key("rendition", f"{instance_pk}:{sha256}")


def _key(room: str, name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{room}/{digest[:2]}/{digest[2:4]}/{digest}.dcm"


class LocalStore:
    """A folder. Files are first written aside under `in/`, on the same file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path, sha256: str) -> None:
        """Copy `source` to `key`, durable and read again. The same object again is success; another is DuplicateKey.

        Raises Unreadable where `source` or what came back from the disk has another hash."""
        target = self._root / key
        if not target.exists():
            aside = self._write_aside(source, sha256)
            self._place(aside, target)
        if _hash_of(target) != sha256:
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
        """Nothing automatic calls this: a person's retention rule does."""
        (self._root / key).unlink(missing_ok=True)

    def _write_aside(self, source: Path, sha256: str) -> Path:
        """A fsynced copy. A failed fsync is never tried again: the copy goes away (durability.md 1.1)."""
        room = self._root / "in"
        _make_folder(room)
        aside = room / f"{ids.file_name()}.part"
        digest = hashlib.sha256()
        try:
            with source.open("rb") as reader, aside.open("xb") as writer:
                while chunk := reader.read(CHUNK_BYTES):
                    digest.update(chunk)
                    writer.write(chunk)
                writer.flush()
                os.fsync(writer.fileno())
                _forget(writer.fileno())
            if digest.hexdigest() != sha256:
                raise Unreadable(f"file {source.name}", "does not have the hash that was recorded for it")
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return aside

    def _place(self, aside: Path, target: Path) -> None:
        """Give the file its name. `link` fails where the name is taken, `rename` would overwrite."""
        _make_folder(target.parent)
        with contextlib.suppress(FileExistsError):  # another process was quicker: its file is compared by the caller
            os.link(aside, target)
        aside.unlink()
        _sync_folder(target.parent)
        _sync_folder(aside.parent)


def hash_of(file: BinaryIO) -> str:
    """SHA-256 (hex) of what is left to read."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        _forget(file.fileno())
        return hash_of(file)


def _forget(descriptor: int) -> None:
    """Let the page cache go, so that the next read comes from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _make_folder(path: Path) -> None:
    """Make a folder and its parents durable: an entry is on disk when its folder is."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
