"""What a crash left, put right before any port opens (durability.md 1.4). A kill in here is harmless: every step looks
at the disk and the rows as they are. Each file stands for itself: one that cannot be put right stays where it is for
the next start, and keeps no other waiting. Only a database that is away stops the start.

What the commit left (half copies, files of what is stored already) is found by its own next pass, archive/commit.py."""

import datetime as dt
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from sqlmodel import Session, col, select

from broker import audit, clock, db, log
from broker.archive import ingest
from broker.archive.header import read_header
from broker.archive.intake import accept
from broker.archive.part10 import read_meta
from broker.archive.staging import Staged, Staging
from broker.archive.store import chunks
from broker.config import Settings
from broker.errors import BrokerError, DatabaseAway
from broker.model.images import Instance

BATCH = 500


@dataclass
class Report:
    """swept: objects that were never whole. adopted: whole ones that had no row. copies: of objects known already.
    unreadable: put among the refused. missing: rows whose file is gone, which must not happen. left: files that could
    not be put right, see the log."""

    swept: int = 0
    adopted: int = 0
    copies: int = 0
    unreadable: int = 0
    missing: int = 0
    left: int = 0

    def counts(self) -> dict[str, int]:
        return asdict(self)


def recover(settings: Settings, staging: Staging) -> Report:
    report = Report()
    for part in staging.incoming.iterdir():
        try:
            part.unlink()
            report.swept += 1
        except OSError as error:
            _leave(report, part.name, error)
    staging.prune_refused()
    _find_missing(staging, report)  # before the orphans: one of them may be what is missed
    for keys in _batches(staging.keys()):
        for key in sorted(set(keys) - db.read(ingest.with_row, keys)):
            try:
                _adopt(settings, staging, key, report)
            except DatabaseAway as error:
                db.read(ingest.with_row, [key])  # raises where it is away altogether, not only for this one
                _leave(report, key, error)
            except Exception as error:
                _leave(report, key, error)
    return report


def _leave(report: Report, file: str, error: Exception) -> None:
    report.left += 1
    reason = str(error) if isinstance(error, BrokerError) else ""
    log.get().exception("recovery.left", file=file, reason=reason)


def _find_missing(staging: Staging, report: Report) -> None:
    after = 0
    while rows := db.read(_staged_rows, staging.node, after):
        after = rows[-1][0]
        gone = {pk: key for pk, key in rows if _is_gone(staging, key)}
        if marked := db.run(_mark_missing, gone, partial(_is_gone, staging), now=clock.now()) if gone else []:
            log.get().critical("instance.missing", instances=marked)
            report.missing += len(marked)


def _is_gone(staging: Staging, key: str) -> bool:
    """Certainly: what cannot be looked at may be there."""
    try:
        staging.path(key).stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        log.get().error("instance.not_looked_at", file=key, errno=error.errno)
    return False


def _adopt(settings: Settings, staging: Staging, key: str, report: Report) -> None:
    """An orphan: durable, never acknowledged. Nothing is deleted unseen: only a copy of what is known goes away."""
    try:
        staged = _read(staging, key)
    except BrokerError as error:
        log.get().error("orphan.unreadable", file=key)
        staging.refuse(staging.path(key), error)
        report.unreadable += 1
        return
    registered = accept(settings, staging, staged, now=clock.now(), adopted=True)
    if registered.duplicate:
        report.copies += 1
    else:
        report.adopted += 1


def _read(staging: Staging, key: str) -> Staged:
    """What its sink would have made of the file."""
    path, digest, size = staging.path(key), hashlib.sha256(), 0
    with path.open("rb") as file:
        transfer_syntax, source_ae = read_meta(file)
        for chunk in chunks(file):
            digest.update(chunk)
            size += len(chunk)
    header = read_header(path, transfer_syntax, staging.limits)
    return Staged(staging.node, key, digest.hexdigest(), size, transfer_syntax, header, source_ae, "")


def _staged_rows(session: Session, node: str, after: int) -> Sequence[tuple[int, str]]:
    """(key, file) of the next instances whose only bytes are in the staging of this node."""
    query = (
        select(Instance.pk, Instance.staged_key)
        .where(Instance.staged_node == node, Instance.staged_key > "", Instance.store_key == "")
        .where(col(Instance.missing).is_(False), col(Instance.pk) > after)
        .order_by(col(Instance.pk))
        .limit(BATCH)
    )
    return [(pk, key) for pk, key in session.exec(query).all() if pk is not None]


def _mark_missing(
    session: Session, gone: Mapping[int, str], is_gone: Callable[[str], bool], *, now: dt.datetime
) -> list[int]:
    """Those that are, looked at again behind the lock: whoever moves the bytes changes the row first. It is the one
    look at a disk inside a transaction, and nobody else waits for it yet."""
    marked = []
    for instance in session.exec(select(Instance).where(col(Instance.pk).in_(gone)).with_for_update()).all():
        key = gone[instance.key]
        if instance.store_key or instance.staged_key != key or not is_gone(key):
            continue
        marked.append(instance.key)
        instance.missing = True
        session.add(instance)
        audit.record(
            session, "instance.missing", f"instance:{instance.key}", actor="broker", now=now, outcome="lost",
            file=instance.staged_key,
        )  # fmt: skip
    return marked


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch
