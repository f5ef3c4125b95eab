"""HL7 v2 messages on their way into the inbox: who sends, what it may send, what it asks for, what it is told."""

import datetime as dt
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from broker import access, clock, db, log
from broker.config import Limits, Settings, Site
from broker.errors import BrokerError, InvalidValue, NoRoom, NotAllowed, Unreadable, Unsupported
from broker.model.messages import Message as Journalled
from broker.model.site import Sender
from broker.mwl.commands import Command
from broker.ris_bridge import inbox, intakes, labels
from broker.ris_bridge.budget import budget
from broker.ris_bridge.effects import Done
from broker.ris_bridge.hl7 import (
    ack,
    batch,
    charset,
    keys,
    message,
    order_answer,
    orders_in,
    patients_in,
    reports_in,
    schedule_in,
)
from broker.ris_bridge.hl7.message import Header, Message
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX, Read, Received, Road
from broker.ris_bridge.mapping import store
from broker.ris_bridge.mapping.profile import Group, Profile, for_sender
from broker.ris_bridge.turns import Keys, Turn

LOOPBACK = ("127.0.0.1", "::1")
PROTOCOL = "hl7"
SENDER = "MSH^1^3"  # ERR-2 of a refusal of whoever is not registered
# Message type -> what it asks for.
READERS: dict[str, Callable[..., Sequence[Command]]] = {
    **dict.fromkeys(("ORM^O01", "OMG^O19", "OMI^O23"), orders_in.to_commands),
    **{f"ADT^{event}": patients_in.to_commands for event in patients_in.EVENTS},
    **{f"SIU^{event}": schedule_in.to_commands for event in schedule_in.EVENTS},
    "ORU^R01": reports_in.to_commands,
}
# They take a mapping profile as well.
MAPPED: tuple[Callable[..., Sequence[Command]], ...] = (
    orders_in.to_commands, schedule_in.to_commands, reports_in.to_commands,
)  # fmt: skip
COUNTED = ("ORC", "OBR", "IPC", "PID", "RGS", "AIS")  # each of them is work for the database, or begins some
CERTIFIED_MAX = 20  # names of one certificate
TROUBLE = (SQLAlchemyError, NoRoom)  # ours: the same message may be taken later


@dataclass(frozen=True)
class Reply:
    """raw: for the sender; empty: nothing is said, and the connection stays. message_pks: the rows of the journal that
    note when it has reached the socket."""

    raw: bytes = b""
    message_pks: tuple[int, ...] = ()


def receive(raw: bytes, peer: str, settings: Settings, turn: Turn | None = None) -> Reply | None:
    """The acknowledgement, already durable; None = close without an answer: no MSH, or our own trouble (never AR, many
    senders do not send again after it, durability.md 1.7). peer: as `peer_of` writes it."""
    try:
        if batch.begins(raw):
            return _receive_batch(raw, peer, settings, turn)
        return _receive_one(received(raw, peer, settings), turn)
    except Unreadable:
        log.get().warning("hl7.unreadable", peer=peer, bytes=len(raw))
    except Exception:  # a message must not stop the ones behind it (security V14)
        log.get().exception("hl7.failed", peer=peer, bytes=len(raw))
    return None


def _receive_one(found: Received, turn: Turn | None) -> Reply | None:
    try:
        return _take(found, turn)
    except TROUBLE as error:
        return _in_trouble(found, error)


def _receive_batch(raw: bytes, peer: str, settings: Settings, turn: Turn | None) -> Reply | None:
    """Each message by itself, and begun only when the one before it is done: what comes meanwhile by other connections
    does not wait for the whole batch. In trouble the rest is not tried; what was taken gets its stored answer when the
    frame comes again."""
    try:
        parts = batch.split(raw, settings.limits.mllp_batch_messages_max)
        messages = [_of_batch(one, n, peer, settings) for n, one in enumerate(parts.messages, start=1)]
    except InvalidValue as error:
        log.get().warning("hl7.batch_refused", peer=peer, code=error.err)
        return Reply(batch.refusal(raw, error, now=_now(settings), default_set=settings.hl7.character_set))
    for problem in parts.problems:
        log.get().warning("hl7.batch_wrong", peer=peer, code=problem.err, place=problem.place)
    replies: list[Reply] = []
    trouble: Exception | None = None
    for found in messages:
        reply: Reply | None = None
        try:
            if trouble is None:
                reply = _take(found, turn)
        except TROUBLE as error:
            trouble = error
        if trouble is not None:
            reply = _in_trouble(found, trouble)
        if reply is None:
            return None
        replies.append(reply)
        turn = None
    told = batch.answer(
        parts, [reply.raw for reply in replies], now=_now(settings), default_set=settings.hl7.character_set
    )
    return Reply(told, tuple(pk for reply in replies for pk in reply.message_pks))


def _of_batch(raw: bytes, number: int, peer: str, settings: Settings) -> Received:
    try:
        return received(raw, peer, settings)
    except Unreadable:
        raise InvalidValue(f"message {number}", "has no MSH that can be read; nothing was taken", err="100") from None


def _take(found: Received, turn: Turn | None) -> Reply:
    if found.type.split("^")[0] == "ACK":
        if turn:  # the messages behind it in a batch must not wait for it
            turn.done()
        return _acknowledged(found)
    if len(found.raw) > found.settings.limits.unknown_sender_bytes_max:
        try:
            _sender(_known_senders(), found)
        except NotAllowed as error:
            if error.place == SENDER:
                return _not_kept(found, error, turn)
    answer = inbox.take(found, ROAD, turn)
    return Reply(answer.raw, (answer.message_pk,))


def _not_kept(found: Received, error: NotAllowed, turn: Turn | None) -> Reply:
    """Whoever is not registered must not fill the disk."""
    if turn:
        turn.done()
    log.get().warning("hl7.unknown_sender", peer=found.peer, bytes=len(found.raw))
    return Reply(_refuse(found, error))


def _acknowledged(found: Received) -> Reply:
    """What a sender in enhanced mode says to our answer. Nobody answers an answer."""
    said = re.search(rb"[\r\n]MSA.([A-Z]{2})", found.raw)
    if said is None or said[1][1:] != b"A":
        log.get().warning("hl7.answer_refused", peer=found.peer, code=said[1].decode() if said else "")
    return Reply()


def _in_trouble(found: Received, error: Exception) -> Reply | None:
    """What the sender's entry says, as far as it is known; nothing is in the journal."""
    log.get().error("hl7.database", peer=found.peer, kind=type(error).__name__)
    try:
        sender, head = _sender(_last_senders(), found)
    except BrokerError:
        return None
    if ((sender.on_trouble if sender else "") or found.settings.hl7.on_trouble) != "AE":
        return None
    told = NoRoom("message", "cannot be taken now: send it again later")
    raw = ack.answer(head, told, now=_now(found.settings), taken=False)
    return Reply(raw) if raw else None


def received(raw: bytes, peer: str, settings: Settings) -> Received:
    """Raises Unreadable where there is no MSH."""
    head = message.header(raw, settings.hl7.character_set)
    return Received(
        raw=raw, protocol=PROTOCOL, peer=peer, settings=settings, sender=head.sender[:KEY_CHARACTERS_MAX],
        control_id=head[10][:KEY_CHARACTERS_MAX], digest=hashlib.sha256(raw).hexdigest(), type=head.type, time=head[7],
    )  # fmt: skip


def again(row: Journalled, settings: Settings) -> tuple[Received, Road]:
    """A message of the journal, to be looked at once more: under its key, by what is known of its sender now."""
    found = replace(
        received(row.raw, row.peer, settings), sender=row.sender, control_id=row.control_id, digest=row.sha256
    )
    intake = db.read(intakes.of_peer, row.peer)
    return found, road_of(intakes.sender(intake)) if intake else ROAD


def character_set(session: Session, row: Journalled, settings: Settings) -> str:
    """In place of MSH-18, of a message of the journal; empty: MSH-18 it is."""
    sender = sender_of(session, row, settings)
    return sender.character_set if sender else ""


def sender_of(session: Session, row: Journalled, settings: Settings) -> Sender | None:
    """Of a message of the journal, as its entry is now."""
    if row.protocol != PROTOCOL:
        return None
    if intake := intakes.of_peer(session, row.peer):
        return intakes.sender(intake)
    try:
        return _sender(SENDERS.all(session), received(row.raw, row.peer, settings))[0]
    except BrokerError:
        return None


def road_of(sender: Sender) -> Road:
    """For what comes from where only this one can send: nobody is looked up."""
    return replace(ROAD, read=lambda found: _read(found, sender))


def _read(found: Received, given: Sender | None = None) -> Read:
    settings = found.settings
    in_budget = budget(settings.limits.mllp_parse_seconds_max)
    sender, head = _sender(_known_senders(), found) if given is None else (given, _head(found, given.character_set))
    message.check(head)
    ack.check(head)
    own = db.read(store.load, sender.mapping) if sender and sender.mapping else None
    profile, site = for_sender(own, head.type), own.source_site(settings.site) if own else settings.site
    reader = None if profile and profile.rules else _reader(head.type, settings)
    override, label = (sender.character_set, sender.label) if sender else ("", "")
    _check_escapes(found.raw, head, settings.limits)
    msg = message.parse(found.raw, settings.limits, settings.hl7.character_set, override)
    in_budget()
    _check_counts(msg, settings.limits)
    ignored = bool(profile and profile.means(head.type, Group.of(msg.segments)) == "ignore")
    reader = reader or (_nothing if ignored else _reader(head.type, settings))
    mapped = profile is not None and (ignored or reader in MAPPED)
    asked: Sequence[Command] = ()

    def commands() -> Sequence[Command]:
        nonlocal asked
        asked = labels.labelled(reader(msg, site, profile) if mapped else reader(msg, site), label)
        in_budget()
        return asked

    def answer(error: BrokerError | None, done: Sequence[Done]) -> bytes:
        kind, lines = order_answer.kind(msg, bool(sender and sender.order_responses)), []
        if kind:
            declared = override or head[18] or settings.hl7.character_set
            lines = order_answer.lines(found.raw, head, declared, asked, [one.outcome for one in done], error)
        return ack.answer(head, error, now=_now(settings), msg=msg, kind=kind, lines=lines)

    return Read(
        keys=_keys(msg),
        commands=commands,
        answer=answer,
        actor=f"hl7:{msg.header.sender}",
        notes=tuple(
            note
            for note, it_is in (("vendor characters", msg.vendor_characters), ("ignored by its profile", ignored))
            if it_is
        ),
        mapping=profile.label if profile and mapped else "",
    )


def _nothing(_msg: Message, _site: Site, _profile: Profile | None = None) -> Sequence[Command]:
    return ()


def _head(found: Received, override: str = "") -> Header:
    return message.header(found.raw, found.settings.hl7.character_set, override)


def _refuse(found: Received, error: BrokerError) -> bytes:
    return ack.answer(_head(found), error, now=_now(found.settings))


def _check_escapes(raw: bytes, head: Header, limits: Limits) -> None:
    """Each costs what a hundred other bytes do: a message of nothing else would take half a minute."""
    marks = [b"\x1b"] + [sign.encode() for sign in head.delimiters[3] if sign != "\0"]
    if sum(raw.count(mark) for mark in marks) > 2 * limits.mllp_escapes_max:  # it begins, and it ends
        raise InvalidValue("message", f"has more than {limits.mllp_escapes_max} escape sequences", err="102")


def _check_counts(msg: Message, limits: Limits) -> None:
    if len(msg.all("MSH")) > 1:
        raise InvalidValue("MSH^2", "a message begins inside another; a batch begins with BHS", err="100")
    for name in COUNTED:
        if len(msg.all(name)) > limits.mllp_orders_max:
            raise InvalidValue("message", f"has more than {limits.mllp_orders_max} segments {name}", err="102")


def _now(settings: Settings) -> dt.datetime:
    return clock.now().astimezone(ZoneInfo(settings.site.timezone))


ROAD = Road(read=_read, refuse=_refuse, unreadable=charset.PLACE, may_follow=True, keys=keys.of)


def _reader(kind: str, settings: Settings) -> Callable[..., Sequence[Command]]:
    if settings.hl7.link_patients and kind.split("^")[-1] in patients_in.LINKS:
        return functools.partial(patients_in.to_commands, link_patients=True)
    if kind in READERS:
        return READERS[kind]
    code = kind.split("^")[0]
    if code in {known.split("^")[0] for known in READERS}:
        raise Unsupported("MSH^1^9", "this trigger event is not supported", err="201")
    raise Unsupported("MSH^1^9", "this message type is not supported", err="200")


def _keys(msg: Message) -> Keys:
    """As they stand: a search finds what was sent, whatever became of it."""

    def said() -> Iterator[tuple[str, str]]:
        for kind, name, number in keys.KEYS:
            for segment in msg.all(name):
                for repetition in set(segment.repetitions(number)):
                    value = message.part(repetition, segment.delimiters).strip()
                    if value and value != '""':
                        yield kind, value[:KEY_CHARACTERS_MAX]

    found: set[tuple[str, str]] = set()
    for key in said():
        found.add(key)
        if len(found) == keys.KEYS_MAX:
            break
    return frozenset(found)


# The sender. A peer is written as its address and, after a blank, the names in its certificate with | between them.


def peer_of(address: str, certified: Iterable[str]) -> str:
    names = [name for name in certified if "|" not in name and name.isprintable()]
    return " ".join(filter(None, (address, "|".join(names[:CERTIFIED_MAX])))) if names else address


def _parts_of(peer: str) -> tuple[str, list[str]]:
    address, _, names = peer.partition(" ")
    return address, [name.casefold() for name in names.split("|") if name]


SENDERS = db.Entities(select(Sender).order_by(col(Sender.pk)))


_seen: tuple[Engine, Sequence[Sender]] | None = None


def _known_senders() -> Sequence[Sender]:
    global _seen
    senders = db.read(SENDERS.all)
    _seen = db.engine(), senders
    return senders


def _last_senders() -> Sequence[Sender]:
    """As they were when the database last said so."""
    return _seen[1] if _seen and _seen[0] is db.engine() else ()


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
        if any(_is_named(sender, heads[sender.character_set]) for sender in senders):
            mend = "broker sender change NAME --address … (or --tls-subject …) mends it"
            raise NotAllowed(SENDER, f"this sender is registered with another address or certificate; {mend}")
        policy = settings.unknown_sender or ("accept" if _parts_of(found.peer)[0] in LOOPBACK else "reject")
        if policy == "reject":
            raise NotAllowed(SENDER, "this sender is not registered here")
        return None, heads[""]
    sender = max(fitting, key=_specificity)
    head = heads[sender.character_set]
    if sender.messages and not {head.type, head.type.split("^")[0]} & set(sender.messages):
        raise NotAllowed("MSH^1^9", "this sender may not send this message type")
    return sender, head


def _is_named(sender: Sender, head: Header) -> bool:
    """By its application or facility: who says that he is somebody known is not unknown."""
    return bool(sender.application or sender.facility) and _is_called(sender, head)


def _is_called(sender: Sender, head: Header) -> bool:
    return sender.application in ("", head[3]) and sender.facility in ("", head[4])


def _fits(sender: Sender, head: Header, peer: str) -> bool:
    address, certified = _parts_of(peer)
    return (
        _is_called(sender, head)
        and (not sender.tls_subject or sender.tls_subject.casefold() in certified)
        and (not sender.address or address in access.addresses(sender.address))
    )


def _specificity(sender: Sender) -> tuple[bool, ...]:
    return bool(sender.tls_subject), bool(sender.address), bool(sender.application), bool(sender.facility)
