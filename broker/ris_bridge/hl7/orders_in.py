"""ORM^O01, OMG^O19 and OMI^O23 to order commands (conformance.md 5.3, 5.4). Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import PRIORITIES, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Message, Segment, groups
from broker.ris_bridge.hl7.names import XCN, person, technician
from broker.ris_bridge.hl7.patients_in import only_pid, patient_of
from broker.ris_bridge.hl7.values import NULL, exact, first, shown

CONTROLS = ("NW", "XO", "CA", "DC")
CANCELS = ("CA", "DC")
PRIORITY = {"S": "STAT", "A": "HIGH", "P": "HIGH", "C": "HIGH", "T": "MEDIUM", "R": "ROUTINE", "PRN": "ROUTINE"}
# OBR field -> attribute of the requested procedure, for those that are taken as they stand (table of 5.4).
PROCEDURE_TEXT = ((12, "PatientState"), (13, "MedicalAlerts"), (30, "PatientTransportArrangements"))
VISIT_TEXT = ((3, "CurrentPatientLocation"), (16, "ConfidentialityConstraintOnPatientDataDescription"))


def to_commands(msg: Message, site: Site) -> list[OrderCommand]:
    """One command per accession number of the message, with all its procedures and steps, in the message's order.

    Raises what the acknowledgement says: 100 for a missing or misplaced segment, 101, 102, 103 for a field."""
    imaging = msg.header.type.startswith("OMI")
    _check_order_of_segments(msg, imaging)
    patient = patient_of(only_pid(msg), msg, site)
    commands: list[OrderCommand] = []
    for group in groups(msg.segments, "ORC"):
        made = _command(_Group(group), msg, patient, site, imaging)
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
        raise MissingField("PID", "a PID must stand before the first ORC", err="100")
    for group in groups(msg.segments, "ORC"):
        inside = [segment.name for segment in group]
        if group[0].get(1) in CANCELS:  # ORM_O01: the detail is optional, and a cancel needs none
            continue
        if "OBR" not in inside:
            raise MissingField(f"ORC^{group[0].position}", "an order group holds an OBR", err="100")
        if imaging and ("IPC" not in inside or inside.index("IPC") < inside.index("OBR")):
            raise MissingField("IPC", "an IPC follows the OBR of each order group", err="100")
    if imaging and "IPC" in names[: names.index("ORC")]:
        raise InvalidValue("IPC^1", "stands before its order", err="100")


class _Group:
    """One ORC and what follows it. obr: an empty one where a cancel has none."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.orc = segments[0]
        self.obr = self._first(segments, "OBR") or Segment("OBR", ["OBR"], self.orc.delimiters)
        self.tq1, self.zds = self._first(segments, "TQ1"), self._first(segments, "ZDS")
        self.ipcs = [segment for segment in segments if segment.name == "IPC"]
        self.notes = [segment for segment in segments if segment.name == "NTE"]

    @staticmethod
    def _first(segments: Sequence[Segment], name: str) -> Segment | None:
        return next((segment for segment in segments if segment.name == name), None)


# One order group


def _command(group: _Group, msg: Message, patient: PersonCommand, site: Site, imaging: bool) -> OrderCommand:
    orc, obr = group.orc, group.obr
    control = orc.get(1)
    if control not in CONTROLS:
        raise InvalidValue(orc.place(1), f"order control is one of {', '.join(CONTROLS)}", err="103")
    holder, number = (group.ipcs[0], 1) if imaging and group.ipcs else (obr, 18)
    needed = control == "NW"
    accession = _key(holder, number, "accession number", "AccessionNumber", needed)
    issuer = site.accession_issuer
    attributes: dict[str, Any] = {}
    if holder.name == "IPC":
        issuer = values.authority(holder, 1, 2, issuer)
        if holder.get(1, 3):
            attributes["IssuerOfAccessionNumberSequence"] = _entity(holder, 1)
    procedure = (_procedure_of_ipcs if holder.name == "IPC" else _procedure_of_obr)(group, site, needed)
    return OrderCommand(
        control=control,  # type: ignore[arg-type]
        accession_number=accession,
        accession_issuer=issuer,
        priority=_priority(group),
        patient=patient,
        procedures=(procedure,) if procedure else (),
        begun=orc.get(5) == "IP",
        at=values.moment(orc.get(9), site) or values.moment(msg["MSH-7"], site),
        attributes=attributes | _order_attributes(msg, group, site),
        place=f"ORC^{orc.position}^2",
    )


def _procedure_of_ipcs(group: _Group, site: Site, needed: bool) -> ProcedureCommand:
    """One group is one requested procedure, each IPC one step of it; all agree in IPC-1, 2 and 3."""
    head = group.ipcs[0]
    for ipc in group.ipcs[1:]:
        for number in (1, 2, 3):
            if ipc.get(number) != head.get(number):
                raise InvalidValue(ipc.place(number), "differs from the first IPC of its order group", err="102")
    study_uid = values.uid(head, 3)
    if needed and not study_uid:
        raise MissingField(head.place(3), "Study Instance UID is required")
    procedure_id = _key(head, 2, "Requested Procedure ID", "RequestedProcedureID", needed)
    steps = [_step_of_ipc(ipc, group, site) for ipc in group.ipcs]
    return _procedure(group, procedure_id, study_uid or "", steps)


def _step_of_ipc(ipc: Segment, group: _Group, site: Site) -> StepCommand:
    protocol = values.codes(ipc, 6)
    modality = (values.modality(ipc, 5), values.modality(group.obr, 24), values.modality_of(protocol))
    return replace(
        _step(group, site),
        sps_id=values.required(ipc, 4, "Scheduled Procedure Step ID", "ScheduledProcedureStepID"),
        modality=first(modality),
        station_ae_titles=values.ae_titles(ipc, 9),
        description=shown(ipc, 6, "ScheduledProcedureStepDescription", 2),
        attributes={
            "ScheduledPerformingPhysicianName": technician(group.obr, 34, site),
            "ScheduledProtocolCodeSequence": protocol,
            "ScheduledStationName": values.texts(ipc, 7, "ScheduledStationName"),
            "ScheduledProcedureStepLocation": shown(ipc, 8, "ScheduledProcedureStepLocation"),
        },
    )


def _procedure_of_obr(group: _Group, site: Site, needed: bool) -> ProcedureCommand | None:
    """ORM and OMG: each ORC/OBR pair is one step; pairs with one OBR-19 are one procedure."""
    obr = group.obr
    procedure_id = _key(obr, 19, "Requested Procedure ID", "RequestedProcedureID", needed)
    sps_id = _key(obr, 20, "Scheduled Procedure Step ID", "ScheduledProcedureStepID", needed)
    study_uid = values.uid(group.zds, 1) if group.zds else None
    if group.zds and needed and not study_uid:
        raise MissingField(group.zds.place(1), "Study Instance UID is required")
    # PS3.4 Table K.6-1: a step has a description, a protocol code, or both; HIS orders often fill OBR-4.1 to 4.3 only.
    protocol = first((values.codes(obr, 4, component=4), values.codes(obr, 4)))
    step = replace(
        _step(group, site),
        sps_id=sps_id,
        modality=first((values.modality(obr, 24), values.modality_of(protocol))),
        station_ae_titles=values.ae_titles(group.orc, 18),
        description=first(shown(obr, 4, "ScheduledProcedureStepDescription", component) for component in (5, 2)),
        attributes={
            "ScheduledPerformingPhysicianName": technician(obr, 34, site),
            "ScheduledProtocolCodeSequence": protocol,
        },
    )
    made = _procedure(group, procedure_id, study_uid or "", [step])
    named = made.requested_procedure_id or made.study_instance_uid or made.placer_number or made.filler_number
    return made if named or sps_id or needed else None


def _procedure(group: _Group, procedure_id: str, study_uid: str, steps: Sequence[StepCommand]) -> ProcedureCommand:
    orc, obr = group.orc, group.obr
    coded = 44 if obr.field(44) else 4
    code = values.codes(obr, coded)
    leading = code[0] if code else {"CodeValue": "", "CodingSchemeDesignator": "", "CodeMeaning": ""}
    code_said = bool(obr.get(coded))
    comments = [note.text(3) for note in group.notes if note.field(3)]
    placer, filler = _number(group, 2), _number(group, 3)
    return ProcedureCommand(
        requested_procedure_id=procedure_id,
        study_instance_uid=study_uid,
        placer_number=placer[0],
        placer_issuer=placer[1],
        filler_number=filler[0],
        filler_issuer=filler[1],
        description=first(shown(obr, at, "RequestedProcedureDescription", 2) for at in (coded, 4)),
        code_value=leading["CodeValue"] if code_said else None,
        code_scheme=leading["CodingSchemeDesignator"] if code_said else None,
        code_meaning=leading["CodeMeaning"] if code_said else None,
        attributes={
            **{name: _line(obr, field, name) for field, name in PROCEDURE_TEXT},
            "ReasonForTheRequestedProcedure": first(
                shown(obr, 31, "ReasonForTheRequestedProcedure", component) for component in (2, 1)
            ),
            "ReasonForRequestedProcedureCodeSequence": values.codes(obr, 31) if obr.get(31, 2) else None,
            "RequestedProcedureComments": _comments(comments),
            "OrderPlacerIdentifierSequence": _entity(orc, 2) if orc.get(2, 3) else None,
            "OrderFillerIdentifierSequence": _entity(orc, 3) if orc.get(3, 3) else None,
        },
        steps=tuple(steps),
    )


def _step(group: _Group, site: Site) -> StepCommand:
    """What ORC, OBR and TQ1 say of a step."""
    placer, filler = _number(group, 2), _number(group, 3)
    at = _start(group, site)
    return StepCommand(
        start_date=at and at[0], start_time=at and at[1], placer_number=placer[0], placer_issuer=placer[1],
        filler_number=filler[0], filler_issuer=filler[1],
    )  # fmt: skip


def _key(segment: Segment, number: int, what: str, keyword: str, needed: bool) -> str:
    """Only a new order must say everything; the others may name it by any of its numbers (5.3)."""
    return values.required(segment, number, what, keyword) if needed else exact(segment, number, keyword) or ""


def _number(group: _Group, field: int) -> tuple[str, str]:
    """Placer (2) or filler (3) number and its issuer, from ORC, else from OBR."""
    keyword = {2: "PlacerOrderNumberImagingServiceRequest", 3: "FillerOrderNumberImagingServiceRequest"}[field]
    for segment in (group.orc, group.obr):
        if value := exact(segment, field, keyword):
            return value, values.authority(segment, field, 2)
    return "", ""


def _entity(segment: Segment, number: int) -> list[dict[str, str]]:
    return values.entity(*(segment.get(number, component) for component in (2, 3, 4)))


def _line(obr: Segment, field: int, keyword: str) -> str | None:
    """Of a coded field its text, of a plain one the whole."""
    coded = shown(obr, field, keyword, 2)
    if coded:
        return coded
    return values.null(obr.text(field), lambda text: values.fit(text, keyword, obr, field))


def _comments(lines: Sequence[str]) -> str | None:
    said = [line for line in lines if line != NULL]
    return "\n".join(said)[: values.CHARACTERS_MAX["LT"]] if lines else None


def _start(group: _Group, site: Site) -> tuple[str, str] | None:
    """TQ1-7, else ORC-7.4, else OBR-27.4."""
    sources = ((group.tq1, 7, 1), (group.orc, 7, 4), (group.obr, 27, 4))
    return first(values.start(segment, number, component, site) for segment, number, component in sources if segment)


def _priority(group: _Group) -> str | None:
    """TQ1-9, else ORC-7.6, else OBR-27.6."""
    sources = ((group.tq1, 9, 1), (group.orc, 7, 6), (group.obr, 27, 6))
    said = next((code for segment, n, c in sources if segment and (code := segment.get(n, c))), "")
    return (PRIORITY.get(said) or PRIORITY.get(said[:1], "ROUTINE")) if said else None


def _order_attributes(msg: Message, group: _Group, site: Site) -> dict[str, Any]:
    orc, obr = group.orc, group.obr
    attributes: dict[str, Any] = {
        "RequestingPhysician": first(_name(segment, n, site) for segment, n in ((obr, 16), (orc, 12))),
        "RequestingService": first(shown(orc, 17, "RequestingService", component) for component in (2, 1)),
    }
    # PID and PV1 of a change or cancel are not the order's (RAD-13).
    return attributes | _visit_attributes(msg, site) if orc.get(1) == "NW" else attributes


def _visit_attributes(msg: Message, site: Site) -> dict[str, Any]:
    pv1, pid = msg.first("PV1"), msg.first("PID")
    attributes: dict[str, Any] = {"ImagingServiceRequestComments": _comments(_notes_of_the_patient(msg))}
    if pv1 is None:
        return attributes
    attributes |= {name: shown(pv1, field, name) for field, name in VISIT_TEXT}
    attributes["ReferringPhysicianName"] = _name(pv1, 8, site)
    if pv1.get(15) == "B6":
        attributes["PregnancyStatus"] = 3
    for segment, number in ((pv1, 19), (pid, 18)):
        if segment and (visit := exact(segment, number, "AdmissionID")):
            issuer = values.entity(*(segment.get(number, 4, n) for n in (1, 2, 3)))
            return attributes | {"AdmissionID": visit, "IssuerOfAdmissionIDSequence": issuer}
    return attributes


def _notes_of_the_patient(msg: Message) -> list[str]:
    """NTE between PID and the first order."""
    notes, after_pid = [], False
    for segment in msg.segments:
        if segment.name == "ORC":
            break
        after_pid |= segment.name == "PID"
        if after_pid and segment.name == "NTE" and segment.field(3):
            notes.append(segment.text(3))
    return notes


def _name(segment: Segment, number: int, site: Site) -> str | None:
    return values.null(segment.field(number), lambda _: person(segment, number, site, XCN))


# Several groups of one order


def _same_order(a: OrderCommand, b: OrderCommand) -> bool:
    if not a.accession_number:
        return False
    return (a.accession_number, a.accession_issuer, a.control) == (b.accession_number, b.accession_issuer, b.control)


def _joined(known: OrderCommand, more: OrderCommand) -> OrderCommand:
    """Pairs that share the Requested Procedure ID are steps of one procedure."""
    procedures = list(known.procedures)
    for one in more.procedures:
        same = next((p for p in procedures if p.requested_procedure_id == one.requested_procedure_id), None)
        if same is None or not one.requested_procedure_id:
            procedures.append(one)
        else:
            procedures[procedures.index(same)] = _one_procedure(same, one, more.place)
    priorities = [one.priority for one in (known, more) if one.priority]
    return replace(
        known,
        procedures=tuple(procedures),
        begun=known.begun or more.begun,
        priority=max(priorities, key=PRIORITIES.index, default=None),
        attributes=_both(known.attributes, more.attributes),
    )


def _one_procedure(known: ProcedureCommand, more: ProcedureCommand, place: str) -> ProcedureCommand:
    """Its numbers are the first pair's; each step keeps those of its own pair."""
    uids = {known.study_instance_uid, more.study_instance_uid} - {""}
    if len(uids) > 1:
        raise InvalidValue(place, "the Study Instance UID differs between steps of one requested procedure", err="102")
    attributes = _both(known.attributes, more.attributes)
    comments = [one.attributes.get("RequestedProcedureComments") for one in (known, more)]
    attributes["RequestedProcedureComments"] = _comments(list(dict.fromkeys(filter(None, comments))))
    return replace(
        known, study_instance_uid=next(iter(uids), ""), attributes=attributes, steps=known.steps + more.steps
    )


def _both(known: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {**more, **{name: value for name, value in known.items() if value is not None}}
