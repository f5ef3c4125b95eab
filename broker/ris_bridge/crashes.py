"""Messages that the process does not survive (security V14): noted while they are read, parked after a few deaths.

What is noted outlives the process and not the computer (nothing is fsynced): a power cut says nothing about a message.
Each process has a file of its own in the data folder, locked for as long as it lives; who starts next counts what the
dead have left in theirs. One file has the counts of all; it is written at a start, and when a message is forgotten."""

import contextlib
import fcntl
import itertools
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from broker import log

FOLDER = "in-work"
COUNTS = "deaths.json"
DIGEST_BYTES = 32  # SHA-256
SLOTS = 512  # messages of one process in work at once; further ones are not noted
COUNTED_MAX = 1_000  # messages whose deaths are remembered, oldest out first
FREE = bytes(DIGEST_BYTES)


class Crashes:
    """Until it is opened it notes nothing and knows of none."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._work: _Work | None = None
        self._deaths: dict[str, int] = {}
        self._deaths_max = 0

    def open(self, data_dir: Path, deaths_max: int) -> Callable[[], None]:
        """Counts what the dead left, and notes from now on. The returned function ends it and leaves nothing.

        A folder that cannot be written stops nobody: then nothing is noted, and the log says so."""
        folder = data_dir / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            with _alone(folder):
                deaths = _count(folder)
                work = _Work(folder)
        except OSError as error:
            log.get().warning("crashes.not_watched", folder=str(folder), reason=error.strerror)
            return lambda: None
        self._folder, self._work, self._deaths, self._deaths_max = folder, work, deaths, deaths_max

        def close() -> None:
            if self._work is work:
                self._folder, self._work, self._deaths = None, None, {}
            work.close()

        return close

    def is_poison(self, digest: str) -> bool:
        """Whether it was in work at so many deaths, and has not been answered since, also by another process. digest:
        SHA-256, in hexadecimal."""
        if self._folder is None or self._deaths.get(digest, 0) < self._deaths_max:
            return False
        with contextlib.suppress(OSError):
            self._deaths = _read(self._folder)
        return self._deaths.get(digest, 0) >= self._deaths_max

    @contextlib.contextmanager
    def watch(self, digest: str) -> Iterator[None]:
        """It is in work. Survived, its deaths are forgotten; those of a poison only where nothing was raised."""
        work = self._work
        slot = work.note(bytes.fromhex(digest)) if work else None
        well = False
        try:
            yield
            well = True
        finally:
            if work and slot is not None:
                work.clear(slot)
            if digest in self._deaths and (well or not self.is_poison(digest)):
                self._forget(digest)

    def _forget(self, digest: str) -> None:
        self._deaths = {one: deaths for one, deaths in self._deaths.items() if one != digest}
        if self._folder is None:
            return
        try:
            with _alone(self._folder):
                counts = _read(self._folder)
                if counts.pop(digest, None):
                    _write(self._folder, counts)
        except OSError as error:  # it is counted on at the next start
            log.get().warning("crashes.not_forgotten", reason=error.strerror)


class _Work:
    """One process's file: slots with the digests of what is in work. Mapped: to note one is no system call, which would
    give the processor to another thread."""

    def __init__(self, folder: Path) -> None:
        number, name = tempfile.mkstemp(".work", dir=folder)
        self._file, self._path = os.fdopen(number, "r+b"), Path(name)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.write(FREE * SLOTS)  # a hole that the volume has no room for would end us when it is filled
            self._file.flush()
            self._slots = mmap.mmap(number, 0)
        except OSError:
            self.close()
            raise
        self._free = list(range(0, SLOTS * DIGEST_BYTES, DIGEST_BYTES))

    def note(self, digest: bytes) -> int | None:
        try:
            slot = self._free.pop()
        except IndexError:
            return None
        self._slots[slot : slot + DIGEST_BYTES] = digest
        return slot

    def clear(self, slot: int) -> None:
        self._slots[slot : slot + DIGEST_BYTES] = FREE
        self._free.append(slot)

    def close(self) -> None:
        """The slots stay: a thread that has not ended may yet clear one."""
        self._path.unlink(missing_ok=True)
        self._file.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process or thread starts, or forgets, meanwhile."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _count(folder: Path) -> dict[str, int]:
    """The deaths of all, those among them that nobody has counted yet."""
    counts = _read(folder)
    left = {path: digests for path in sorted(folder.glob("*.work")) if (digests := _left(path)) is not None}
    for digest in itertools.chain.from_iterable(left.values()):
        counts[digest] = counts.pop(digest, 0) + 1  # the newest stand last
        log.get().warning("message.in_work_at_a_death", sha256=digest, deaths=counts[digest])
    if any(left.values()):
        _write(folder, dict(list(counts.items())[-COUNTED_MAX:]))
    for path in left:
        path.unlink()  # only now: a full disk must not make us forget
    return _read(folder)


def _left(path: Path) -> set[str] | None:
    """What a process had in work when it died; None of one that lives."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        slots = file.read(SLOTS * DIGEST_BYTES)
    found = (slots[n : n + DIGEST_BYTES] for n in range(0, len(slots), DIGEST_BYTES))
    return {one.hex() for one in found if one != FREE}


def _read(folder: Path) -> dict[str, int]:
    """What is no list of counts is none: to look at a message again costs a death, to look at none costs all."""
    try:
        found = json.loads((folder / COUNTS).read_text("utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {digest: deaths for digest, deaths in items if isinstance(deaths, int)}


def _write(folder: Path, counts: dict[str, int]) -> None:
    """Aside and renamed: half of it would be none of it. Without counts there is no file."""
    aside = folder / (COUNTS + ".new")
    if not counts:
        (folder / COUNTS).unlink(missing_ok=True)
        return
    aside.write_text(json.dumps(counts, indent=0), "utf-8")
    aside.replace(folder / COUNTS)


CRASHES = Crashes()
