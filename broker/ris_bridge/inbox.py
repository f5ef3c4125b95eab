"""The conductor of inbound messages: journal, effect and acknowledgement in one transaction, answered after it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from broker import clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey, NotAllowed, Unreadable, Unsupported
from broker.model.messages import Message as Journal
from broker.model.site import Sender
from broker.mwl import orders, patients
from broker.ris_bridge.hl7 import ack, message, orders_in, patients_in
from broker.ris_bridge.hl7.message import Header, Message
from broker.states import MESSAGE, advance

LOOPBACK = ("127.0.0.1", "::1")
Effect = Callable[[Session, Message, "Received", int], tuple[str, int | None]]


@dataclass(frozen=True)
class Received:
    raw: bytes
    peer: str
    header: Header
    settings: Settings
    digest: str


def receive_hl7(raw: bytes, peer: str, settings: Settings) -> bytes | None:
    """The acknowledgement, already durable; None = close without an answer (no MSH, or our own trouble)."""
    try:
        head = message.header(raw)
    except Unreadable:
        log.get().warning("hl7.unreadable", peer=peer, bytes=len(raw))
        return None
    received = Received(raw, peer, head, settings, hashlib.sha256(raw).hexdigest())
    try:
        return _receive(received)
    except SQLAlchemyError as error:  # never AR: many senders do not send again after it (durability.md 1.7)
        log.get().error("hl7.database", peer=peer, kind=type(error).__name__)
        return None


def _receive(received: Received) -> bytes:
    known = db.read(_stored, received)
    if known is not None:
        return known
    try:
        sender = db.read(_sender, received)
        message.check(received.header)
        effect = _effect(received.header.type)
        msg = message.parse(
            received.raw, received.settings.limits, received.settings.hl7.character_set,
            sender.character_set if sender else "",
        )  # fmt: skip
        return db.run(_apply, received, msg, effect)
    except BrokerError as error:
        return db.run(_reject, received, error)
    except SQLAlchemyError:
        raise
    except Exception:  # a message must not stop the ones behind it (security V14)
        log.get().exception("hl7.failed", type=received.header.type, peer=received.peer)
        return db.run(_reject, received, Unreadable("message", "cannot be processed, see the broker's log"))


def _stored(session: Session, received: Received) -> bytes | None:
    """The answer given to the same bytes before."""
    row = session.exec(
        select(Journal).where(
            Journal.sender == received.header.sender,
            Journal.control_id == received.header[10],
            Journal.sha256 == received.digest,
        )
    ).first()
    return row.answer if row else None


def _refuse_reuse(session: Session, received: Received) -> bool:
    """A control id used for other content at the same time is an error; at another time a counter that restarts."""
    rows = session.exec(
        select(Journal).where(Journal.sender == received.header.sender, Journal.control_id == received.header[10])
    ).all()
    if any(row.message_time == received.header[7] and row.sha256 != received.digest for row in rows):
        raise DuplicateKey("MSH^1^10", "this message control ID was used for another message")
    return bool(rows)


def _sender(session: Session, received: Received) -> Sender | None:
    """Raises NotAllowed for an unknown sender, or a known one that may not send this type."""
    head = received.header
    candidates = [
        sender
        for sender in session.exec(select(Sender))
        if sender.application in ("", head[3]) and sender.facility in ("", head[4])
        and sender.address in ("", received.peer)
    ]  # fmt: skip
    if not candidates:
        policy = received.settings.hl7.unknown_sender or ("accept" if received.peer in LOOPBACK else "reject")
        if policy == "reject":
            raise NotAllowed("MSH^1^3", "this sender is not registered here")
        return None
    sender = candidates[0]
    allowed = {head.type, head.type.split("^")[0]}
    if sender.messages and not allowed & set(sender.messages):
        raise NotAllowed("MSH^1^9", "this sender may not send this message type")
    return sender


def _apply(session: Session, received: Received, msg: Message, effect: Effect) -> bytes:
    if (known := _stored(session, received)) is not None:  # came twice at once
        return known
    reused = _refuse_reuse(session, received)
    journal = _journal(received)
    session.add(journal)
    session.flush()
    journal.became, journal.order_pk = effect(session, msg, received, journal.key)
    flags = [
        name for name, set_ in (("control id reused", reused), ("vendor characters", msg.vendor_characters)) if set_
    ]
    journal.became = "; ".join((journal.became, *flags))
    journal.state = advance(MESSAGE, journal.state, "apply")
    journal.answer = _answer(received, None)
    return journal.answer


def _reject(session: Session, received: Received, error: BrokerError) -> bytes:
    if (known := _stored(session, received)) is not None:
        return known
    journal = _journal(received)
    journal.state = advance(MESSAGE, journal.state, "reject")
    journal.error_code, journal.error_place, journal.error_text = error.err, error.place, error.text
    journal.answer = _answer(received, error)
    session.add(journal)
    log.get().warning("hl7.rejected", type=received.header.type, peer=received.peer, code=error.err, place=error.place)
    return journal.answer


def _journal(received: Received) -> Journal:
    head = received.header
    return Journal(
        peer=received.peer, sender=head.sender, control_id=head[10], message_time=head[7], type=head.type,
        raw=received.raw, sha256=received.digest, received_at=clock.now(),
    )  # fmt: skip


def _answer(received: Received, error: BrokerError | None) -> bytes:
    zone = ZoneInfo(received.settings.site.timezone)
    return ack.build(
        received.header, error, now=clock.now().astimezone(zone), default_set=received.settings.hl7.character_set
    )


# Effects: what it became, in words without patient data, and the order


def _orders(session: Session, msg: Message, received: Received, journal_pk: int) -> tuple[str, int | None]:
    site = received.settings.site
    order = None
    commands = orders_in.to_commands(msg, site)
    for command in commands:
        order = orders.apply(
            session, command, now=clock.now(), actor=f"hl7:{received.header.sender}", site=site, message_pk=journal_pk
        )
    assert order is not None
    return f"{commands[0].control} order {order.key}", order.key


def _patients(session: Session, msg: Message, received: Received, _journal_pk: int) -> tuple[str, int | None]:
    for command in patients_in.to_commands(msg, received.settings.site):
        patient = patients.apply(session, command, now=clock.now(), actor=f"hl7:{received.header.sender}")
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
