"""Reads of the journal, for the command line and the API, and the note that an answer went out.

A search takes milliseconds at a million messages because it never looks at many: the rarest thing that is asked for
leads by an index that gives the newest first, and what is looked at for one page has a limit. A page that is not full
for that reason says where the search goes on."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, Engine, Select, exists, func, literal_column, union
from sqlalchemy.orm import defer
from sqlmodel import Session, col, delete, or_, select, update

from broker import clock, db
from broker.config import Settings
from broker.errors import InvalidValue, UnknownKey
from broker.model.messages import Message, MessageKey
from broker.ris_bridge.hl7 import road, view
from broker.ris_bridge.hl7.keys import KEYS_MAX
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX
from broker.states import MESSAGE, states_of

STATES = sorted(states_of(MESSAGE))
REFUSED = ("REJECTED", "DISMISSED")
KINDS = ("accession", "patient", "placer", "filler", "appointment", "study")  # of a MessageKey
COLUMNS = ("sender", "state", "protocol", "error_code")
FIRST_LOOK = 4  # rows for each that is wanted, before more are looked at
TYPES_MAX = 64  # different ones in the journal that a message code without its event is looked for among
# Rows are numbered almost in the order of their time: a clock may have been set back, a transaction may have waited.
CLOCKS_APART = dt.timedelta(minutes=10)
AT_ONCE = 200  # messages that are forgotten in one transaction
Lead = list[Select[Any]]  # parts of one index each, which give keys of messages


@dataclass(frozen=True)
class Wanted:
    """What a search asks for; empty: whatever. number: a key of any kind. type: `ORM^O01`, or `ORM` for all its events.
    since, until: of the time of receipt, both included."""

    number: str = ""
    accession: str = ""
    patient: str = ""
    placer: str = ""
    filler: str = ""
    appointment: str = ""
    study: str = ""
    sender: str = ""
    type: str = ""
    state: str = ""
    protocol: str = ""
    error_code: str = ""
    since: dt.datetime | None = None
    until: dt.datetime | None = None

    def __post_init__(self) -> None:
        if self.state and self.state not in STATES:
            raise InvalidValue("state", f"no such state; states are {', '.join(STATES)}")


FILTERS = tuple(field.name for field in fields(Wanted))
TIMES = ("since", "until")


def wanted(said: dict[str, str], zone: str) -> Wanted:
    """said: by filter; a time without its zone is of `zone`. Raises InvalidValue naming the filter."""
    times: dict[str, Any] = {name: _moment(name, said.get(name, ""), zone) for name in TIMES}
    return Wanted(**{**said, **times})


def _moment(place: str, text: str, zone: str) -> dt.datetime | None:
    if not text:
        return None
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or not dt.MINYEAR < at.year < dt.MAXYEAR:
        raise InvalidValue(place, "must be a time such as 2025-12-01T09:00:00+09:00 (+ is %2B in an address)")
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo(zone))


def find(
    session: Session, wanted: Wanted, *, limit: int, looked_at: int, after: int = 0, oldest_first: bool = False
) -> tuple[list[Message], int | None]:
    """At most `limit` messages without their bytes, the newest first, and after which one to go on; None: these were
    all. looked_at: rows, for one page."""
    tests = _tests(wanted)
    name, lead = _rarest(session, _leads(session, wanted), looked_at)
    rest = [test for key, test in tests.items() if key != name]
    low, high = _span(session, wanted)
    if after:
        low, high = (max(low, after), high) if oldest_first else (low, min(high, after))
    order = col(Message.pk) if oldest_first else col(Message.pk).desc()
    for looked in (min(limit * FIRST_LOOK, looked_at), looked_at) if rest else (limit,):
        found = _keys(lead, low, high, looked, oldest_first)
        query = select(Message).where(col(Message.pk).in_(select(found.c.pk)), *rest).order_by(order).limit(limit)
        rows = list(session.exec(query.options(defer(Message.raw), defer(Message.answer))).all())  # type: ignore[arg-type]
        if len(rows) == limit:
            return rows, rows[-1].key
        last = func.max(found.c.pk) if oldest_first else func.min(found.c.pk)
        seen, end = session.execute(select(func.count(), last).select_from(found)).one()
        if seen < looked:
            return rows, None
    return rows, end


def _tests(wanted: Wanted) -> dict[str, ColumnElement[bool]]:
    """For each thing asked for: whether a row of the journal has it."""
    tests: dict[str, ColumnElement[bool]] = {}
    for name in ("number", *KINDS):
        if value := getattr(wanted, name)[:KEY_CHARACTERS_MAX]:
            key = [col(MessageKey.message_pk) == Message.pk, col(MessageKey.value) == value]
            tests[name] = exists().where(*key, *([] if name == "number" else [col(MessageKey.kind) == name]))
    for name in COLUMNS:
        if value := getattr(wanted, name)[:KEY_CHARACTERS_MAX]:
            tests[name] = getattr(Message, name) == value
    if wanted.type:
        tests["type"] = or_(
            Message.type == wanted.type, col(Message.type).startswith(wanted.type + "^", autoescape=True)
        )
    if wanted.since:
        tests["since"] = col(Message.received_at) >= wanted.since
    if wanted.until:
        tests["until"] = col(Message.received_at) <= wanted.until
    return tests


def _leads(session: Session, wanted: Wanted) -> dict[str, Lead]:
    """For each thing asked for that has an index: the parts of it that hold those rows."""
    leads: dict[str, Lead] = {}
    for name in ("number", *KINDS):
        if value := getattr(wanted, name)[:KEY_CHARACTERS_MAX]:
            kinds = KINDS if name == "number" else (name,)
            leads[name] = [
                select(MessageKey.message_pk).where(MessageKey.value == value, MessageKey.kind == kind)
                for kind in kinds
            ]
    for name in ("sender", "state", "protocol"):
        if value := getattr(wanted, name)[:KEY_CHARACTERS_MAX]:
            leads[name] = [select(Message.pk).where(getattr(Message, name) == value)]
    if wanted.error_code:  # whatever was refused is one of these
        leads["refused"] = [select(Message.pk).where(Message.state == state) for state in REFUSED]
    if wanted.type and (types := _types(session, wanted.type)) is not None:
        leads["type"] = [select(Message.pk).where(Message.type == one) for one in types]
    return leads


def _types(session: Session, wanted: str) -> list[str] | None:
    """Types of the journal that are meant; None: too many different ones. One step into the index for each."""
    if "^" in wanted:
        return [wanted]
    first = select(func.min(Message.type).label("type"), literal_column("1").label("n")).cte("types", recursive=True)
    following = select(func.min(Message.type)).where(col(Message.type) > first.c.type).scalar_subquery()
    walk = first.union_all(select(following, first.c.n + 1).where(first.c.type.is_not(None), first.c.n <= TYPES_MAX))
    types = [one for one in session.execute(select(walk.c.type)).scalars() if one is not None]
    if len(types) > TYPES_MAX:
        return None
    return [one for one in types if one == wanted or one.startswith(wanted + "^")] or [wanted]


def _rarest(session: Session, leads: dict[str, Lead], looked_at: int) -> tuple[str, Lead]:
    """The one with the fewest rows, as far as they are counted."""
    if not leads:
        return "", [select(Message.pk)]
    if len(leads) == 1:
        return next(iter(leads.items()))

    def rows(lead: Lead) -> int:
        parts = [part.limit(looked_at).subquery() for part in lead]
        return sum(session.execute(select(func.count()).select_from(part)).scalar_one() for part in parts)

    return min(leads.items(), key=lambda one: rows(one[1]))


def _keys(lead: Lead, low: int, high: int, limit: int, oldest_first: bool) -> Any:
    """Keys of the next `limit` messages of these parts, between two others."""
    parts = []
    for part in lead:
        (pk,) = part.selected_columns
        ordered = part.where(pk > low, pk < high).order_by(pk if oldest_first else pk.desc()).limit(limit).subquery()
        parts.append(select(ordered.c[0].label("pk")))
    if len(parts) == 1:
        return parts[0].subquery()
    together = union(*parts).subquery()
    order = together.c.pk if oldest_first else together.c.pk.desc()
    return select(together.c.pk).order_by(order).limit(limit).subquery()


def _span(session: Session, wanted: Wanted) -> tuple[int, int]:
    """Between which keys the messages of that time are, with some more on either side."""
    low, high = 0, 2**63 - 1
    received = col(Message.received_at)
    if wanted.since:
        before = select(Message.pk).where(received < wanted.since - CLOCKS_APART).order_by(received.desc()).limit(1)
        low = session.exec(before).first() or low
    if wanted.until:
        later = select(Message.pk).where(received > wanted.until + CLOCKS_APART).order_by(received).limit(1)
        high = session.exec(later).first() or high
    return low, high


def messages(
    session: Session, wanted: Wanted, *, now: dt.datetime, limit: int, looked_at: int, after: int = 0,
    oldest_first: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One page. next: after which message it goes on."""
    rows, following = find(session, wanted, limit=limit, looked_at=looked_at, after=after, oldest_first=oldest_first)
    return {"items": [summary(row, now) for row in rows], "next": following}


def exceptions(session: Session, *, now: dt.datetime, looked_at: int) -> dict[str, Any]:
    """What waits for a person: how many messages are refused, since when the oldest waits, and of which kinds (of the
    newest `looked_at`), the most frequent first."""
    refused = select(Message.pk).where(Message.state == "REJECTED")
    count, first = session.execute(select(func.count(), func.min(Message.pk)).where(Message.state == "REJECTED")).one()
    oldest = session.exec(select(Message.received_at).where(Message.pk == first)).first()
    newest = refused.order_by(col(Message.pk).desc()).limit(looked_at).subquery()
    kind = (Message.sender, Message.type, Message.error_code, Message.error_place)
    groups = session.execute(
        select(*kind, func.count().label("n"), func.min(Message.received_at))  # type: ignore[call-overload]
        .where(col(Message.pk).in_(select(newest.c.pk)))
        .group_by(*kind)
        .order_by(literal_column("n").desc(), func.min(Message.pk))
    ).all()
    return {
        "refused": count,
        "oldest_seconds": _age(oldest, now) if oldest else None,
        "kinds": [
            {"sender": sender, "type": type_, "error_code": code, "error_place": place, "count": n,
             "oldest_seconds": _age(since, now)}
            for sender, type_, code, place, n, since in groups
        ],
    }  # fmt: skip


def message(session: Session, pk: int, *, settings: Settings, language: str, now: dt.datetime) -> dict[str, Any]:
    """With its bytes and its answer, as they are, as text, and segment by segment with the names of its fields."""
    row = get(session, pk)
    keys = session.exec(
        select(MessageKey).where(MessageKey.message_pk == row.key).order_by(col(MessageKey.pk)).limit(KEYS_MAX)
    )
    limit = settings.limits.journal_segments_max
    raw, answer = (
        view.show(one, row.protocol, settings.hl7.character_set, override, language, limit)
        for override in [road.character_set(session, row, settings)]
        for one in (row.raw, row.answer)
    )
    return {
        **summary(row, now),
        "keys": [{"kind": key.kind, "value": key.value} for key in keys],
        **{f"raw{name}": value for name, value in raw.items()},
        **{f"answer{name}": value for name, value in answer.items()},
    }


def get(session: Session, pk: int) -> Message:
    row = session.get(Message, pk)
    if row is None:
        raise UnknownKey("message_id", "no such message")
    return row


def note_sent(session: Session, pks: Collection[int]) -> None:
    """Their answers reached the socket."""
    session.exec(update(Message).where(col(Message.pk).in_(pks)).values(answer_sent=True))


_seen: tuple[Engine, int] | None = None  # the newest refused message when strangers were last looked for


def work(settings: Settings) -> None:
    """One pass: whoever is not registered must not fill the disk."""
    global _seen
    newest = db.engine(), db.read(_newest_refused)
    if newest == _seen:
        return
    while db.run(forget_strangers, settings.limits.unknown_sender_messages_max):
        pass
    _seen = newest


def _newest_refused(session: Session) -> int:
    return session.exec(select(func.max(Message.pk)).where(Message.state == "REJECTED")).one() or 0


def forget_strangers(session: Session, keep: int) -> int:
    """The refused messages of senders that are not registered, but for the newest `keep`; how many went, at most
    AT_ONCE."""
    found = select(Message.pk).where(Message.state == "REJECTED", Message.error_place == road.SENDER)
    pks = session.exec(found.order_by(col(Message.pk).desc()).offset(keep).limit(AT_ONCE)).all()
    session.exec(delete(MessageKey).where(col(MessageKey.message_pk).in_(pks)))
    session.exec(delete(Message).where(col(Message.pk).in_(pks)))
    return len(pks)


def summary(row: Message, now: dt.datetime) -> dict[str, Any]:
    """age_seconds: how long it has been waiting for a person; None: it is not."""
    return {
        "id": row.pk, "received_at": clock.iso(row.received_at), "protocol": row.protocol, "type": row.type,
        "sender": row.sender, "peer": row.peer, "control_id": row.control_id, "state": row.state,
        "age_seconds": _age(row.received_at, now) if row.state == "REJECTED" else None,
        "error_code": row.error_code, "error_place": row.error_place, "error_text": row.error_text,
        "became": row.became, "mapping": row.mapping, "noted": row.noted, "order_id": row.order_pk,
        "sha256": row.sha256, "answer_sent": row.answer_sent,
    }  # fmt: skip


def _age(since: dt.datetime, now: dt.datetime) -> float:
    return round((now - since).total_seconds(), 1)
