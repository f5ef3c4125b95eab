"""Queries and what they showed, as rows: the same keys and the same set of items are kept once (model/worklist.py)."""

import contextlib
import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, update
from sqlmodel import Session, col, select

from broker import db
from broker.config import Limits
from broker.dicom import tree
from broker.dicom.habits import Directory
from broker.errors import Unreadable
from broker.model.orders import OfferedItem, ScheduledStep
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.mwl import funnel, learned
from broker.mwl.plan import Plan
from broker.mwl.view import View

UTF_8 = "ISO_IR 192"
Key = tuple[str, int, int]  # AE title, step, version
Shown = tuple[tuple[int, int, str], ...]  # step, version, status, as they were sent


@dataclass(frozen=True)
class Source:
    """Who asks, and with which identifier. No hash of its bytes is made twice. identifier: None where it is too large
    to be kept."""

    ae_title: str
    called: str
    address: str
    identifier: bytes | None
    syntax: str


@dataclass(frozen=True)
class Asked:
    """One C-FIND. status: the final one. plan: None where the query could not be understood."""

    source: Source
    at: dt.datetime
    shown: Shown
    status: int
    character_set: str = ""
    plan: Plan | None = None
    view: View | None = None
    directory: Directory | None = None


@dataclass(eq=False)
class Run:
    """asked: the first of them. times: in all. written: how many of them the tables know. pk: of its row."""

    asked: Asked
    last_at: dt.datetime
    times: int = 1
    written: int = 0
    pk: int | None = None

    def goes_on_with(self, asked: Asked) -> bool:
        first = self.asked
        return (first.shown, first.status, first.character_set) == (asked.shown, asked.status, asked.character_set)


@dataclass(frozen=True)
class Batch:
    """What is to be written at once: runs with their times, as they are now. counts: of each new one, by its identity,
    what its keys remove."""

    runs: list[tuple[Run, int]]
    counts: dict[int, funnel.Counts]


AGAIN = db.Prepared(
    update(OfferedItem)
    .where(
        col(OfferedItem.ae_title) == bindparam("by"), col(OfferedItem.step_pk) == bindparam("step"),
        col(OfferedItem.version) == bindparam("of_version"),
    )
    .values(last_at=bindparam("at"), times=OfferedItem.times + bindparam("more"), updated_at=bindparam("at"))
)  # fmt: skip
LONGER = db.Prepared(
    update(WorklistQuery)
    .where(col(WorklistQuery.pk) == bindparam("key"))
    .values(last_at=bindparam("at"), times=bindparam("now"), updated_at=bindparam("at"))
)


def write(session: Session, batch: Batch) -> dict[int, int]:
    """Keys of the new rows, by run."""
    made = {id(run): _insert(session, run, times, batch.counts[id(run)]) for run, times in batch.runs if run.pk is None}
    longer = [{"key": run.pk, "at": run.last_at, "now": times} for run, times in batch.runs if run.pk is not None]
    if longer:
        LONGER.execute_many(session, longer)
    again = [
        {"by": run.asked.source.ae_title, "step": step_pk, "of_version": version, "at": run.last_at,
         "more": times - run.written}
        for run, times in sorted(batch.runs, key=lambda one: one[0].last_at)  # the latest time stays
        if times > run.written
        for step_pk, version, _ in run.asked.shown
    ]  # fmt: skip
    if again:
        AGAIN.execute_many(session, again)
    return made


def offer(session: Session, firsts: dict[Key, dt.datetime]) -> None:
    """What each device was shown for the first time, and when."""
    steps = {step_pk for _, step_pk, _ in firsts}
    alive = set(session.exec(select(ScheduledStep.pk).where(col(ScheduledStep.pk).in_(steps))).all())
    for (ae_title, step_pk, version), at in sorted(firsts.items()):
        if step_pk in alive:
            row = {"ae_title": ae_title, "step_pk": step_pk, "version": version, "first_at": at, "last_at": at}
            db.insert_new(session, OfferedItem, {**row, "times": 0})  # counted with its run


def read(session: Session, ae_title: str, zone: dt.tzinfo, limit: int) -> list[learned.Query]:
    """The last queries of that device, the newest first, but for those that could not be read."""
    run, recorded = WorklistQuery, WorklistKeys
    statement = (
        db.columns(run.first_at, run.last_at, run.times, recorded.dataset, recorded.character_set)
        .where(run.keys_pk == recorded.pk, run.ae_title == ae_title, recorded.dataset != b"")
        .order_by(col(run.last_at).desc(), col(run.pk).desc())
        .limit(limit)
    )
    queries = []
    for first_at, last_at, times, dataset, declared in session.execute(statement):
        with contextlib.suppress(Unreadable):
            keys = learned.keys_of(dataset, declared)
            queries.append(learned.Query(keys, first_at.astimezone(zone), last_at.astimezone(zone), times))
    return queries


def _insert(session: Session, run: Run, times: int, counts: funnel.Counts) -> int:
    asked, source = run.asked, run.asked.source
    items_ = [list(one) for one in asked.shown]
    return db.insert(
        session,
        WorklistQuery,
        {
            "ae_title": source.ae_title, "called": source.called, "address": source.address,
            "keys_pk": _keys(session, source),
            "answer_pk": _once(session, WorklistAnswer, json.dumps(items_).encode(), {"items": items_}),
            "status": asked.status, "character_set": asked.character_set, "considered": counts.considered,
            "removed": [list(one) for one in counts.removed], "first_at": asked.at, "last_at": run.last_at,
            "times": times,
        },
    )  # fmt: skip


def _once(session: Session, table: type[Any], content: bytes, values: dict[str, Any]) -> int:
    """The key of the row with this content."""
    digest = hashlib.sha256(content).hexdigest()
    known = session.exec(select(table.pk).where(table.digest == digest)).first()
    made = known or db.insert_new(session, table, {**values, "digest": digest})
    found: int = made or session.exec(select(table.pk).where(table.digest == digest)).one()
    return found


def _keys(session: Session, source: Source) -> int:
    """Of what cannot be read, or is too large, nothing is kept but that it was asked."""
    try:
        if source.identifier is None:
            raise Unreadable("identifier", "is too large to be kept")
        keys = tree.read(source.identifier, source.syntax, Limits(), any_charset=True)
        declared = str(keys.get(tree.CHARSET, ("CS", ""))[1]).replace("\0", " ")
        data = tree.write({**keys, tree.CHARSET: ("CS", UTF_8)}, tree.EXPLICIT_LE, (UTF_8,))
    except (Unreadable, ValueError):
        declared, data = "", b""
    return _once(session, WorklistKeys, f"{declared}\0".encode() + data, {"dataset": data, "character_set": declared})
