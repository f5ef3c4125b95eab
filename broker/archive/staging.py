"""Where received objects become durable before they are acknowledged (durability.md 1.4, steps 2 to 5).

    in/<uuid>.part           being received: worth nothing, swept at start
    <2>/<2>/<uuid>.dcm       whole, checked, fsynced: ours from here on
    refused/<uuid>.dcm       what could not be taken, for whoever has to find out why (reconciliation.md row 42)

Our own File Meta is written around bytes that are otherwise the peer's; no string of a peer is part of any path."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from broker import ids, log
from broker.archive.header import Header, check_command, read_header
from broker.archive.part10 import file_meta
from broker.archive.volume import Volume
from broker.config import Settings
from broker.dicom.service import Command, Peer
from broker.errors import BrokerError, Unreadable

SPACE_CHECK_BYTES = 16 * 1024 * 1024  # of one object between two looks at the free space


@dataclass(frozen=True)
class Staged:
    """A durable object without a row yet. key: its file below the staging folder of `node`. sha256, size: of the data
    set as received, without our File Meta."""

    node: str
    key: str
    sha256: str
    size: int
    transfer_syntax: str
    header: Header
    source_ae: str
    source_address: str


class Staging:
    """The folder of this node. node: who it is, the same for as long as its data folder lives."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.staging_dir
        self.limits = settings.limits
        self.incoming, self.refused = self.root / "in", self.root / "refused"
        for folder in (self.incoming, self.refused):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.root)
        self.node = _node_id(settings.data_dir / "node.id")
        self.volume = Volume(self.incoming, self.limits)

    def open_sink(self, peer: Peer, command: Command, transfer_syntax: str) -> "StagingSink":
        """Raises NoRoom while the volume is full or bad."""
        self.volume.admit()
        with self.no_room():
            return StagingSink(self, peer, command, transfer_syntax)

    def path(self, key: str) -> Path:
        return self.root / key

    def keys(self) -> Iterator[str]:
        """Every durable object on disk."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]")):
            yield from (str(file.relative_to(self.root)) for file in sorted(folder.glob("*.dcm")))

    def keep(self, part: Path) -> str:
        """Give a whole, fsynced file its name; its key. Durable when this returns."""
        name = ids.file_name()
        key = f"{name[:2]}/{name[2:4]}/{name}.dcm"
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.rename(target)
        try:
            # Any of them may be new, made just now by this thread or by one that has not synced it yet.
            for folder in (target.parent, target.parent.parent, self.root):
                sync_folder(folder)
        except OSError:
            target.unlink(missing_ok=True)
            raise
        return key

    def remove(self, key: str) -> None:
        """Where a crash brings the file back, or it does not go, recovery finds it once more."""
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            log.get().warning("staging.not_removed", file=key, errno=error.errno)

    def refuse(self, path: Path, error: BrokerError) -> None:
        """Put aside what could not be taken. It is kept for so long from now on, however old it is."""
        name = ids.file_name()
        os.utime(path)
        path.rename(self.refused / f"{name}.dcm")
        log.get().warning("instance.refused", file=name, place=error.place, reason=error.text)
        self.prune_refused()

    def prune_refused(self) -> None:
        """Newest first, as long as age, number and bytes allow."""
        limits, oldest = self.limits, time.time() - self.limits.refused_keep_seconds
        files = []
        for path in self.refused.iterdir():
            with suppress(OSError):  # pruned by another thread; a file that cannot be looked at stays
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        total = 0
        for number, (at, size, path) in enumerate(sorted(files, reverse=True)):
            total += size
            if number >= limits.refused_objects_max or total > limits.refused_bytes_max or at < oldest:
                with suppress(OSError):
                    path.unlink()

    @contextmanager
    def no_room(self) -> Iterator[None]:
        """Whatever the volume says is told as "send again later"."""
        try:
            yield
        except OSError as error:
            raise self.volume.failed(error) from None


class StagingSink:
    """One object on its way in: written and hashed as it comes, never held in memory. staged: after finish()."""

    def __init__(self, staging: Staging, peer: Peer, command: Command, transfer_syntax: str) -> None:
        self.staged: Staged | None = None
        self._staging, self._peer, self._command, self._transfer_syntax = staging, peer, command, transfer_syntax
        self._digest, self._size, self._check_at = hashlib.sha256(), 0, SPACE_CHECK_BYTES
        self._path = staging.incoming / f"{ids.file_name()}.part"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(self._file, file_meta(command, transfer_syntax, peer.ae_title))
        except BaseException:
            self.abort()
            raise

    def write(self, data: memoryview) -> None:
        with self._clean_up():
            self._size += len(data)
            if self._size > self._staging.limits.dicom_object_bytes_max:
                raise Unreadable("data set", "is longer than dicom_object_bytes_max")
            if self._size >= self._check_at:
                self._check_at += SPACE_CHECK_BYTES
                self._staging.volume.admit()
            self._digest.update(data)
            _write(self._file, data)

    def finish(self) -> None:
        """Durable, checked, named. Raises NoRoom, Unreadable, MissingUid, InvalidValue, OtherInstance; nothing of it
        is left then but what the refused folder keeps."""
        with self._clean_up():
            os.fsync(self._file)
            self._close()
            header = self._checked()
            key = self._staging.keep(self._path)
        self._staging.volume.saw(self._size)
        self.staged = Staged(
            self._staging.node, key, self._digest.hexdigest(), self._size, self._transfer_syntax, header,
            self._peer.ae_title, self._peer.address,
        )  # fmt: skip

    def abort(self) -> None:
        with suppress(OSError):  # the volume may be gone; what stays is swept at the next start
            self._close()
            self._path.unlink(missing_ok=True)

    def _checked(self) -> Header:
        try:
            header = read_header(self._path, self._transfer_syntax, self._staging.limits)
            check_command(header, self._command.sop_class, self._command.sop_instance)
        except BrokerError as error:
            self._staging.refuse(self._path, error)
            raise
        return header

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    @contextmanager
    def _clean_up(self) -> Iterator[None]:
        try:
            with self._staging.no_room():
                yield
        except BrokerError:
            self.abort()
            raise


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _node_id(path: Path) -> str:
    """Read, or made at the first start: two processes that start at once must agree."""
    aside = path.with_name(f"{path.name}.{ids.file_name()}")
    try:
        with aside.open("x") as file:
            file.write(ids.file_name())
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(aside, path)
            sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)
    return path.read_text()


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
