"""Entries of other providers' worklists on their way into the inbox: each that is new or changed is a message, its raw
bytes the identifier as it came (Implicit VR Little Endian). A list has no time of its own: what it says counts as said
when it was asked for the answer that was the first to say so."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any

from broker import db
from broker.config import Limits, Settings, Site
from broker.errors import BrokerError
from broker.model.messages import Message
from broker.model.upstream import Upstream
from broker.ris_bridge import upstream_elements as elements
from broker.ris_bridge import upstream_item
from broker.ris_bridge.effects import Done
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX, Read, Received, Road
from broker.ris_bridge.turns import Keys
from broker.ris_bridge.upstream_effect import PROTOCOL, Gone, Listed, find_source
from broker.ris_bridge.upstream_item import Reads

LISTED, GONE = "C-FIND listed", "C-FIND gone"  # what the journal calls them
PREFIX = "upstream:"
RAW = "raw:"  # before the identity of what cannot be read


def peer(source: Upstream) -> str:
    return PREFIX + source.name


def reads_of(source: Upstream, settings: Settings) -> Reads:
    return Reads(
        settings.site, settings.limits, source.patient_id_issuer, source.accession_issuer, source.label,
        source.character_set,
    )  # fmt: skip


def received(
    source: Upstream, raw: bytes, identity: str, at: dt.datetime, settings: Settings, kind: str = LISTED
) -> Received:
    """at: when its list was asked. It is part of the key: an entry may come to say again what it said before."""
    said = peer(source)
    return Received(
        raw=raw, protocol=PROTOCOL, peer=said, settings=settings, sender=said[:KEY_CHARACTERS_MAX],
        control_id=f"{identity[:32]}.{at.timestamp():.6f}", digest=hashlib.sha256(raw).hexdigest(), type=kind,
        time=at.isoformat(),
    )  # fmt: skip


def again(row: Message, settings: Settings) -> tuple[Received, Road]:
    """Of the journal; by what its provider's entry is now."""
    found = Received(
        raw=row.raw, protocol=PROTOCOL, peer=row.peer, settings=settings, sender=row.sender, control_id=row.control_id,
        digest=row.sha256, type=row.type, time=row.message_time,
    )  # fmt: skip
    return found, ROAD


def said(found: Received) -> tuple[Any, Keys]:
    """What it asks for, and by what it is found. Raises as upstream_item.entry."""
    name = found.peer.removeprefix(PREFIX)
    source = db.read(find_source, name) or Upstream(name=name, host="", port=0, ae_title="")
    reads, at = reads_of(source, found.settings), dt.datetime.fromisoformat(found.time)
    entry = upstream_item.entry(found.raw, reads, at)
    identity = identity_of(found.raw, reads)
    asked = Gone(name, identity, at) if found.type == GONE else Listed(name, entry, identity, digest(found.raw, reads))
    return asked, _keys(entry.command)


def identity_of(raw: bytes, reads: Reads) -> str:
    """Of what cannot be read: the bytes themselves."""
    try:
        return upstream_item.identity(upstream_item.read(upstream_item.parted(raw)[0], reads), reads)
    except BrokerError:
        return RAW + hashlib.sha256(raw).hexdigest()


def digest(raw: bytes, reads: Reads) -> str:
    """Of what an order can carry; of what cannot be read, the bytes."""
    try:
        told = [repr(upstream_item.told(upstream_item.read(one, reads))) for one in upstream_item.parted(raw)]
    except BrokerError:
        told = [raw.hex()]
    return hashlib.sha256("\x1f".join((*sorted(told), reads.digest)).encode("utf-8", "backslashreplace")).hexdigest()


def _read(found: Received) -> Read:
    asked, keys = said(found)
    return Read(keys=keys, commands=lambda: [asked], answer=_answer, actor=found.sender)


def _keys(command: Any) -> Keys:
    (procedure,) = command.procedures
    found = (
        ("accession", command.accession_number), ("study", procedure.study_instance_uid),
        ("placer", procedure.placer_number), ("filler", procedure.filler_number),
        *(("patient", one.value) for one in command.patient.identifiers),
    )  # fmt: skip
    return frozenset((kind, value[:KEY_CHARACTERS_MAX]) for kind, value in found if value)


def _keys_of_refused(raw: bytes) -> Keys:
    """What can be read of an entry that is refused."""
    reads = Reads(Site(), Limits())
    try:
        item = upstream_item.read(upstream_item.parted(raw)[0], reads)
    except BrokerError:
        return frozenset()
    found = (("accession", "AccessionNumber"), ("study", "StudyInstanceUID"), ("patient", "PatientID"))
    values = ((kind, elements.plain(item, name)) for kind, name in found)
    return frozenset((kind, value[:KEY_CHARACTERS_MAX]) for kind, value in values if value and "\0" not in value)


def _answer(error: BrokerError | None, done: Sequence[Done]) -> bytes:
    """Nobody is told; the journal keeps what became of it."""
    return _told(error) if error else "; ".join(one.words for one in done).encode()


def _told(error: BrokerError) -> bytes:
    return f"refused: {error.err} {error}".encode()


ROAD = Road(read=_read, refuse=lambda _, error: _told(error), keys=_keys_of_refused)
