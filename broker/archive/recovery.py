"""What a crash left, put right before any port opens (durability.md 1.4). A kill in here is harmless: every step looks
at the disk and the rows as they are.

What the commit left (half copies, files of what is stored already) is found by its own next pass, archive/commit.py."""

import datetime as dt
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from sqlmodel import Session, col, select

from broker import audit, clock, db, log
from broker.archive import ingest
from broker.archive.header import read_header
from broker.archive.intake import accept
from broker.archive.part10 import read_meta
from broker.archive.staging import Staged, Staging
from broker.archive.store import chunks
from broker.config import Settings
from broker.errors import BrokerError
from broker.model.images import Instance

BATCH = 500


@dataclass
class Report:
    """swept: objects that were never whole. adopted: whole ones that had no row. copies: of objects known already.
    unreadable: put among the refused. missing: rows whose file is gone, which must not happen."""

    swept: int = 0
    adopted: int = 0
    copies: int = 0
    unreadable: int = 0
    missing: int = 0

    def counts(self) -> dict[str, int]:
        return asdict(self)


def recover(settings: Settings, staging: Staging) -> Report:
    report = Report()
    for part in staging.incoming.iterdir():
        part.unlink()
        report.swept += 1
    staging.prune_refused()
    _find_missing(staging, report)  # before the orphans: one of them may be what is missed
    for keys in _batches(staging.keys()):
        for key in sorted(set(keys) - db.read(ingest.with_row, keys)):
            _adopt(settings, staging, key, report)
    return report


def _find_missing(staging: Staging, report: Report) -> None:
    after = 0
    while rows := db.read(_staged_rows, staging.node, after):
        after = rows[-1][0]
        gone = [pk for pk, key in rows if not staging.path(key).is_file()]
        if gone:
            db.run(_mark_missing, gone, now=clock.now())
            log.get().critical("instance.missing", instances=gone)
            report.missing += len(gone)


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


def _mark_missing(session: Session, pks: Sequence[int], *, now: dt.datetime) -> None:
    for instance in session.exec(select(Instance).where(col(Instance.pk).in_(pks)).with_for_update()).all():
        instance.missing = True
        session.add(instance)
        audit.record(
            session, "instance.missing", f"instance:{instance.key}", actor="broker", now=now, outcome="lost",
            file=instance.staged_key,
        )  # fmt: skip


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch
