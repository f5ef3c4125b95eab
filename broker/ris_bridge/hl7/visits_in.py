"""ADT A02, A10 and A12 to commands about the visit or the orders that they name (conformance.md 5.1). Pure."""

import datetime as dt
from collections.abc import Iterator
from typing import Literal

from broker.config import Site
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, VisitCommand
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Message, Segment, groups

EVENTS: dict[str, Literal["arrive", "unarrive", "transfer"]] = {"A02": "transfer", "A10": "arrive", "A12": "unarrive"}
PLACE = "PV1^1^19"
PLACER, FILLER = "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"


def to_commands(
    msg: Message, event: str, patient: PersonCommand, at: dt.datetime | None, site: Site
) -> list[VisitCommand]:
    """One for each order that the message names, else one for the visit. A transfer that names neither, or no place,
    says nothing of a visit; an arrival that names neither is left to be refused."""
    pv1 = msg.first("PV1")
    location = values.shown(pv1, 3, "CurrentPatientLocation") if pv1 else None
    named: list[OrderCommand | None] = [*_orders(msg, patient, at, site)]
    made = [
        VisitCommand(EVENTS[event], patient, _visit(msg), order, location, at, f"ADT^{event}", PLACE)
        for order in named or [None]
    ]
    if event == "A02":
        return [one for one in made if one.location is not None and (one.visit or one.order)]
    return made


def _visit(msg: Message) -> Identifier | None:
    """PV1-19, else PID-18."""
    for segment, number in ((msg.first("PV1"), 19), (msg.first("PID"), 18)):
        if segment and (value := values.exact(segment, number, "AdmissionID")):
            return Identifier(value, values.authority_of_cx(segment, number, 1), segment.get(number, 5) or "VN")
    return None


def _orders(msg: Message, patient: PersonCommand, at: dt.datetime | None, site: Site) -> Iterator[OrderCommand]:
    """The numbers of each ORC with its OBR, or of each OBR where there is no ORC."""
    for group in groups(msg.segments, "ORC" if msg.first("ORC") else "OBR"):
        segments = [one for one in group if one.name in ("ORC", "OBR")]
        obr = next((one for one in segments if one.name == "OBR"), None)
        values.refuse_two_orders([[(one, number) for one in segments] for number in (2, 3)])
        accession = values.exact(obr, 18, "AccessionNumber") or "" if obr else ""
        (placer, placer_issuer), (filler, filler_issuer) = (
            _number(segments, number, keyword) for number, keyword in ((2, PLACER), (3, FILLER))
        )
        if accession or placer or filler:
            procedure = ProcedureCommand(
                placer_number=placer, placer_issuer=placer_issuer, filler_number=filler, filler_issuer=filler_issuer
            )
            yield OrderCommand(
                "note", accession, site.accession_issuer if accession else "", patient=patient,
                procedures=(procedure,) if placer or filler else (), at=at, place=segments[0].place(2),
                is_issuer_assumed=True,
            )  # fmt: skip


def _number(segments: list[Segment], number: int, keyword: str) -> tuple[str, str]:
    for segment in segments:
        if value := values.exact(segment, number, keyword):
            return value, values.authority(segment, number, 2)
    return "", ""
