"""HL7 v2 messages on their way into the inbox: who sends, what it may send, what it asks for, what it is told."""

import datetime as dt
import hashlib
from collections.abc import Callable, Iterator, Sequence
from zoneinfo import ZoneInfo

from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from broker import access, clock, db, log
from broker.config import Settings, Site
from broker.errors import BrokerError, NoRoom, NotAllowed, Unreadable, Unsupported
from broker.model.site import Sender
from broker.mwl.commands import Command
from broker.ris_bridge import inbox
from broker.ris_bridge.effects import Done
from broker.ris_bridge.hl7 import ack, charset, message, orders_in, patients_in
from broker.ris_bridge.hl7.message import Header, Message
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX, Answer, Read, Received, Road
from broker.ris_bridge.turns import Keys, Turn

LOOPBACK = ("127.0.0.1", "::1")
PROTOCOL = "hl7"
# Message type -> what it asks for.
READERS: dict[str, Callable[[Message, Site], Sequence[Command]]] = {
    **dict.fromkeys(("ORM^O01", "OMG^O19", "OMI^O23"), orders_in.to_commands),
    **{f"ADT^{event}": patients_in.to_commands for event in (*patients_in.UPDATES, *patients_in.MERGES)},
}
# Where a message names what it is about. Repetitions and component 1.
KEYS = (
    ("patient", "PID", 3), ("patient", "MRG", 1), ("accession", "IPC", 1), ("accession", "OBR", 18),
    ("placer", "ORC", 2), ("placer", "OBR", 2), ("filler", "ORC", 3), ("filler", "OBR", 3),
    ("placer", "SCH", 26), ("filler", "SCH", 27), ("appointment", "SCH", 1), ("appointment", "SCH", 2),
    ("study", "IPC", 3), ("study", "ZDS", 1),
)  # fmt: skip
KEYS_MAX = 200  # of one message


def receive(raw: bytes, peer: str, settings: Settings, turn: Turn | None = None) -> Answer | None:
    """The acknowledgement, already durable; None = close without an answer (no MSH, or our own trouble: never AR, many
    senders do not send again after it, durability.md 1.7)."""
    try:
        found = received(raw, peer, settings)
    except Unreadable:
        log.get().warning("hl7.unreadable", peer=peer, bytes=len(raw))
        return None
    try:
        return inbox.take(found, ROAD, turn)
    except (SQLAlchemyError, NoRoom) as error:
        log.get().error("hl7.database", peer=peer, kind=type(error).__name__)
        return None


def received(raw: bytes, peer: str, settings: Settings) -> Received:
    """Raises Unreadable where there is no MSH."""
    head = message.header(raw, settings.hl7.character_set)
    return Received(
        raw=raw, protocol=PROTOCOL, peer=peer, settings=settings, sender=head.sender[:KEY_CHARACTERS_MAX],
        control_id=head[10][:KEY_CHARACTERS_MAX], digest=hashlib.sha256(raw).hexdigest(), type=head.type, time=head[7],
    )  # fmt: skip


def _read(found: Received) -> Read:
    settings = found.settings
    sender, head = _sender(db.read(_senders), found)
    message.check(head)
    reader = _reader(head.type)
    override = sender.character_set if sender else ""
    msg = message.parse(found.raw, settings.limits, settings.hl7.character_set, override)

    def answer(error: BrokerError | None, _done: Sequence[Done]) -> bytes:
        return ack.build(head, error, now=_now(settings), msg=msg)

    return Read(
        keys=_keys(msg),
        commands=lambda: reader(msg, settings.site),
        answer=answer,
        actor=f"hl7:{msg.header.sender}",
        notes=("vendor characters",) if msg.vendor_characters else (),
    )


def _refuse(found: Received, error: BrokerError) -> bytes:
    head = message.header(found.raw, found.settings.hl7.character_set)
    return ack.build(head, error, now=_now(found.settings))


def _now(settings: Settings) -> dt.datetime:
    return clock.now().astimezone(ZoneInfo(settings.site.timezone))


ROAD = Road(read=_read, refuse=_refuse, unreadable=charset.PLACE)


def _reader(kind: str) -> Callable[[Message, Site], Sequence[Command]]:
    if kind in READERS:
        return READERS[kind]
    code = kind.split("^")[0]
    if code in {known.split("^")[0] for known in READERS}:
        raise Unsupported("MSH^1^9", "this trigger event is not supported", err="201")
    raise Unsupported("MSH^1^9", "this message type is not supported", err="200")


def _keys(msg: Message) -> Keys:
    """As they stand: a search finds what was sent, whatever became of it."""

    def said() -> Iterator[tuple[str, str]]:
        for kind, name, number in KEYS:
            for segment in msg.all(name):
                for n in range(1, len(segment.repetitions(number)) + 1):
                    value = segment.get(number, repetition=n).strip()
                    if value and value != '""':
                        yield kind, value[:KEY_CHARACTERS_MAX]

    found: set[tuple[str, str]] = set()
    for key in said():
        found.add(key)
        if len(found) == KEYS_MAX:
            break
    return frozenset(found)


# The sender


def _senders(session: Session) -> Sequence[Sender]:
    return session.exec(select(Sender).order_by(col(Sender.pk))).all()


def _sender(senders: Sequence[Sender], found: Received) -> tuple[Sender | None, Header]:
    """Who sends, and MSH in that sender's character set. The most specific entry counts.

    Raises NotAllowed for an unknown sender, or a known one that may not send this type."""
    settings = found.settings.hl7
    heads = {
        one: message.header(found.raw, settings.character_set, one)
        for one in {"", *(sender.character_set for sender in senders)}
    }
    fitting = [sender for sender in senders if _fits(sender, heads[sender.character_set], found.peer)]
    if not fitting:
        policy = settings.unknown_sender or ("accept" if found.peer in LOOPBACK else "reject")
        if policy == "reject":
            raise NotAllowed("MSH^1^3", "this sender is not registered here")
        return None, heads[""]
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
