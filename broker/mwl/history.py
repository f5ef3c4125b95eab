"""Reads of what devices asked and were shown (mwl/query_log.py): the last queries, the list as it was, and the job that
forgets what is older than `worklist.queries_days`."""

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import case, delete, exists, func, not_, tuple_
from sqlmodel import Session, col, select

from broker import access, clock, db
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.tree import Tree
from broker.errors import InvalidValue, Unreadable
from broker.model.orders import StepVersion
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.mwl import answers, as_shown, keys, learned, listed, questions, worklist
from broker.mwl.answers import Look
from broker.mwl.funnel import name_of

RUNS_MAX = 20  # queries of one device that are looked at
KEYS_MAX = 500  # different ones of a day, among which its questions are looked for
AT_ONCE = 500  # queries that are forgotten in one pass
AHEAD = "lies ahead: what has been shown is asked for"
ACCESSION, SPS_ID = 0x00080050, 0x00400009
Shown = tuple[int, int, str]  # step, version, status


@dataclass(frozen=True)
class Run:
    """Queries of one device with the same keys and the same end (model/worklist.py). keys: None where they could not be
    read; with the (0008,0005) that the device declared."""

    pk: int
    keys_pk: int
    keys: Tree | None
    status: int
    character_set: str
    considered: int
    removed: tuple[tuple[str, int], ...]
    items: tuple[Shown, ...]
    address: str
    called: str
    first_at: dt.datetime
    last_at: dt.datetime
    times: int


_RUN = (
    db.columns(WorklistQuery, WorklistKeys.dataset, WorklistKeys.character_set, WorklistAnswer.items)
    .join(WorklistKeys, col(WorklistKeys.pk) == col(WorklistQuery.keys_pk))
    .join(WorklistAnswer, col(WorklistAnswer.pk) == col(WorklistQuery.answer_pk))
)


def last_runs(session: Session, ae_title: str, limit: int = RUNS_MAX) -> list[Run]:
    """Of that device, the newest first; with the questions of a day that stand, however many searches came since."""
    newest = (col(WorklistQuery.last_at).desc(), col(WorklistQuery.pk).desc())
    rows = session.execute(_RUN.where(WorklistQuery.ae_title == ae_title).order_by(*newest).limit(limit))
    runs = [_run(*row) for row in rows]
    standing = _standing(session, ae_title, runs) if len(runs) == limit else []
    more = session.execute(_RUN.where(col(WorklistQuery.pk).in_(standing)).order_by(*newest)) if standing else ()
    return [*runs, *(_run(*row) for row in more)]


def _standing(session: Session, ae_title: str, runs: Sequence[Run]) -> list[int]:
    """Keys of the rows behind `runs`, the newest first: of each question that stands and is not among them."""
    of_a_day = (
        WorklistQuery.ae_title == ae_title,
        col(WorklistQuery.last_at) >= runs[0].last_at - questions.RECENT,
        col(WorklistQuery.last_at) <= runs[-1].last_at,
        col(WorklistQuery.keys_pk).not_in({run.keys_pk for run in runs}),
    )
    newest = func.max(col(WorklistQuery.last_at)).desc()
    found = db.columns(WorklistQuery.keys_pk).where(*of_a_day).group_by(col(WorklistQuery.keys_pk)).order_by(newest)
    pks = [row.keys_pk for row in session.execute(found.limit(KEYS_MAX))]
    asked = select(WorklistKeys).where(col(WorklistKeys.pk).in_(pks))
    known = {row.key: _keys(row.dataset, row.character_set) for row in session.exec(asked)}
    stand = [pk for pk in pks if (query := known[pk]) is not None and not questions.searched_by(query)]
    return [_newest(session, ae_title, pk) for pk in stand[: questions.STANDING_MAX]]


def _newest(session: Session, ae_title: str, keys_pk: int) -> int:
    of_keys = db.columns(WorklistQuery.pk).where(WorklistQuery.ae_title == ae_title, WorklistQuery.keys_pk == keys_pk)
    newest = (col(WorklistQuery.last_at).desc(), col(WorklistQuery.pk).desc())
    return int(session.execute(of_keys.order_by(*newest).limit(1)).scalar_one())


def _run(row: WorklistQuery, dataset: bytes, declared: str, items: Sequence[Sequence[Any]]) -> Run:
    return Run(
        pk=row.key, keys_pk=row.keys_pk, keys=_keys(dataset, declared), status=row.status,
        character_set=row.character_set, considered=row.considered,
        removed=tuple((str(name), int(count)) for name, count in row.removed),
        items=tuple((int(step), int(version), str(status)) for step, version, status in items), address=row.address,
        called=row.called, first_at=row.first_at, last_at=row.last_at, times=row.times,
    )  # fmt: skip


def _keys(dataset: bytes, declared: str) -> Tree | None:
    with contextlib.suppress(Unreadable):
        return learned.keys_of(dataset, declared) if dataset else None
    return None


# The list as it was


def moment(place: str, text: str, zone: str, now: dt.datetime) -> dt.datetime:
    """`2025-12-01T09:42` or `…+09:00`; `09:42` alone is today's. A time without its zone is of `zone`. Raises
    InvalidValue."""
    today = now.astimezone(ZoneInfo(zone)).date()
    try:
        at = dt.datetime.fromisoformat(f"{today}T{text}" if len(text) <= len("09:42:00") and ":" in text else text)
    except ValueError:
        at = None
    if at is None or not dt.MINYEAR < at.year < dt.MAXYEAR:
        raise InvalidValue(
            place,
            "must be a time such as 2025-12-01T09:42 or 09:42"
            + (" (+ is %2B in an address)" if place == "time" else ""),
        )
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))


def shown_at(session: Session, ae_title: str, at: dt.datetime, settings: Settings, now: dt.datetime) -> dict[str, Any]:
    """What the device had been shown at that time: of each of its questions the last answer until then, the newest
    question first. Raises InvalidValue for a time to come.

    Items are as they were, in the character set of the answer; what else the device cannot take is as it is now."""
    if at > now:
        raise InvalidValue("time", AHEAD)
    title = listed.device(ae_title)
    runs = _runs_until(session, title, at)
    left, queries = settings.limits.list_items_max, []
    for run in runs[:RUNS_MAX]:
        queries.append(_as_it_was(session, run, title, settings, left))
        left -= len(queries[-1]["items"])
    says = _found(session, title, at, runs, settings, now)
    return {"ae_title": title, "at": clock.iso(at), "says": says, "queries": queries}


def _runs_until(session: Session, ae_title: str, at: dt.datetime) -> list[Run]:
    """The last one of each set of keys, and one more than are told."""
    until = (WorklistQuery.ae_title == ae_title, col(WorklistQuery.first_at) <= at)
    place = func.row_number().over(
        partition_by=col(WorklistQuery.keys_pk),
        order_by=(col(WorklistQuery.first_at).desc(), col(WorklistQuery.pk).desc()),
    )
    latest = db.columns(WorklistQuery.pk, place.label("place")).where(*until).subquery()
    asked = db.columns(latest.c.pk).where(latest.c.place == 1)
    goes_on = case((col(WorklistQuery.last_at) >= at, 1), else_=0)  # a standing question may have begun long ago
    newest = (goes_on.desc(), col(WorklistQuery.last_at).desc(), col(WorklistQuery.pk).desc())
    rows = session.execute(_RUN.where(col(WorklistQuery.pk).in_(asked)).order_by(*newest).limit(RUNS_MAX + 1))
    return sorted([_run(*row) for row in rows], key=lambda run: (min(run.last_at, at), run.pk), reverse=True)


def _found(
    session: Session, ae_title: str, at: dt.datetime, runs: Sequence[Run], settings: Settings, now: dt.datetime
) -> str:
    days = settings.worklist.queries_days
    kept_since = now - dt.timedelta(days=days)
    if at < kept_since:
        return f"the log does not reach back so far: queries are kept for {days:g} days (worklist.queries_days)"
    if len(runs) > RUNS_MAX:
        return f"{ae_title} asked more than {RUNS_MAX} different questions: the newest {RUNS_MAX} are told"
    if runs:
        return f"{len(runs)} different questions until then, the newest first"
    first = session.exec(select(func.min(WorklistQuery.first_at)).where(WorklistQuery.ae_title == ae_title)).one()
    zone = ZoneInfo(settings.site.timezone)
    later = f"; its first query was at {first.astimezone(zone):%Y-%m-%d %H:%M:%S}" if first else " or later"
    unknown = "" if access.directory().kind(ae_title) else "; no device, alias or group has this AE title now"
    return f"{ae_title} had asked nothing until then{later}{unknown}"


def _as_it_was(session: Session, run: Run, ae_title: str, settings: Settings, limit: int) -> dict[str, Any]:
    """limit: of items that are told."""
    look, told = _look(run, ae_title, settings), run.items[:limit]
    return {
        "query_id": run.pk, "first_at": clock.iso(run.first_at), "last_at": clock.iso(run.last_at), "times": run.times,
        "status": f"{run.status:04X}", "character_set": run.character_set, "keys": asked(run.keys),
        "considered": run.considered, "removed": [list(one) for one in run.removed], "count": len(run.items),
        "items": [_item(one, data, run.keys, look) for one, data in zip(told, _data(session, told), strict=True)],
    }  # fmt: skip


def _data(session: Session, shown: Sequence[Shown]) -> list[bytes]:
    """Of each of those versions; empty where it is not kept."""
    place = tuple_(col(StepVersion.step_pk), col(StepVersion.version))
    wanted = place.in_([(step, version) for step, version, _ in shown])
    rows = session.execute(db.columns(StepVersion.step_pk, StepVersion.version, StepVersion.dataset).where(wanted))
    found = {(row.step_pk, row.version): row.dataset for row in rows}
    return [found.get((step, version), b"") for step, version, _ in shown]


def asked(query: Tree | None) -> list[str]:
    """The keys that were to match, by name."""
    if query is None:
        return []
    return [name_of(tag) for part in (keys.step_keys(query), query) for tag in part if keys.plain(part, tag)]


def _look(run: Run, ae_title: str, settings: Settings) -> Look:
    now = answers.look_of(access.find_node(ae_title), settings, run.keys or {})
    if not run.character_set or now.character_sets[0] == run.character_set:
        return now
    return replace(now, character_sets=(run.character_set,))


def _item(shown: Shown, dataset: bytes, query: Tree | None, look: Look) -> dict[str, Any]:
    """shown: None where it cannot be told any more."""
    step_pk, version, status = shown
    record = answers.item_of(dataset, status) if dataset else {}
    made = _answer(dataset, status, query, look) if dataset and query is not None else b""
    return {
        "accession_number": keys.plain(record, ACCESSION), "sps_id": keys.plain(keys.step_keys(record), SPS_ID),
        "step_id": step_pk, "version": version, "state": status,
        "shown": as_shown.in_words(tree.read(made, tree.EXPLICIT_LE, answers.LIMITS)) if made else None,
    }  # fmt: skip


def _answer(dataset: bytes, status: str, query: Tree, look: Look) -> bytes:
    """Empty: it does not go into that character set, so that was not the one it was answered in."""
    step = keys.step_keys(answers.item_of(dataset, status))
    stations = worklist.shown_stations(step, access.directory())
    return answers.answer(dataset, status, keys.shape(query), tree.EXPLICIT_LE, look, None, stations).dataset


def lines(found: dict[str, Any], zone: dt.tzinfo = dt.UTC) -> Iterator[str]:
    """The same as a page, with the times of that zone."""
    yield found["says"]
    for query in found["queries"]:
        asked_for = ", ".join(query["keys"]) or "nothing in particular"
        yield (
            f"asked for {asked_for} from {_local(query['first_at'], zone)} to {_local(query['last_at'], zone)},"
            f" {query['times']} times: "
            f"{query['status']}, {query['count']} items in {query['character_set'] or 'no character set'}"
        )
        for item in query["items"]:
            yield f"  {item['accession_number']} {item['sps_id']}, version {item['version']}, {item['state']}"
            if item["shown"] is None:
                yield "    how it looked cannot be told any more"
            yield from (f"    {label}: {text}" for label, text in (item["shown"] or {}).items())


def _local(moment: str, zone: dt.tzinfo) -> str:
    return dt.datetime.fromisoformat(moment).astimezone(zone).isoformat(" ", "seconds")


# Forgetting


def work(settings: Settings) -> int:
    """One pass; how many runs went, at most AT_ONCE."""
    before = clock.now() - dt.timedelta(days=settings.worklist.queries_days)
    return db.run(forget, before) if db.read(_old, before, 1) else 0


def _old(session: Session, before: dt.datetime, limit: int) -> Sequence[WorklistQuery]:
    query = select(WorklistQuery).where(col(WorklistQuery.last_at) < before)
    return session.exec(query.order_by(col(WorklistQuery.last_at)).limit(limit)).all()


def forget(session: Session, before: dt.datetime) -> int:
    """Runs that ended before, with the keys and answers that are no other's."""
    old = _old(session, before, AT_ONCE)
    session.execute(delete(WorklistQuery).where(col(WorklistQuery.pk).in_([one.key for one in old])))
    for table, column, used in (
        (WorklistKeys, col(WorklistQuery.keys_pk), {one.keys_pk for one in old}),
        (WorklistAnswer, col(WorklistQuery.answer_pk), {one.answer_pk for one in old}),
    ):
        pk: Any = col(table.pk)
        # Whoever records such a query now waits for the end of this, and then makes them again.
        locked = session.execute(db.columns(pk).where(pk.in_(sorted(used))).order_by(pk).with_for_update()).all()
        unused = not_(exists().where(column == pk))
        session.execute(delete(table).where(pk.in_([one.pk for one in locked]), unused))
    return len(old)
