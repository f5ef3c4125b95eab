"""PID to a person, ADT to commands about patients and their visits (conformance.md 5.1, 5.4). Pure."""

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any, Literal

from broker.config import Site
from broker.errors import InvalidValue, MissingField, Unsupported
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand, VisitCommand
from broker.ris_bridge.hl7 import values, visits_in
from broker.ris_bridge.hl7.message import Message, Segment
from broker.ris_bridge.hl7.names import read
from broker.ris_bridge.hl7.values import NULL, null

Kind = Literal["update", "merge", "move", "change_id"]
UPDATES = ("A01", "A03", "A04", "A05", "A08", "A11", "A13", "A28", "A31", "A38")
VISITS = tuple(visits_in.EVENTS)
MERGES = ("A18", "A34", "A40")  # A18 and A34: the older form, one pair of PID and MRG
MOVES, CHANGES = ("A43",), ("A47",)
LINKS = ("A24", "A37")
EVENTS = (*UPDATES, *VISITS, *MERGES, *MOVES, *CHANGES, *LINKS)
SEX = {"M": "M", "F": "F", "O": "O", "A": "O"}
# CX.5 (table 0203) of what names a person. An account, a visit, an insurance may be shared by a family.
PERSONAL = ("", "PI", "MR", "PT")
PARTIAL_DATE = re.compile(r"[0-9]{4}([0-9]{2})?|00010101(0{2}){0,3}")  # the last is what .NET writes for none
NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
# (0010,1030) in kg and (0010,1020) in m: codes (LOINC) and names, units, and what is below any mistake of a unit.
MEASURES: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "PatientWeight": (
        ("29463-7", "3141-9", "body weight", "weight", "体重"), {"kg": "1", "g": "0.001"}, 1000,
    ),
    "PatientSize": (
        ("8302-2", "3137-7", "body height", "height", "身長"), {"m": "1", "cm": "0.01"}, 3,
    ),
}  # fmt: skip


def to_commands(msg: Message, site: Site, *, link_patients: bool = False) -> list[PatientCommand | VisitCommand]:
    """In the order in which they are to be applied. What a visit event says of the person comes before the visit.

    link_patients: hl7.link_patients; then A24 and A37 are taken for what they say of each of the two, and join or part
    nobody. Raises what the acknowledgement says: 100 for a missing or misplaced segment, 101, 102 for a field, 201 for
    a link."""
    event = msg.header.type.split("^")[-1]
    at = values.happened(*(values.span(msg[path], site) for path in ("EVN-6", "EVN-2", "MSH-7")))
    if event in LINKS:
        if not link_patients:
            raise Unsupported(
                "MSH^1^9", "patients are merged here, not linked; the setting hl7.link_patients takes it as a note",
                err="201",
            )  # fmt: skip
        return [_command("update", patient_of(pid, msg, site), None, at, event) for pid in _pids(msg)]
    if event in (*UPDATES, *VISITS):
        patient = patient_of(only_pid(msg), msg, site)
        update = _command("update", patient, None, at, event)
        return [update, *(visits_in.to_commands(msg, event, patient, at, site) if event in VISITS else ())]
    kind: Kind = "move" if event in MOVES else "change_id" if event in CHANGES else "merge"
    return [
        _command(kind, _named(kind, person, prior, pid, site), prior, at, event)
        for pid, mrg in _pairs(msg)
        for person in [patient_of(pid, msg, site)]
        for prior in _priors(mrg, person, site, kind)
    ]


def _command(
    kind: Kind, patient: PersonCommand, prior: Identifier | None, at: dt.datetime | None, event: str
) -> PatientCommand:
    return PatientCommand(kind, patient, prior, at, f"ADT^{event}")


def _named(kind: Kind, person: PersonCommand, prior: Identifier, pid: Segment, site: Site) -> PersonCommand:
    """The person with the identifier that stays in front. A move: the one that goes over stands in PID-3, too, beside
    that of its new patient or, where it stands alone, beneath the one in PID-2. A change of several: the one of the
    same authority."""
    known = person.identifiers
    if kind == "move":
        others = tuple(one for one in known if _key(one) != _key(prior))
        return replace(person, identifiers=others or (*_identifiers(pid, 2, site), prior))
    if kind == "change_id":
        return replace(person, identifiers=tuple(sorted(known, key=lambda one: one.issuer != prior.issuer)))
    return person


def only_pid(msg: Message) -> Segment:
    """The patient's segment. Two patients in one message are two messages: nobody could say whose the rest is."""
    pids = msg.all("PID")
    if not pids:
        raise MissingField("PID", "the patient's segment is required", err="100")
    if len(pids) > 1:
        raise InvalidValue("PID^2", "a message of this type is about one patient; send one for each", err="100")
    return pids[0]


def _pids(msg: Message) -> list[Segment]:
    pids = msg.all("PID")
    if len(pids) != 2:
        raise MissingField("PID", "a link names two patients, a PID each", err="100")
    return pids


def _pairs(msg: Message) -> Iterator[tuple[Segment, Segment]]:
    """ADT_A39, A43: { PID MRG }; A18, A30: one pair. Each MRG belongs to the PID before it, and each PID has one."""
    pid, lonely = None, False
    for segment in msg.segments:
        if segment.name == "PID":
            if lonely:
                break
            pid, lonely = segment, True
        elif segment.name == "MRG":
            if pid is None:
                raise MissingField("PID", "a PID stands before its MRG", err="100")
            lonely = False
            yield pid, segment
    if pid is None:
        raise MissingField("PID", "the patient's segment is required", err="100")
    if lonely:
        raise MissingField("MRG", "a merge names the prior identifier", err="100")


def patient_of(pid: Segment, msg: Message, site: Site) -> PersonCommand:
    found = list(_identifiers(pid, 3, site))
    personal = tuple(one for one in found if one.type in PERSONAL)
    if not personal:
        raise MissingField(pid.place(3), "patient identifier is required")
    if not pid.field(5):
        raise MissingField(pid.place(5), "patient name is required")
    name = None if pid.field(5) == NULL else read(pid, 5, site)
    if name is not None and not name.pn:  # signs without a letter: no name, and none that is deleted
        raise MissingField(pid.place(5), "patient name is required")
    return PersonCommand(
        identifiers=personal,
        name=name and name.pn,
        birth_date=null(pid.get(7), lambda value: _birth_date(pid, value)),
        sex=null(pid.get(8).strip(), lambda value: SEX.get(value.upper()[:1])),
        attributes={**_other_ids(found), **_qualifiers(pid, site), **_allergies(msg), **_measures(msg)},
        romanised=bool(name and name.romaji_derived),
    )


def _birth_date(pid: Segment, value: str) -> str | None:
    """A year or a month alone says nothing that can be compared (5.4), nor does the first of all days. What is no date
    at all is refused: the gate would miss a birth date that nobody knows was lost."""
    if PARTIAL_DATE.fullmatch(value):
        return None
    found = values.date(value)
    if found is None:
        raise InvalidValue(pid.place(7), "is no date: YYYYMMDD", err="102")
    return found


def _identifiers(segment: Segment, number: int, site: Site) -> Iterator[Identifier]:
    return (one for _, one in _numbered(segment, number, site))


def _numbered(segment: Segment, number: int, site: Site) -> Iterator[tuple[int, Identifier]]:
    """CX repetitions that have a value, and which these are. The site's issuer is that of its own patient numbers
    only."""
    for n in range(1, len(segment.repetitions(number)) + 1):
        value = values.exact(segment, number, "PatientID", repetition=n)
        kind = segment.get(number, 5, repetition=n).strip('" ').upper()
        if value:
            default = site.patient_id_issuer if kind in PERSONAL else ""
            yield n, Identifier(value, values.authority_of_cx(segment, number, n, default), kind or "PI")


def _priors(mrg: Segment, person: PersonCommand, site: Site, kind: Kind) -> list[Identifier]:
    """MRG-1. What PID-3 names as current does not go away, unless MRG-1 names nothing else; of a move it stands there
    as a rule."""
    priors = [one for one in _identifiers(mrg, 1, site) if one.type in PERSONAL]
    if not priors:
        raise MissingField(mrg.place(1), "prior patient identifier is required")
    current = {_key(one) for one in person.identifiers}
    return priors if kind == "move" else [one for one in priors if _key(one) not in current] or priors


def _key(one: Identifier) -> tuple[str, str]:
    """Whatever type it is called here or there."""
    return one.value, one.issuer


def _other_ids(found: list[Identifier]) -> dict[str, Any]:
    """Shown to devices; never looked up."""
    others = [
        {"PatientID": one.value, "IssuerOfPatientID": one.issuer, "TypeOfPatientID": "TEXT"}
        for one in found if one.type not in PERSONAL
    ]  # fmt: skip
    return {"OtherPatientIDsSequence": others} if others else {}


def _qualifiers(pid: Segment, site: Site) -> dict[str, Any]:
    """Universal ID of the leading identifier's authority (5.4)."""
    leading = next(n for n, one in _numbered(pid, 3, site) if one.type in PERSONAL)
    universal, kind = (pid.get(3, 4, n, leading) for n in (2, 3))
    return {"IssuerOfPatientIDQualifiersSequence": values.entity("", universal, kind)} if universal else {}


def _allergies(msg: Message) -> dict[str, Any]:
    said = (values.first(values.shown(one, 3, "Allergies", c) for c in (2, 1)) for one in msg.all("AL1"))
    found = [text for text in said if text]
    return {"Allergies": found} if found else {}


def _measures(msg: Message) -> dict[str, str]:
    """Weight and height from OBX (5.4), each named in full and in a unit that is known: a dose depends on it."""
    found = {}
    for obx in msg.all("OBX"):
        said = {obx.get(3, component).strip().casefold() for component in (1, 2, 4, 5)}
        value, unit = obx.get(5).strip(), obx.get(6).strip().casefold()
        for keyword, (names, units, below) in MEASURES.items():
            if said.intersection(names) and unit in units and NUMBER.fullmatch(value):
                measure = Decimal(value) * Decimal(units[unit])
                if 0 < measure < below:
                    found[keyword] = f"{measure:f}" if units[unit] == "1" else f"{measure.normalize():f}"
    return found
