"""The conductor of inbound messages: journal, effect and acknowledgement in one transaction, answered after it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlmodel import Session, col, select

from broker import access, clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey, NotAllowed, Unreadable, Unsupported
from broker.model.messages import Message as Journal
from broker.model.site import Sender
from broker.mwl import orders, patients
from broker.ris_bridge.hl7 import ack, charset, message, orders_in, patients_in
from broker.ris_bridge.hl7.message import Header, Message
from broker.ris_bridge.hl7.mllp import Answer
from broker.states import MESSAGE, advance

LOOPBACK = ("127.0.0.1", "::1")
KEY_CHARACTERS_MAX = 256  # of sender and control ID each: an index of PostgreSQL takes 2,700 bytes
ABOUT_CONTENT = ("100", "101", "102", "103", "204", "205")  # table 0357
Effect = Callable[[Session, Message, "Received", int], tuple[str, int | None]]


@dataclass(frozen=True)
class Received:
    """sender, control_id, digest: its key (conformance.md 5.8). header: as its sender writes it, once that is known."""

    raw: bytes
    peer: str
    settings: Settings
    header: Header
    sender: str
    control_id: str
    digest: str


def receive_hl7(raw: bytes, peer: str, settings: Settings) -> Answer | None:
    """The acknowledgement, already durable; None = close without an answer (no MSH, or our own trouble)."""
    try:
        head = message.header(raw, settings.hl7.character_set)
    except Unreadable:
        log.get().warning("hl7.unreadable", peer=peer, bytes=len(raw))
        return None
    key = head.sender[:KEY_CHARACTERS_MAX], head[10][:KEY_CHARACTERS_MAX], hashlib.sha256(raw).hexdigest()
    try:
        return _receive(Received(raw, peer, settings, head, *key))
    except SQLAlchemyError as error:  # never AR: many senders do not send again after it (durability.md 1.7)
        log.get().error("hl7.database", peer=peer, kind=type(error).__name__)
        return None


def _receive(received: Received) -> Answer:
    known, msg = db.read(_known, received), None
    if known is not None and _is_final(known):
        return _stored(known)
    try:
        sender, head = _sender(db.read(_senders), received)
        received = replace(received, header=head)
        message.check(head)
        effect = _effect(head.type)
        msg = message.parse(
            received.raw, received.settings.limits, received.settings.hl7.character_set,
            sender.character_set if sender else "",
        )  # fmt: skip
        return db.run(_apply, received, msg, effect)
    except BrokerError as error:
        return db.run(_reject, received, error, msg)
    except Exception as error:  # a message must not stop the ones behind it (security V14)
        if isinstance(error, SQLAlchemyError) and not isinstance(error, DataError | IntegrityError):
            raise  # the database's trouble, not this message's
        log.get().exception("hl7.failed", type=received.header.type, peer=received.peer)
        return db.run(_reject, received, BrokerError("message", "cannot be processed, see the broker's log"), msg)


# The sender


def _senders(session: Session) -> Sequence[Sender]:
    return session.exec(select(Sender).order_by(col(Sender.pk))).all()


def _sender(senders: Sequence[Sender], received: Received) -> tuple[Sender | None, Header]:
    """Who sends, and MSH in that sender's character set. The most specific entry counts.

    Raises NotAllowed for an unknown sender, or a known one that may not send this type."""
    settings = received.settings.hl7
    heads = {
        one: message.header(received.raw, settings.character_set, one) if one else received.header
        for one in {sender.character_set for sender in senders}
    }
    fitting = [sender for sender in senders if _fits(sender, heads[sender.character_set], received.peer)]
    if not fitting:
        policy = settings.unknown_sender or ("accept" if received.peer in LOOPBACK else "reject")
        if policy == "reject":
            raise NotAllowed("MSH^1^3", "this sender is not registered here")
        return None, received.header
    sender = max(fitting, key=_specificity)
    head = heads[sender.character_set]
    if sender.messages and not {head.type, head.type.split("^")[0]} & set(sender.messages):
        raise NotAllowed("MSH^1^9", "this sender may not send this message type")
    return sender, head


def _fits(sender: Sender, head: Header, peer: str) -> bool:
    return (
        sender.application in ("", head[3])
        and sender.facility in ("", head[4])
        and (not sender.address or peer in access.addresses(sender.address))
    )


def _specificity(sender: Sender) -> tuple[bool, bool, bool]:
    return bool(sender.address), bool(sender.application), bool(sender.facility)


# The journal


def _known(session: Session, received: Received) -> Journal | None:
    """The row of the same bytes, when they came before."""
    return session.exec(
        select(Journal).where(
            Journal.sender == received.sender,
            Journal.control_id == received.control_id,
            Journal.sha256 == received.digest,
        )
    ).first()


def _is_final(row: Journal) -> bool:
    """AA, and AE about the content: the same bytes get the same answer (conformance.md 5.8). All other refusals are
    about us or our configuration, which a person may have mended; so are bytes that are no text in the sender's set."""
    if row.state == "APPLIED":
        return True
    code = row.answer.partition(b"\r")[2][4:6]  # MSA-1
    return code == b"AE" and row.error_code in ABOUT_CONTENT and row.error_place != charset.PLACE


def _stored(row: Journal) -> Answer:
    return Answer(row.answer, row.key)


def _begin(session: Session, received: Received) -> Journal:
    """The row that takes the outcome: RECEIVED, or final where the same bytes were just answered elsewhere."""
    said: dict[str, Any] = {"peer": received.peer, "message_time": received.header[7], "type": received.header.type}
    known = _known(session, received)
    if known is None:
        row = Journal(
            sender=received.sender, control_id=received.control_id, raw=received.raw, sha256=received.digest,
            received_at=clock.now(), **said,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row
    row = db.lock(session, Journal, known.key)
    if not _is_final(row):
        row.state = advance(MESSAGE, row.state, "replay")
        row.sqlmodel_update(said)
    return row


def _apply(session: Session, received: Received, msg: Message, effect: Effect) -> Answer:
    row = _begin(session, received)
    if row.state != "RECEIVED":
        return _stored(row)
    reused = _refuse_reuse(session, received)
    row.became, row.order_pk = effect(session, msg, received, row.key)
    flags = [
        name for name, set_ in (("control id reused", reused), ("vendor characters", msg.vendor_characters)) if set_
    ]
    row.became = "; ".join((row.became, *flags))
    row.state = advance(MESSAGE, row.state, "apply")
    row.error_code = row.error_place = row.error_text = ""
    return _answer(row, received, None, msg)


def _refuse_reuse(session: Session, received: Received) -> bool:
    """A control id used for other content at the same time is an error; at another time a counter that restarts."""
    times = session.exec(
        select(Journal.message_time).where(
            Journal.sender == received.sender,
            Journal.control_id == received.control_id,
            Journal.sha256 != received.digest,
        )
    ).all()
    if received.header[7] in times:
        raise DuplicateKey("MSH^1^10", "this message control ID was used for another message")
    return bool(times)


def _reject(session: Session, received: Received, error: BrokerError, msg: Message | None) -> Answer:
    row = _begin(session, received)
    if row.state != "RECEIVED":
        return _stored(row)
    log.get().warning("hl7.rejected", type=received.header.type, peer=received.peer, code=error.err, place=error.place)
    row.state = advance(MESSAGE, row.state, "reject")
    said = error.err, error.place, error.text
    if said == (row.error_code, row.error_place, row.error_text):
        return _stored(row)
    row.error_code, row.error_place, row.error_text = said
    return _answer(row, received, error, msg)


def _answer(row: Journal, received: Received, error: BrokerError | None, msg: Message | None) -> Answer:
    now = clock.now().astimezone(ZoneInfo(received.settings.site.timezone))
    row.answer, row.answer_sent = ack.build(received.header, error, now=now, msg=msg), False
    return _stored(row)


# Effects: what it became, in words without patient data, and the order


def _orders(session: Session, msg: Message, received: Received, journal_pk: int) -> tuple[str, int | None]:
    site = received.settings.site
    order = None
    commands = orders_in.to_commands(msg, site)
    for command in commands:
        order = orders.apply(
            session, command, now=clock.now(), actor=f"hl7:{msg.header.sender}", site=site, message_pk=journal_pk
        )
    assert order is not None
    return f"{commands[0].control} order {order.key}", order.key


def _patients(session: Session, msg: Message, received: Received, _journal_pk: int) -> tuple[str, int | None]:
    for command in patients_in.to_commands(msg, received.settings.site):
        patient = patients.apply(session, command, now=clock.now(), actor=f"hl7:{msg.header.sender}")
    return f"{command.event} patient {patient.key}", None


EFFECTS: dict[str, Effect] = {
    **dict.fromkeys(("ORM^O01", "OMG^O19", "OMI^O23"), _orders),
    **{f"ADT^{event}": _patients for event in (*patients_in.UPDATES, *patients_in.MERGES)},
}


def _effect(kind: str) -> Effect:
    if kind in EFFECTS:
        return EFFECTS[kind]
    code = kind.split("^")[0]
    if code in {known.split("^")[0] for known in EFFECTS}:
        raise Unsupported("MSH^1^9", "this trigger event is not supported", err="201")
    raise Unsupported("MSH^1^9", "this message type is not supported", err="200")
