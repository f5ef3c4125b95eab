"""The conductor of inbound messages, whatever road they come by: journal, effect and answer in one transaction."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import bindparam, delete, exists
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlmodel import Session, col

from broker import clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey, NoRoom, Parked
from broker.model.messages import Message, MessageKey
from broker.mwl.commands import Command
from broker.ris_bridge import effects
from broker.ris_bridge.crashes import CRASHES
from broker.ris_bridge.effects import Done
from broker.ris_bridge.turns import TURNS, Keys, Turn
from broker.states import MESSAGE, advance

KEY_CHARACTERS_MAX = 256  # of sender and control ID each: an index of PostgreSQL takes 2,700 bytes
ABOUT_CONTENT = ("100", "101", "102", "103", "204", "205")  # table 0357


@dataclass(frozen=True)
class Received:
    """One message as it came. sender, control_id, digest (SHA-256 of raw): its key (conformance.md 5.8). time: its own,
    as it writes it."""

    raw: bytes
    protocol: str
    peer: str
    settings: Settings
    sender: str
    control_id: str
    digest: str
    type: str
    time: str = ""


@dataclass(frozen=True)
class Read:
    """What a road could read. keys: by which it is found, and which messages must wait for it. commands: may raise the
    error that the sender is told. answer: the bytes for its sender. notes: what a person should know, without patient
    data."""

    keys: Keys
    commands: Callable[[], Sequence[Command]]
    answer: Callable[[BrokerError | None, Sequence[Done]], bytes]
    actor: str
    notes: tuple[str, ...] = ()
    mapping: str = ""


@dataclass(frozen=True)
class Road:
    """How messages of one protocol are read, and refused where they cannot be. unreadable: the ERR-2 of a refusal after
    which a sender's entry may be mended and the same bytes sent again. may_follow: what it speaks of may come after it
    (ERR-3 204), and the same bytes are then looked at again. keys: by which it is found where it could not be read."""

    read: Callable[[Received], Read]
    refuse: Callable[[Received, BrokerError], bytes]
    unreadable: str = ""
    may_follow: bool = False
    keys: Callable[[bytes], Keys] = lambda _: frozenset()


@dataclass(frozen=True)
class Answer:
    """raw: for the sender. message_pk: its row of the journal, which notes that the answer reached the socket."""

    raw: bytes
    message_pk: int


def take(
    received: Received, road: Road, turn: Turn | None = None, *, again: bool = False, parked: bool = False
) -> Answer:
    """The answer, already durable. Database trouble is raised (SQLAlchemyError, NoRoom): nothing was taken then.

    turn: its place among those that came, where its road knows that; otherwise it gets one when it has been read, and
    holds nobody up until then. again: a person wants it looked at once more. parked: that very message,
    although the program died of it."""
    try:
        if CRASHES.is_poison(received.digest) and not parked:
            return db.run(_reject, received, road, None, Parked("message"), again)
        return _take(received, road, turn, again)
    finally:
        if turn:
            turn.done()


def _take(received: Received, road: Road, turn: Turn | None, again: bool) -> Answer:
    """Bytes that came before are not looked for first: the journal's own key finds them when they are written.

    While they are read they are watched, and no longer: what happens to the process after that is not their doing, and
    a sender whose message is in work whenever somebody kills it sends no poison."""
    read = None
    try:
        with CRASHES.watch(received.digest):
            read = road.read(received)
            commands = read.commands()
    except BrokerError as error:
        return db.run(_reject, received, road, read, error, again)
    except Exception as error:  # a message must not stop the ones behind it (security V14)
        return _fail(received, road, read, error, again)
    turn = turn or TURNS.draw()
    try:
        turn.wait(read.keys, received.settings.limits.database_wait_seconds_max)
        return _in_turn(received, road, read, commands, again)
    finally:
        turn.done()


def _in_turn(received: Received, road: Road, read: Read, commands: Sequence[Command], again: bool) -> Answer:
    try:
        return db.run(_apply, received, road, read, commands, again)
    except BrokerError as error:
        return db.run(_reject, received, road, read, error, again)
    except Exception as error:
        return _fail(received, road, read, error, again)


def _fail(received: Received, road: Road, read: Read | None, error: Exception, again: bool) -> Answer:
    if is_trouble(error):
        raise error
    log.get().error("message.failed", type=received.type, peer=received.peer, exc_info=error)
    told = BrokerError("message", "cannot be processed, see the broker's log")
    return db.run(_reject, received, road, read, told, again)


def is_trouble(error: Exception) -> bool:
    """Ours, and not this message's: it may be taken later."""
    unsent = isinstance(error, StatementError) and not isinstance(error, DBAPIError)  # a value that no row can hold
    about_content = unsent or isinstance(error, DataError | IntegrityError)
    return isinstance(error, SQLAlchemyError | NoRoom) and not about_content


# The journal


@dataclass(frozen=True)
class Entry:
    """A row of the journal, as far as it decides what happens. received_at: when it first came; None: it is new."""

    pk: int
    state: str = "RECEIVED"
    answer: bytes = b""
    error_code: str = ""
    error_place: str = ""
    error_text: str = ""
    received_at: dt.datetime | None = None


_same_id = (col(Message.sender) == bindparam("sender"), col(Message.control_id) == bindparam("control_id"))
KNOWN = db.Prepared(
    db.columns(*(getattr(Message, field.name) for field in fields(Entry)))
    .where(*_same_id, Message.sha256 == bindparam("sha256"))
    .with_for_update()
)
# By what was taken: anybody may have sent what was refused.
_others = exists().where(*_same_id, col(Message.sha256) != bindparam("sha256"), col(Message.state) == "APPLIED")
REUSED = db.Prepared(
    db.columns(
        _others.label("ever"), _others.where(col(Message.message_time) == bindparam("time")).label("at_that_time")
    )
)
UNFILE = db.Prepared(delete(MessageKey).where(col(MessageKey.message_pk) == bindparam("message_pk")))


def _is_final(entry: Entry, road: Road, again: bool) -> bool:
    """AA, and AE about the content: the same bytes get the same answer (conformance.md 5.8). All other refusals are
    about us or our configuration, which a person may have mended; so are bytes that are no text in the sender's set.
    A person's wish to see it again goes for every refusal, and never for what was applied."""
    if entry.state == "APPLIED":
        return True
    if again or (road.may_follow and entry.error_code == "204"):
        return False
    return entry.error_code in ABOUT_CONTENT and entry.error_place != road.unreadable


def _begin(session: Session, received: Received, road: Road, again: bool) -> Entry:
    """The row that takes the outcome: RECEIVED, or final where the same bytes were answered before."""
    key = {"sender": received.sender, "control_id": received.control_id, "sha256": received.digest}
    said = {"peer": received.peer, "message_time": received.time, "type": received.type}
    came = {"protocol": received.protocol, "raw": received.raw, "received_at": clock.now()}
    pk = db.insert_new(session, Message, {**key, **said, **came})
    if pk is not None:
        return Entry(pk)
    entry = Entry(**KNOWN.first(session, **key)._asdict())
    if _is_final(entry, road, again):
        return entry
    entry = replace(entry, state=advance(MESSAGE, entry.state, "replay"))
    db.update(session, Message, entry.pk, {**said, "state": entry.state, "noted": ""})
    return entry


def _apply(
    session: Session, received: Received, road: Road, read: Read, commands: Sequence[Command], again: bool
) -> Answer:
    entry = _begin(session, received, road, again)
    if entry.state != "RECEIVED":
        return Answer(entry.answer, entry.pk)
    notes = read.notes + (("control id reused",) if _refuse_reuse(session, received) else ())
    site, limits = received.settings.site, received.settings.limits
    cause = effects.Cause(clock.now(), read.actor, site, limits, entry.pk, entry.received_at)
    done = [effects.carry_out(session, command, cause) for command in commands]
    _file(session, entry, read.keys)
    answer = read.answer(None, done)
    outcome = {
        "state": advance(MESSAGE, entry.state, "apply"), "answer": answer, "answer_sent": False,
        "became": "; ".join((*dict.fromkeys(one.words for one in done), *notes)),
        "order_pk": next((one.order_pk for one in reversed(done) if one.order_pk), None),
        "error_code": "", "error_place": "", "error_text": "", "mapping": read.mapping,
    }  # fmt: skip
    db.update(session, Message, entry.pk, outcome)
    return Answer(answer, entry.pk)


def _refuse_reuse(session: Session, received: Received) -> bool:
    """A control id used for other content at the same time is an error; at another time a counter that restarts."""
    key = {"sender": received.sender, "control_id": received.control_id, "sha256": received.digest}
    used = REUSED.first(session, **key, time=received.time)
    if used.at_that_time:
        raise DuplicateKey("MSH^1^10", "this message control ID was used for another message")
    return bool(used.ever)


def _reject(
    session: Session, received: Received, road: Road, read: Read | None, error: BrokerError, again: bool
) -> Answer:
    entry = _begin(session, received, road, again)
    if entry.state != "RECEIVED":
        return Answer(entry.answer, entry.pk)
    log.get().warning("message.rejected", type=received.type, peer=received.peer, code=error.err, place=error.place)
    outcome: dict[str, Any] = {"state": advance(MESSAGE, entry.state, "reject")}
    _file(session, entry, read.keys if read else road.keys(received.raw))
    if read is not None:
        outcome["mapping"] = read.mapping
    answer = entry.answer
    if (error.err, error.place, error.text) != (entry.error_code, entry.error_place, entry.error_text):
        answer = read.answer(error, ()) if read else road.refuse(received, error)
        outcome |= {
            "error_code": error.err, "error_place": error.place, "error_text": error.text, "answer": answer,
            "answer_sent": False,
        }  # fmt: skip
    db.update(session, Message, entry.pk, outcome)
    return Answer(answer, entry.pk)


def _file(session: Session, entry: Entry, keys: Keys) -> None:
    """By what the message is found."""
    if entry.received_at:
        UNFILE.rows(session, message_pk=entry.pk)
    for kind, value in sorted(keys):
        db.append(session, MessageKey, {"message_pk": entry.pk, "kind": kind, "value": value})
