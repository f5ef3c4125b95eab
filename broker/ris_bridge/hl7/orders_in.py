"""ORM^O01, OMG^O19 and OMI^O23 to order commands (conformance.md 5.3, 5.4). Pure."""

import datetime as dt
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

from broker import ids
from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge.hl7.message import Message, Segment, groups, part
from broker.ris_bridge.hl7.names import XCN, person

SH_MAX, LO_MAX, AE_MAX = 16, 64, 16
CONTROLS = ("NW", "XO", "CA", "DC")
PRIORITY = {"S": "STAT", "A": "HIGH", "P": "HIGH", "C": "HIGH", "T": "MEDIUM", "R": "ROUTINE"}
SEX = {"M": "M", "F": "F", "O": "O", "A": "O"}
TIME = re.compile(r"(\d{8})(\d{0,6})(?:\.\d+)?([+-]\d{4})?")
JJ1017 = re.compile(r"[0-9A-HJ-NP-Z]{32}")

# HL7 field -> worklist attribute, for those that are taken as they stand (table of 5.4).
ORDER_TEXT = (("ORC", 17, "RequestingService"),)
PROCEDURE_TEXT = (
    ("OBR", 12, "PatientState"), ("OBR", 13, "MedicalAlerts"), ("OBR", 30, "PatientTransportArrangements"),
)  # fmt: skip
VISIT_TEXT = ((3, "CurrentPatientLocation"), (16, "ConfidentialityConstraintOnPatientDataDescription"))


def to_commands(msg: Message, site: Site) -> list[OrderCommand]:
    """One command per accession number of the message, with all its procedures and steps, in the message's order.

    Raises what the acknowledgement says: 100 for a missing or misplaced segment, 101, 102, 103 for a field."""
    imaging = msg.header.type.startswith("OMI")
    _check_order_of_segments(msg, imaging)
    patient = patient_of(msg, site)
    commands: list[OrderCommand] = []
    for group in groups(msg.segments, "ORC"):
        made = _command(group, msg, patient, site, imaging)
        last = next((c for c in commands if _same_order(c, made)), None)
        if last is None:
            commands.append(made)
        else:
            commands[commands.index(last)] = _joined(last, made)
    return commands


def _check_order_of_segments(msg: Message, imaging: bool) -> None:
    names = [segment.name for segment in msg.segments]
    if "ORC" not in names:
        raise MissingField("ORC", "an order message holds at least one ORC", err="100")
    if "PID" not in names or names.index("PID") > names.index("ORC"):
        raise MissingField("PID", "PID stands before the first ORC", err="100")
    for group in groups(msg.segments, "ORC"):
        inside = [segment.name for segment in group]
        if "OBR" not in inside:
            raise MissingField(f"ORC^{group[0].position}", "an order group holds an OBR", err="100")
        if imaging and ("IPC" not in inside or inside.index("IPC") < inside.index("OBR")):
            raise MissingField("IPC", "an IPC follows the OBR of each order group", err="100")
    if imaging and "IPC" in names[: names.index("ORC")]:
        raise InvalidValue("IPC^1", "stands before its order", err="100")


# One order group


def _command(group: list[Segment], msg: Message, patient: PersonCommand, site: Site, imaging: bool) -> OrderCommand:
    orc = group[0]
    obr = next(segment for segment in group if segment.name == "OBR")
    control = orc.get(1)
    if control not in CONTROLS:
        raise InvalidValue(orc.place(1), f"order control is one of {', '.join(CONTROLS)}", err="103")
    ipcs = [segment for segment in group if segment.name == "IPC"]
    if imaging:
        accession = required(ipcs[0], 1, "accession number", SH_MAX)
        issuer = ipcs[0].get(1, 2) or site.accession_issuer
        procedure = _procedure_of_ipcs(ipcs, group, orc, obr, site)
    else:
        accession = required(obr, 18, "accession number", SH_MAX)
        issuer = site.accession_issuer
        procedure = _procedure_of_obr(group, orc, obr, site)
    return OrderCommand(
        control=control,  # type: ignore[arg-type]
        accession_number=accession,
        accession_issuer=issuer,
        priority=_priority(group, orc),
        patient=patient if control == "NW" else None,  # PID of XO, CA, DC never changes demographics
        procedures=(procedure,),
        begun=orc.get(5) == "IP",
        at=moment(orc.get(9), site) or moment(msg["MSH-7"], site),
        attributes=_order_attributes(msg, orc, obr, site),
        place=f"ORC^{orc.position}^2",
    )


def _procedure_of_ipcs(
    ipcs: Sequence[Segment], group: list[Segment], orc: Segment, obr: Segment, site: Site
) -> ProcedureCommand:
    """One group is one requested procedure, each IPC one step of it; all agree in IPC-1, 2 and 3."""
    for ipc in ipcs[1:]:
        for number in (1, 2, 3):
            if ipc.get(number) != ipcs[0].get(number):
                raise InvalidValue(ipc.place(number), "differs from the first IPC of its order group", err="102")
    study_uid = required(ipcs[0], 3, "Study Instance UID", None)
    start = start_of(group, orc, obr, site)
    steps = tuple(
        StepCommand(
            sps_id=required(ipc, 4, "Scheduled Procedure Step ID", SH_MAX),
            modality=ipc.get(5) or obr.get(24) or jj1017_modality(ipc.get(6)),
            station_ae_titles=ae_titles(ipc, 9),
            start_date=start[0],
            start_time=start[1],
            description=ipc.get(6, 2)[:LO_MAX],
            attributes={
                **step_attributes(obr, site),
                "ScheduledProtocolCodeSequence": protocol_codes(ipc, 6),
                "ScheduledStationName": [part(r, ipc.delimiters) for r in ipc.repetitions(7)] or "",
                "ScheduledProcedureStepLocation": ipc.get(8),
            },
        )
        for ipc in ipcs
    )
    return procedure_command(group, orc, obr, required(ipcs[0], 2, "Requested Procedure ID", SH_MAX), study_uid, steps)


def _procedure_of_obr(group: list[Segment], orc: Segment, obr: Segment, site: Site) -> ProcedureCommand:
    """ORM and OMG: each ORC/OBR pair is one step; pairs with one OBR-19 are one procedure."""
    number = required(obr, 19, "Requested Procedure ID", SH_MAX)
    zds = next((segment for segment in group if segment.name == "ZDS"), None)
    study_uid = required(zds, 1, "Study Instance UID", None) if zds else ""  # empty: one is made with the order
    start = start_of(group, orc, obr, site)
    step = StepCommand(
        sps_id=required(obr, 20, "Scheduled Procedure Step ID", SH_MAX),
        modality=obr.get(24),
        station_ae_titles=ae_titles(orc, 18),
        start_date=start[0],
        start_time=start[1],
        description=obr.get(4, 5)[:LO_MAX],
        attributes={
            **step_attributes(obr, site),
            "ScheduledProtocolCodeSequence": [code(obr.get(4, 4), obr.get(4, 5), obr.get(4, 6))]
            if obr.get(4, 4)
            else [],
        },
    )
    return procedure_command(group, orc, obr, number, study_uid, (step,))


def procedure_command(
    group: list[Segment], orc: Segment, obr: Segment, number: str, study_uid: str, steps: tuple[StepCommand, ...]
) -> ProcedureCommand:
    if study_uid and not ids.valid_uid(study_uid):
        raise InvalidValue("IPC^1^3" if any(s.name == "IPC" for s in group) else "ZDS^1^1", "is no UID", err="102")
    coded = 44 if obr.get(44) else 4
    return ProcedureCommand(
        requested_procedure_id=number,
        study_instance_uid=study_uid,
        placer_number=orc.get(2) or obr.get(2),
        placer_issuer=orc.get(2, 2) or obr.get(2, 2),
        filler_number=orc.get(3) or obr.get(3),
        filler_issuer=orc.get(3, 2) or obr.get(3, 2),
        description=(obr.get(coded, 2) or obr.get(4, 2))[:LO_MAX],
        code_value=limited(obr, coded, SH_MAX),
        code_scheme=obr.get(coded, 3),
        code_meaning=obr.get(coded, 2)[:LO_MAX],
        attributes={
            **{name: obr.text(field) for _, field, name in PROCEDURE_TEXT},
            "ReasonForTheRequestedProcedure": obr.get(31, 2) or obr.get(31),
            "RequestedProcedureComments": "\n".join(s.text(3) for s in group if s.name == "NTE"),
        },
        steps=steps,
    )


def step_attributes(obr: Segment, site: Site) -> dict[str, Any]:
    technician = obr.get(34, 1, 2) and "^".join((obr.get(34, 1, 2), obr.get(34, 1, 3))).rstrip("^")
    return {"ScheduledPerformingPhysicianName": technician}


def _order_attributes(msg: Message, orc: Segment, obr: Segment, site: Site) -> dict[str, Any]:
    pv1, pid = msg.first("PV1"), msg.first("PID")
    attributes: dict[str, Any] = {
        "RequestingPhysician": person(obr, 16, site, XCN) or person(orc, 12, site, XCN),
        **{name: orc.get(field, 2) or orc.get(field) for _, field, name in ORDER_TEXT},
    }
    if pv1:
        attributes |= {name: pv1.get(field) for field, name in VISIT_TEXT}
        attributes["ReferringPhysicianName"] = person(pv1, 8, site, XCN)
        attributes["AdmissionID"] = pv1.get(19) or (pid.get(18) if pid else "")
        if pv1.get(15) == "B6":
            attributes["PregnancyStatus"] = 3
    return attributes


def _priority(group: list[Segment], orc: Segment) -> str:
    tq1 = next((segment for segment in group if segment.name == "TQ1"), None)
    code = tq1.get(9) if tq1 else orc.get(7, 6)
    return PRIORITY.get(code[:1], "ROUTINE")


# The patient


def patient_of(msg: Message, site: Site) -> PersonCommand:
    pid = msg.first("PID")
    if pid is None:
        raise MissingField("PID", "the patient's segment is required", err="100")
    identifiers = tuple(
        Identifier(identifier(pid, 3, n + 1), pid.get(3, 4, repetition=n + 1) or site.patient_id_issuer,
                   pid.get(3, 5, repetition=n + 1) or "PI")
        for n in range(len(pid.repetitions(3)))
    )  # fmt: skip
    if not identifiers or not identifiers[0].value:
        raise MissingField(pid.place(3), "patient identifier is required")
    if not pid.field(5):
        raise MissingField(pid.place(5), "patient name is required")
    allergies = [segment.get(3, 2) or segment.get(3) for segment in msg.all("AL1")]
    return PersonCommand(
        identifiers=identifiers,
        name=None if pid.field(5) == '""' else person(pid, 5, site),
        birth_date=null(pid.get(7), _birth_date),
        sex=null(pid.get(8), lambda value: SEX.get(value, "")),
        attributes={**({"Allergies": allergies} if allergies else {}), **_measures(msg)},
    )


def identifier(segment: Segment, number: int, repetition: int = 1) -> str:
    value = segment.get(number, repetition=repetition)
    if len(value) > LO_MAX or "\\" in value or any(ord(char) < 0x20 for char in value):
        raise InvalidValue(segment.place(number), "is no identifier: at most 64 characters, no backslash", err="102")
    return value


def null(value: str, change: Callable[[str], str]) -> str | None:
    """Empty = not said; `""` = delete."""
    if not value:
        return None
    return "" if value == '""' else change(value)


def _birth_date(value: str) -> str:
    return value[:8] if value[:8].isdigit() and len(value) >= 8 else ""


def _measures(msg: Message) -> dict[str, str]:
    """Weight in kg and height in m from OBX (5.4)."""
    found = {}
    for obx in msg.all("OBX"):
        what, value, unit = f"{obx.get(3)} {obx.get(3, 2)}".lower(), obx.get(5), obx.get(6).lower()
        if not re.fullmatch(r"\d{1,3}(\.\d+)?", value):
            continue
        if "weight" in what or "体重" in what:
            found["PatientWeight"] = value
        elif "height" in what or "身長" in what:
            found["PatientSize"] = value if unit == "m" else f"{float(value) / 100:g}"
    return found


# Values


def required(segment: Segment, number: int, what: str, characters_max: int | None) -> str:
    value = segment.get(number)
    if not value or value == '""':
        raise MissingField(segment.place(number), f"{what} is required")
    return limited(segment, number, characters_max)


def limited(segment: Segment, number: int, characters_max: int | None) -> str:
    """Longer values are refused, never cut (conformance.md 1.10)."""
    value = segment.get(number)
    if characters_max and (len(value) > characters_max or "\\" in value):
        raise InvalidValue(
            f"{segment.place(number)}^1", f"is longer than {characters_max} characters or holds a backslash", err="102"
        )
    return value


def ae_titles(segment: Segment, number: int) -> tuple[str, ...] | None:
    titles = tuple(part(value, segment.delimiters).strip() for value in segment.repetitions(number))
    for title in titles:
        if len(title) > AE_MAX or not title.isascii() or "\\" in title:
            raise InvalidValue(segment.place(number), "is no AE title", err="102")
    return tuple(filter(None, titles)) or None


def start_of(group: Iterable[Segment], orc: Segment, obr: Segment, site: Site) -> tuple[str | None, str | None]:
    """DICOM date and time in the site's zone: TQ1-7, else ORC-7.4, else OBR-27.4. None where there is none."""
    tq1 = next((segment for segment in group if segment.name == "TQ1"), None)
    for segment, number, component in ((tq1, 7, 1), (orc, 7, 4), (obr, 27, 4)):
        value = segment.get(number, component) if segment else ""
        if segment is None or not value:
            continue
        at = moment(value, site)
        if at is None:
            raise InvalidValue(segment.place(number), "is no time: YYYYMMDDHHMM[SS][+ZZZZ]", err="102")
        here = at.astimezone(ZoneInfo(site.timezone))
        return here.strftime("%Y%m%d"), here.strftime("%H%M%S")
    return None, None


def moment(value: str, site: Site) -> dt.datetime | None:
    """Aware; without an offset it is the site's time."""
    match = TIME.fullmatch(value.strip())
    if not match:
        return None
    digits = (match[1] + match[2]).ljust(14, "0")
    try:
        naive = dt.datetime.strptime(digits, "%Y%m%d%H%M%S")  # noqa: DTZ007  the zone follows
        if match[3]:
            return dt.datetime.strptime(digits + match[3], "%Y%m%d%H%M%S%z")
    except ValueError:
        return None
    return naive.replace(tzinfo=ZoneInfo(site.timezone))


# Codes


def code(value: str, meaning: str, scheme: str) -> dict[str, Any]:
    return {"CodeValue": value, "CodingSchemeDesignator": scheme or "99LOCAL", "CodeMeaning": meaning[:LO_MAX] or value}


def protocol_codes(segment: Segment, number: int) -> list[dict[str, Any]]:
    """JJ1017's 32 characters are split: 16M as the code, 16S as its protocol context (TID 15200)."""
    codes = []
    for n in range(len(segment.repetitions(number))):
        value, meaning, scheme = (segment.get(number, c, repetition=n + 1) for c in (1, 2, 3))
        if len(value) > SH_MAX and not JJ1017.fullmatch(value):
            raise InvalidValue(
                f"{segment.place(number)}^1", "is longer than 16 characters and no JJ1017 code", err="102"
            )
        if JJ1017.fullmatch(value):
            codes.append(
                {**code(value[:16], meaning, "JJ1017-16M"), "ProtocolContextSequence": [_conditions(value[16:])]}
            )
        elif value:
            codes.append(code(value, meaning, scheme))
    return codes


def _conditions(value: str) -> dict[str, Any]:
    return {
        "ValueType": "CODE",
        "ConceptNameCodeSequence": [code("123016", "Imaging Conditions", "DCM")],
        "ConceptCodeSequence": [code(value, value, "JJ1017-16S")],
    }


def jj1017_modality(value: str) -> str:
    """Digit 1 of a JJ1017 code, only where the message names no modality (conformance.md 5.9)."""
    if len(value) not in (16, 32):
        return ""
    return {"1": "CR", "2": "RF", "3": "XA", "6": "CT", "7": "MR", "8": "NM", "9": "US", "F": "MG"}.get(value[0], "")


# Several groups of one order


def _same_order(a: OrderCommand, b: OrderCommand) -> bool:
    return (a.accession_number, a.accession_issuer, a.control) == (b.accession_number, b.accession_issuer, b.control)


def _joined(first: OrderCommand, second: OrderCommand) -> OrderCommand:
    """Pairs that share the Requested Procedure ID are steps of one procedure."""
    procedures = list(first.procedures)
    for one in second.procedures:
        same = next((p for p in procedures if p.requested_procedure_id == one.requested_procedure_id), None)
        if same is None:
            procedures.append(one)
            continue
        uids = {same.study_instance_uid, one.study_instance_uid} - {""}
        if len(uids) > 1:
            raise InvalidValue("ZDS^1^1", "differs between steps of one requested procedure", err="102")
        procedures[procedures.index(same)] = replace(
            same, study_instance_uid=next(iter(uids), ""), steps=same.steps + one.steps
        )
    return replace(first, procedures=tuple(procedures), begun=first.begun or second.begun)
