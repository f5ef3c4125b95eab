"""PID to a person, ADT to patient commands (conformance.md 5.1, 5.4). Pure."""

import re
from collections.abc import Iterator
from typing import Any

from broker.config import Site
from broker.errors import InvalidValue, MissingField, Unsupported
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Message, Segment
from broker.ris_bridge.hl7.names import person
from broker.ris_bridge.hl7.values import NULL, null

UPDATES = ("A01", "A04", "A05", "A08", "A28", "A31")
MERGES = ("A40",)
SEX = {"M": "M", "F": "F", "O": "O", "A": "O"}
# CX.5 (table 0203) of what names a person. An account, a visit, an insurance may be shared by a family.
PERSONAL = ("", "PI", "MR", "PT")
PARTIAL_DATE = re.compile(r"[0-9]{4}([0-9]{2})?")
NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")


def to_commands(msg: Message, site: Site) -> list[PatientCommand]:
    event = msg.header.type.split("^")[-1]
    at = values.moment(msg["EVN-6"] or msg["EVN-2"] or msg["MSH-7"], site)
    cause = f"ADT^{event}"
    if event in UPDATES:
        return [PatientCommand("update", patient_of(only_pid(msg), msg, site), at=at, cause=cause)]
    merges = [
        PatientCommand("merge", patient_of(pid, msg, site), prior, at, cause)
        for pid, mrg in _pairs(msg)
        for prior in _priors(mrg, site)
    ]
    if not merges:
        raise MissingField("MRG", "a merge names the prior identifier", err="100")
    return merges


def only_pid(msg: Message) -> Segment:
    """The patient's segment. Two patients in one message are two messages: nobody could say whose the rest is."""
    pids = msg.all("PID")
    if not pids:
        raise MissingField("PID", "the patient's segment is required", err="100")
    if len(pids) > 1:
        raise Unsupported("PID^2", "a message of this type is about one patient; send one for each", err="100")
    return pids[0]


def _pairs(msg: Message) -> Iterator[tuple[Segment, Segment]]:
    """ADT_A39: { PID MRG }; each MRG belongs to the PID before it."""
    pid = None
    for segment in msg.segments:
        if segment.name == "PID":
            pid = segment
        elif segment.name == "MRG":
            if pid is None:
                raise MissingField("PID", "a PID stands before its MRG", err="100")
            yield pid, segment
    if pid is None:
        raise MissingField("PID", "the patient's segment is required", err="100")


def patient_of(pid: Segment, msg: Message, site: Site) -> PersonCommand:
    found = list(_identifiers(pid, 3, site))
    personal = tuple(one for one in found if one.type in PERSONAL)
    if not personal:
        raise MissingField(pid.place(3), "patient identifier is required")
    if not pid.field(5):
        raise MissingField(pid.place(5), "patient name is required")
    return PersonCommand(
        identifiers=personal,
        name=None if pid.field(5) == NULL else person(pid, 5, site),
        birth_date=null(pid.get(7), lambda value: _birth_date(pid, value)),
        sex=null(pid.get(8), lambda value: SEX.get(value.upper()[:1])),
        attributes={**_other_ids(found), **_qualifiers(pid), **_allergies(msg), **_measures(msg)},
    )


def _birth_date(pid: Segment, value: str) -> str | None:
    """A year or a month alone says nothing that can be compared (5.4). What is no date at all is refused: the gate
    would miss a birth date that nobody knows was lost."""
    if PARTIAL_DATE.fullmatch(value):
        return None
    found = values.date(value)
    if found is None:
        raise InvalidValue(pid.place(7), "is no date: YYYYMMDD", err="102")
    return found


def _identifiers(segment: Segment, number: int, site: Site) -> Iterator[Identifier]:
    """CX repetitions that have a value. The site's issuer is that of its own patient numbers only."""
    for n in range(1, len(segment.repetitions(number)) + 1):
        value = (values.exact(segment, number, "PatientID", repetition=n) or "").strip()
        kind = segment.get(number, 5, repetition=n)
        if value:
            default = site.patient_id_issuer if kind in PERSONAL else ""
            yield Identifier(value, values.authority_of_cx(segment, number, n, default), kind or "PI")


def _priors(mrg: Segment, site: Site) -> list[Identifier]:
    priors = [one for one in _identifiers(mrg, 1, site) if one.type in PERSONAL]
    if not priors:
        raise MissingField(mrg.place(1), "prior patient identifier is required")
    return priors


def _other_ids(found: list[Identifier]) -> dict[str, Any]:
    """Shown to devices; never looked up."""
    others = [
        {"PatientID": one.value, "IssuerOfPatientID": one.issuer, "TypeOfPatientID": "TEXT"}
        for one in found if one.type not in PERSONAL
    ]  # fmt: skip
    return {"OtherPatientIDsSequence": others} if others else {}


def _qualifiers(pid: Segment) -> dict[str, Any]:
    """Universal ID of the leading identifier's authority (5.4)."""
    universal, kind = (pid.get(3, 4, n) for n in (2, 3))
    return {"IssuerOfPatientIDQualifiersSequence": values.entity("", universal, kind)} if universal else {}


def _allergies(msg: Message) -> dict[str, Any]:
    said = (values.first(values.shown(one, 3, "Allergies", c) for c in (2, 1)) for one in msg.all("AL1"))
    found = [text for text in said if text]
    return {"Allergies": found} if found else {}


def _measures(msg: Message) -> dict[str, str]:
    """Weight in kg and height in m from OBX (5.4)."""
    found = {}
    for obx in msg.all("OBX"):
        what, value, unit = f"{obx.get(3)} {obx.get(3, 2)}".lower(), obx.get(5), obx.get(6).lower()
        if not NUMBER.fullmatch(value):
            continue
        if "weight" in what or "体重" in what:
            found["PatientWeight"] = value
        elif "height" in what or "身長" in what:
            found["PatientSize"] = value if unit == "m" else f"{float(value) / 100:g}"
    return found
