"""The conductor of inbound messages, whatever road they come by: journal, effect and answer in one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlmodel import Session, col, delete, select

from broker import clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey
from broker.model.messages import Message, MessageKey
from broker.mwl.commands import Command
from broker.ris_bridge import effects
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
    which a sender's entry may be mended and the same bytes sent again."""

    read: Callable[[Received], Read]
    refuse: Callable[[Received, BrokerError], bytes]
    unreadable: str = ""


@dataclass(frozen=True)
class Answer:
    """raw: for the sender. message_pk: its row of the journal, which notes that the answer reached the socket."""

    raw: bytes
    message_pk: int


def take(received: Received, road: Road, turn: Turn | None = None, *, again: bool = False) -> Answer:
    """The answer, already durable. Database trouble is raised (SQLAlchemyError, NoRoom): nothing was taken then.

    turn: its place among those that came, where its road knows that. again: a person wants it looked at once more."""
    turn = turn or TURNS.draw()
    try:
        return _take(received, road, turn, again)
    finally:
        turn.done()


def _take(received: Received, road: Road, turn: Turn, again: bool) -> Answer:
    known, read = db.read(_known, received), None
    if known is not None and _is_final(known, road, again):
        return _stored(known)
    try:
        read = road.read(received)
        commands = read.commands()
    except BrokerError as error:
        return db.run(_reject, received, road, read, error, again)
    except Exception as error:  # a message must not stop the ones behind it (security V14)
        return _fail(received, road, read, error, again)
    turn.wait(read.keys, received.settings.limits.database_wait_seconds_max)
    try:
        return db.run(_apply, received, road, read, commands, again)
    except BrokerError as error:
        return db.run(_reject, received, road, read, error, again)
    except Exception as error:
        return _fail(received, road, read, error, again)


def _fail(received: Received, road: Road, read: Read | None, error: Exception, again: bool) -> Answer:
    if isinstance(error, SQLAlchemyError) and not isinstance(error, DataError | IntegrityError):
        raise error  # the database's trouble, not this message's
    log.get().error("message.failed", type=received.type, peer=received.peer, exc_info=error)
    told = BrokerError("message", "cannot be processed, see the broker's log")
    return db.run(_reject, received, road, read, told, again)


# The journal


def _known(session: Session, received: Received) -> Message | None:
    """The row of the same bytes, when they came before."""
    return session.exec(
        select(Message).where(
            Message.sender == received.sender,
            Message.control_id == received.control_id,
            Message.sha256 == received.digest,
        )
    ).first()


def _is_final(row: Message, road: Road, again: bool) -> bool:
    """AA, and AE about the content: the same bytes get the same answer (conformance.md 5.8). All other refusals are
    about us or our configuration, which a person may have mended; so are bytes that are no text in the sender's set.
    A person's wish to see it again goes for every refusal, and never for what was applied."""
    if row.state == "APPLIED":
        return True
    if again:
        return False
    return row.error_code in ABOUT_CONTENT and row.error_place != road.unreadable


def _stored(row: Message) -> Answer:
    return Answer(row.answer, row.key)


def _begin(session: Session, received: Received, road: Road, again: bool) -> Message:
    """The row that takes the outcome: RECEIVED, or final where the same bytes were just answered elsewhere."""
    said: dict[str, Any] = {"peer": received.peer, "message_time": received.time, "type": received.type}
    known = _known(session, received)
    if known is None:
        row = Message(
            protocol=received.protocol, sender=received.sender, control_id=received.control_id, raw=received.raw,
            sha256=received.digest, received_at=clock.now(), **said,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row
    row = db.lock(session, Message, known.key)
    if not _is_final(row, road, again):
        row.state = advance(MESSAGE, row.state, "replay")
        row.sqlmodel_update(said)
    return row


def _apply(
    session: Session, received: Received, road: Road, read: Read, commands: Sequence[Command], again: bool
) -> Answer:
    row = _begin(session, received, road, again)
    if row.state != "RECEIVED":
        return _stored(row)
    notes = read.notes + (("control id reused",) if _refuse_reuse(session, received) else ())
    cause = effects.Cause(clock.now(), read.actor, received.settings.site, received.settings.limits, row.key)
    done = [effects.carry_out(session, command, cause) for command in commands]
    row.became = "; ".join((*dict.fromkeys(one.words for one in done), *notes))
    row.order_pk = next((one.order_pk for one in reversed(done) if one.order_pk), None)
    row.state = advance(MESSAGE, row.state, "apply")
    row.error_code = row.error_place = row.error_text = row.noted = ""
    row.answer, row.answer_sent = read.answer(None, done), False
    _file(session, row, read)
    return _stored(row)


def _refuse_reuse(session: Session, received: Received) -> bool:
    """A control id used for other content at the same time is an error; at another time a counter that restarts."""
    times = session.exec(
        select(Message.message_time).where(
            Message.sender == received.sender,
            Message.control_id == received.control_id,
            Message.sha256 != received.digest,
        )
    ).all()
    if received.time in times:
        raise DuplicateKey("MSH^1^10", "this message control ID was used for another message")
    return bool(times)


def _reject(
    session: Session, received: Received, road: Road, read: Read | None, error: BrokerError, again: bool
) -> Answer:
    row = _begin(session, received, road, again)
    if row.state != "RECEIVED":
        return _stored(row)
    log.get().warning("message.rejected", type=received.type, peer=received.peer, code=error.err, place=error.place)
    row.state = advance(MESSAGE, row.state, "reject")
    _file(session, row, read)
    said = error.err, error.place, error.text
    if said != (row.error_code, row.error_place, row.error_text):
        row.error_code, row.error_place, row.error_text = said
        row.answer = read.answer(error, ()) if read else road.refuse(received, error)
        row.answer_sent = False
    return _stored(row)


def _file(session: Session, row: Message, read: Read | None) -> None:
    """By what the message is found: only as far as it could be read."""
    if read is None:
        return
    row.mapping = read.mapping
    session.exec(delete(MessageKey).where(col(MessageKey.message_pk) == row.key))
    if read.keys:
        keys = [{"message_pk": row.key, "kind": kind, "value": value} for kind, value in sorted(read.keys)]
        session.execute(insert(MessageKey), keys)
