"""Watched folders: files of HL7 messages or CSV rows that somebody puts there, each message through the inbox.

A file is claimed by a rename into a folder of its own below `.claimed`, so that of several processes one has it; that
folder's time is the lease. It is read, and moved to `done`, or to `failed` with the reasons beside it. The inbox knows
what it took before: a file that is read twice, because a process died in the midst of it, has no second effect."""

import contextlib
import datetime as dt
import os
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from broker import clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, InvalidValue, NoRoom, Unreadable
from broker.model.messages import Message
from broker.model.site import Intake
from broker.ris_bridge import csv_road, inbox, intakes
from broker.ris_bridge.hl7 import batch, road
from broker.ris_bridge.inbox import Received, Road
from broker.ris_bridge.intakes import Turn

CLAIMED, DONE, FAILED = ".claimed", "done", "failed"
UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload")
NAME_BYTES_MAX = 200  # of a file, so that what is put behind it still makes a name
REASONS_MAX = 1_000  # told of one file


def work(settings: Settings) -> None:
    """One pass over the folders that are due."""
    until = time.monotonic() + settings.limits.intake_pass_seconds_max
    for intake in db.read(intakes.due, "folder", now=clock.now()):
        turn = db.run(intakes.claim, intake, now=clock.now(), seconds=settings.limits.lease_seconds)
        if turn is None:
            continue
        error = ""
        try:
            _empty(turn, settings, until)
        except NoRoom as trouble:
            error = trouble.text
        except OSError as trouble:
            error = f"the folder cannot be used: {trouble.strerror}"
            log.get().warning("intake.folder", intake=intake.name, kind=type(trouble).__name__)
        rest = 0.0 if time.monotonic() >= until else intake.every_seconds
        db.run(intakes.keep, turn, until=clock.now() + dt.timedelta(seconds=rest), error=error)


@dataclass
class Claim:
    """One file that is ours. folder: its own, whose time says since when."""

    folder: Path
    name: str
    home: Path
    renewed: float

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def renew(self, seconds: float) -> None:
        """Raises FileNotFoundError where somebody else has taken it over."""
        if time.monotonic() - self.renewed > seconds:
            os.utime(self.folder)
            self.renewed = time.monotonic()


def _empty(turn: Turn, settings: Settings, until: float) -> None:
    home = Path(turn.intake.path)
    for name in (CLAIMED, DONE, FAILED):
        (home / name).mkdir(exist_ok=True)
        if not stat.S_ISDIR((home / name).lstat().st_mode):
            raise NotADirectoryError(0, f"{name} is no folder")
    for claim in _claims(home, settings):
        _take(claim, turn.intake, settings)
        if time.monotonic() >= until:
            return


def _claims(home: Path, settings: Settings) -> Iterator[Claim]:
    """First what a dead process has left, then what is new and complete, the oldest first."""
    limits = settings.limits
    for left in _left(home / CLAIMED, limits.lease_seconds):
        folder = home / CLAIMED / uuid.uuid4().hex
        try:
            os.rename(left, folder)
        except FileNotFoundError:  # another process was faster
            continue
        os.utime(folder)
        names = os.listdir(folder)
        if not names:
            folder.rmdir()
        for name in names:
            yield Claim(folder, name, home, time.monotonic())
    for name, known in _complete(home, limits.intake_quiet_seconds):
        folder = home / CLAIMED / uuid.uuid4().hex
        folder.mkdir()
        try:
            os.rename(home / name, folder / name)
        except FileNotFoundError:  # another process was faster
            folder.rmdir()
            continue
        claim = Claim(folder, name, home, time.monotonic())
        if _trace(claim.path.lstat()) != known:
            _put_back(claim)  # it has become another file, or longer, since we looked
        else:
            yield claim


def _left(claimed: Path, lease_seconds: float) -> list[str]:
    found = []
    with os.scandir(claimed) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if (
                    entry.is_dir(follow_symlinks=False)
                    and time.time() - entry.stat(follow_symlinks=False).st_mtime > lease_seconds
                ):
                    found.append(entry.path)
    return found


def _complete(home: Path, quiet_seconds: float) -> list[tuple[str, tuple[int, ...]]]:
    """Names of regular files that nobody has touched for a while, and what tells each from another."""
    found = []
    with os.scandir(home) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower().endswith(UNFINISHED):
                continue
            with contextlib.suppress(FileNotFoundError):
                seen = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(seen.st_mode) and time.time() - seen.st_ctime >= quiet_seconds:
                    found.append((seen.st_mtime_ns, entry.name, _trace(seen)))
    return [(name, trace) for _, name, trace in sorted(found)]


def _trace(seen: os.stat_result) -> tuple[int, ...]:
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


# One file


def _take(claim: Claim, intake: Intake, settings: Settings) -> None:
    try:
        known = _trace(claim.path.lstat())
        reasons = _reasons(claim, intake, settings)
        is_whole = _trace(claim.path.lstat()) == known
    except (SQLAlchemyError, NoRoom):
        _put_back(claim)
        raise
    except FileNotFoundError:
        log.get().warning("intake.claim_lost", intake=intake.name)
        return
    if not is_whole:  # somebody still writes: what has been taken of it is not taken twice
        log.get().warning("intake.file_grew", intake=intake.name)
        _put_back(claim)
        return
    _finish(claim, reasons)
    log.get().info("intake.file", intake=intake.name, refused=len(reasons))


def _reasons(claim: Claim, intake: Intake, settings: Settings) -> list[str]:
    """Why not all of it was taken, without patient data."""
    reasons: list[str] = []
    try:
        raw, at = _bytes(claim.path, settings.limits.intake_file_bytes_max)
        for what, refusal in READERS[intake.format](raw, at, intake, settings):
            claim.renew(settings.limits.lease_seconds / 4)
            if refusal:
                reasons.append(f"{what}: {refusal}")
    except BrokerError as error:
        if isinstance(error, NoRoom):
            raise
        reasons.append(str(error))
    return reasons


def _bytes(path: Path, limit: int) -> tuple[bytes, dt.datetime]:
    """What is in it, and when that was written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable("file", f"cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        seen = os.fstat(descriptor)
        if not stat.S_ISREG(seen.st_mode):
            raise Unreadable("file", "is no regular file")
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise InvalidValue("file", f"is larger than {limit} bytes")
    return raw, dt.datetime.fromtimestamp(seen.st_mtime, dt.UTC)


def _hl7(raw: bytes, _at: dt.datetime, intake: Intake, settings: Settings) -> Iterator[tuple[str, str]]:
    """Of each message what it is, and why it was refused. Frames of MLLP are looked through."""
    plain = raw.replace(b"\x0b", b"").replace(b"\x1c\r", b"").replace(b"\x1c", b"") if b"\x1c" in raw else raw
    found = batch.split(plain, settings.limits.intake_file_rows_max)
    if not found.messages:
        yield "file", "holds no message"
    way = road.road_of(intakes.sender(intake))
    for number, one in enumerate(found.messages, 1):
        try:
            received = road.received(one, intakes.peer(intake), settings)
        except BrokerError as error:
            yield f"message {number}", str(error)
        else:
            yield f"message {number}", _refusal(received, way)
    for problem in found.problems:
        yield "batch", str(problem)


def _csv(raw: bytes, at: dt.datetime, intake: Intake, settings: Settings) -> Iterator[tuple[str, str]]:
    profile, rows_max = csv_road.profile_of(intake), settings.limits.intake_file_rows_max
    groups = csv_road.split(raw, intake.character_set, rows_max, settings.site, profile)
    if not groups:
        yield "file", "holds no row"
    way = csv_road.road_of(intake)
    for group in groups:
        refusal = _refusal(csv_road.received(group, intake, at, settings), way)
        yield f"order of line {group.lines[0]}", csv_road.in_file(refusal, group)


READERS = {"hl7": _hl7, "csv": _csv}


def _refusal(received: Received, way: Road) -> str:
    """Empty: it was taken. Who puts a file there again wants it looked at again."""
    try:
        answer = inbox.take(received, way, again=True)
    except Exception as error:  # a message must not stop the ones behind it (security V14)
        if inbox.is_trouble(error):
            raise
        log.get().exception("intake.failed", peer=received.peer)
        return "cannot be processed, see the broker's log"
    row = db.read(lambda session: session.get_one(Message, answer.message_pk))
    if row.state == "APPLIED":
        return ""
    where = f" at {row.error_place}" if row.error_place else ""
    return f"refused with {row.error_code}{where}: {row.error_text} (message {row.key} of the journal)"


# Where it goes


def _put_back(claim: Claim) -> None:
    """As if nobody had touched it. Where its name is taken by now, the lease brings it back to us."""
    with contextlib.suppress(OSError):
        _move(claim.path, claim.home / claim.name)
        claim.folder.rmdir()


def _finish(claim: Claim, reasons: list[str]) -> None:
    target = claim.home / (FAILED if reasons else DONE)
    name = short = os.fsdecode(os.fsencode(claim.name)[:NAME_BYTES_MAX])
    is_free = name == claim.name
    with contextlib.suppress(FileNotFoundError):  # another process has taken it over: it says how it ends
        while not (is_free and _is_put(claim, target / name, reasons)):
            name, is_free = f"{short}.{uuid.uuid4().hex[:8]}", True
        claim.folder.rmdir()


def _is_put(claim: Claim, path: Path, reasons: list[str]) -> bool:
    """Whether nobody had one of its names: the reasons stand there before the file does."""
    beside = path.with_name(f"{path.name}.reason.txt")
    try:
        if reasons:
            _write(beside, reasons)
    except FileExistsError:
        return False
    try:
        _move(claim.path, path)
    except FileExistsError:
        if reasons:
            beside.unlink()
        return False
    return True


def _move(source: Path, target: Path) -> None:
    """Raises FileExistsError rather than replace another file; where the file system has no links (vfat, some shares),
    one that comes at this very moment is not seen."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(0, "exists already") from None
        os.rename(source, target)
    else:
        source.unlink()


def _write(path: Path, reasons: list[str]) -> None:
    told = reasons[:REASONS_MAX] + ([f"and {len(reasons) - REASONS_MAX} more"] if len(reasons) > REASONS_MAX else [])
    aside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    aside.write_text("\n".join(told) + "\n", "utf-8")
    try:
        _move(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
