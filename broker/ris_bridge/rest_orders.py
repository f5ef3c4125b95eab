"""The order body of the contract (POST and PATCH of /api/v1/orders, `broker order place`) to the same command as HL7's.

In a new order null says nothing; in a change it deletes, and what is absent stays as it is."""

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from broker import ids
from broker.config import Site
from broker.errors import BrokerError, InvalidValue, MissingField, UnknownKey
from broker.mwl import kana
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge import alike, http_road, json_faults
from broker.ris_bridge.hl7 import names, values

B = TypeVar("B", bound=BaseModel)
NO_TEXT, ONE_LINE = http_road.NO_TEXT, http_road.ONE_LINE
# A text of one value: a backslash would make two of it (PS3.5 6.2).
PLAIN = rf"^[^\\{ONE_LINE}]*$"
LINES = f"^[^{NO_TEXT}]*$"
GROUP_TEXT = rf"^([^\\=^{ONE_LINE}]*\^){{0,4}}[^\\=^{ONE_LINE}]*$"
SH = Annotated[str, Field(max_length=16, pattern=PLAIN)]
LO = Annotated[str, Field(max_length=64, pattern=PLAIN)]
LT = Annotated[str, Field(max_length=10_240, pattern=LINES)]
GROUP = Annotated[str, Field(max_length=64, pattern=GROUP_TEXT)]  # one component group of a name
AE_TITLE = Annotated[str, Field(pattern=ids.AE_TITLE)]
DOTTED, SEX, MODALITY = r"^[0-9.]*$", "^[MFO]?$", "^[A-Z0-9_ ]{1,16}$"
# (0074,1202). A node names several, separated by commas.
LABEL = rf"^([^\\,{ONE_LINE}\s]([^\\,{ONE_LINE}]{{0,62}}[^\\,{ONE_LINE}\s])?)?$"
UNSEEN = "control, direction or zero-width character"
PRIORITY = "^(STAT|HIGH|ROUTINE|MEDIUM|LOW)$"
UID = Annotated[str, Field(max_length=64, pattern=DOTTED)]
PATTERNS = {
    PLAIN: f"must hold no backslash and no {UNSEEN}",
    LINES: f"must hold no {UNSEEN} but tabs and line ends",
    GROUP_TEXT: f"must be written as FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, without backslash and =, and hold no {UNSEEN}",
    ids.AE_TITLE: "must be 1 to 16 ASCII characters without backslash and without blanks at either end",
    DOTTED: "must hold digits and dots only", SEX: "must be M, F or O, or empty",
    MODALITY: "must be 1 to 16 of A to Z, 0 to 9, _ and blank",
    LABEL: "must be at most 64 characters without commas and backslashes, without a blank at either end, and hold no"
    f" {UNSEEN}",
    PRIORITY: "must be STAT, HIGH, ROUTINE, MEDIUM or LOW",
}  # fmt: skip
YEAR, YEARS = "(18|19|20|21)[0-9]{2}", "1800 and 2199"  # that stay years in every zone
DAY = rf"{YEAR}-[0-9]{{2}}-[0-9]{{2}}"
TIME = DAY + r"T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?"


def _written(pattern: str, example: str) -> BeforeValidator:
    """Digits alone are seconds since 1970 to the library: 19700101 must not become the 17th of August."""

    of_any_year = pattern.replace(YEAR, "[0-9]{4}")

    def check(value: Any) -> Any:
        if value is None or (isinstance(value, str) and re.fullmatch(pattern, value)):
            return value
        if isinstance(value, str) and re.fullmatch(of_any_year, value):
            raise ValueError(f"its year must lie between {YEARS}")
        raise ValueError(f"must be written as {example}")

    return BeforeValidator(check)


Day = Annotated[dt.date, _written(DAY, "1970-01-31")]
Moment = Annotated[dt.datetime, _written(TIME, "2025-12-01T09:30:00+09:00, or without an offset in the site's zone")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def said(self, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
        """None where it is not there; empty where it is null."""
        if name not in self.model_fields_set:
            return None
        value = getattr(self, name)
        return "" if value is None else convert(value)


class Name(Body):
    """Each group as DICOM has it: FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX."""

    alphabetic: GROUP | None = None
    ideographic: GROUP | None = None
    phonetic: GROUP | None = None


def _by_script(value: Any) -> Any:
    """A name in one text: which group it is, its script says."""
    if not isinstance(value, str | dict | Name):
        raise ValueError("must be a text, or an object with alphabetic, ideographic and phonetic")
    group = {"I": "ideographic", "P": "phonetic"}
    return {group.get(kana.script(value) or "A", "alphabetic"): value} if isinstance(value, str) else value


AnyName = Annotated[Name, BeforeValidator(_by_script)]


class PatientBody(Body):
    id: Annotated[str, Field(min_length=1, max_length=64, pattern=PLAIN)] | None = None
    issuer: LO | None = None
    birth_date: Day | None = None
    sex: Annotated[str, Field(pattern=SEX)] | None = None
    name: AnyName | None = None


class Code(Body):
    """value: up to 16 characters, or the 32 of JJ1017."""

    value: Annotated[str, Field(max_length=32, pattern=PLAIN)]
    scheme: SH = ""
    meaning: LO = ""


class StepBody(Body):
    sps_id: SH | None = None
    modality: Annotated[str, Field(pattern=MODALITY)] | None = None
    station_ae_titles: Annotated[list[AE_TITLE], Field(max_length=100)] | None = None
    station_name: SH | None = None
    location: SH | None = None
    scheduled_start: Moment | None = None
    description: LO | None = None
    label: Annotated[str, Field(pattern=LABEL)] | None = None
    performing_physician: AnyName | None = None
    protocol_codes: Annotated[list[Code], Field(max_length=100)] | None = None


class ProcedureBody(Body):
    id: SH | None = None
    placer_order_number: LO | None = None
    placer_order_issuer: LO | None = None
    filler_order_number: LO | None = None
    filler_order_issuer: LO | None = None
    study_instance_uid: UID | None = None
    description: LO | None = None
    code: Code | None = None
    reason: LO | None = None
    comments: LT | None = None
    transport: LO | None = None
    referring_physician: AnyName | None = None
    steps: Annotated[list[StepBody], Field(max_length=100)] = []


class OrderBody(Body):
    accession_number: SH | None = None
    accession_issuer: LO | None = None
    priority: Annotated[str, Field(pattern=PRIORITY)] | None = None
    patient: PatientBody | None = None
    requesting_physician: AnyName | None = None
    requesting_service: LO | None = None
    admission_id: LO | None = None
    admission_issuer: LO | None = None
    current_patient_location: LO | None = None
    requested_procedures: Annotated[list[ProcedureBody], Field(max_length=100)] = []


class Reason(Body):
    reason: Annotated[str, Field(max_length=1_000, pattern=LINES)] | None = None


class Arrival(Body):
    at: Moment | None = None


class BringBack(Body):
    """id: of the procedure. Without sps_id all steps of the order are meant."""

    reason: Annotated[str, Field(min_length=1, max_length=1_000, pattern=LINES)] | None = None
    id: SH | None = None
    sps_id: SH | None = None


class Label(Body):
    label: Annotated[str, Field(pattern=LABEL)] | None = None


NUMBERS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")
PROCEDURE_KEYS = ("id", "study_instance_uid", "placer_order_number", "filler_order_number")


# Reading


def new(text: str, kind: type[B] = OrderBody) -> B:  # type: ignore[assignment]
    """Raises InvalidValue naming the fields that are wrong; never their values."""
    return _validated(kind, _without_nulls(_parsed(text)))


def change(text: str) -> OrderBody:
    return _validated(OrderBody, _parsed(text))


def body(kind: type[B], text: str) -> B:
    """Of an action, which may have none."""
    return _validated(kind, _parsed(text) if text.strip() else {})


KEYS = {
    "accession_number": "accession", "placer_order_number": "placer", "filler_order_number": "filler",
    "study_instance_uid": "study",
}  # fmt: skip


def keys(raw: bytes) -> list[tuple[str, str]]:
    """What a body names that may not be an order, for the journal."""
    try:
        return list(_keys(_without_blanks(http_road.json_of(http_road.text(raw), "body"))))
    except BrokerError:
        return []


def _keys(found: Any) -> Iterator[tuple[str, str]]:
    if isinstance(found, list):
        for one in found:
            yield from _keys(one)
    elif isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, str) and name in KEYS:
                yield KEYS[name], value
            elif name == "patient" and isinstance(value, dict) and isinstance(value.get("id"), str):
                yield "patient", value["id"]
            else:
                yield from _keys(value)


def _parsed(text: str) -> Any:
    found = http_road.json_of(text, "body")
    http_road.refuse_twice(text, "body")
    if isinstance(found, dict | list) and "\\u0000" in text and (where := http_road.nul(found)) is not None:
        raise InvalidValue(_path(where), "holds NUL, which is no character of a text")
    return _without_blanks(found)


def _without_blanks(value: Any) -> Any:
    """At the ends of a text they say nothing (PS3.5 6.2)."""
    if isinstance(value, dict):
        return {name: _without_blanks(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_blanks(one) for one in value]
    return value.strip(http_road.BLANKS) if isinstance(value, str) else value


def _path(where: json_faults.Where) -> str:
    return ".".join(map(str, json_faults.plain(where)))[: http_road.PLACE_CHARACTERS_MAX] or "body"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _validated(kind: type[B], found: Any) -> B:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise json_faults.refusal(error.errors(include_url=False, include_input=False), PATTERNS, _path) from None


# To a command


def placed(body: OrderBody, site: Site) -> OrderCommand:
    """A new order. Raises MissingField for what a worklist item needs, or what the site's policies demand."""
    _require(body, site)
    person = _person(body.patient, site)
    assert person is not None
    command = _command("NW", body, site)
    return replace(
        command,
        procedures=tuple(_with_numbers(one) for one in command.procedures),
        accession_number=body.accession_number or "",
        accession_issuer=site.accession_issuer if body.accession_issuer is None else body.accession_issuer,
        patient=person,
        policies=http_road.policies(site),
    )


def _with_numbers(procedure: ProcedureCommand) -> ProcedureCommand:
    """A step is found by the numbers of what asked for it."""
    numbers = {name: getattr(procedure, name) for name in NUMBERS}
    return replace(procedure, steps=tuple(replace(step, **numbers) for step in procedure.steps))


@dataclass(frozen=True)
class Has:
    """A procedure that the order has. numbers: by their names in a body, PROCEDURE_KEYS."""

    numbers: Mapping[str, str]
    sps_ids: tuple[str, ...]

    def is_meant(self, body: ProcedureBody) -> bool:
        """By any number that it has; by one that it has not got yet; where none is stated, it may be."""
        named = {name: value for name in PROCEDURE_KEYS if (value := getattr(body, name))}
        same = any(self.numbers[name] == value for name, value in named.items())
        return same or all(not self.numbers[name] for name in named)


def changed(body: OrderBody, known: http_road.Known, has: Sequence[Has], site: Site) -> OrderCommand:
    """A change of a known order. has: its procedures.

    Raises InvalidValue for what never changes, MissingField where it does not say which step it is about, or names one
    that the order does not have and does not say all that a new one needs."""
    mine = {"accession_number": known.accession_number, "accession_issuer": known.accession_issuer}
    if body.patient:
        mine |= {"patient.id": known.patient.value, "patient.issuer": known.patient.issuer}
    for where, value in mine.items():
        *holder, name = where.split(".")
        if (body.patient if holder else body).said(name) not in (None, value):  # type: ignore[union-attr]
            raise InvalidValue(where, "cannot be changed")
    is_alone = sum(len(one.sps_ids) for one in has) <= 1
    for n, procedure in enumerate(body.requested_procedures):
        path = f"requested_procedures.{n}"
        if not is_alone:
            _named(procedure, path)
        _check_new(procedure, [one for one in has if one.is_meant(procedure)], path)
    return replace(known.command("XO", place="order"), **_said(_command("XO", body, site)))


def brought_back(body: BringBack, known: http_road.Known, has: Sequence[Has]) -> OrderCommand:
    """has: the procedures of the order. Raises MissingField for the reason, or where several procedures have a step of
    that ID, UnknownKey where none has."""
    if not (body.reason or "").strip():
        raise MissingField("reason", "is required: it is kept with who did it")
    command = known.command("reinstate", reason=body.reason, place="order_id")
    if not (body.sps_id or body.id):
        return command
    mine = [one for one in has if body.id in (None, one.numbers["id"])]
    mine = [one for one in mine if body.sps_id is None or body.sps_id in one.sps_ids]
    if not mine:
        raise UnknownKey("sps_id" if body.sps_id else "id", "the order has no such step or procedure")
    if len(mine) > 1:
        raise MissingField("id", "several procedures of the order have a step of that ID: say which one")
    steps = (StepCommand(body.sps_id),) if body.sps_id else ()
    return replace(command, procedures=(ProcedureCommand(mine[0].numbers["id"], steps=steps),))


def demographics(body: OrderBody, known: http_road.Known, site: Site) -> PersonCommand | None:
    """What a change says of the patient."""
    if body.patient is None or not body.patient.model_fields_set - {"id", "issuer"}:
        return None
    if "name" in body.patient.model_fields_set and not _name_of(body.patient.name, site, "patient.name").pn:
        raise InvalidValue("patient.name", "cannot be deleted")
    made = _person(body.patient, site)
    assert made is not None
    return replace(made, identifiers=(known.patient,))


def _said(command: OrderCommand) -> dict[str, Any]:
    return {name: getattr(command, name) for name in ("priority", "procedures", "attributes")}


def _named(procedure: ProcedureBody, path: str) -> None:
    if not any(getattr(procedure, name) for name in PROCEDURE_KEYS):
        raise MissingField(f"{path}.id", "the order has several steps: say which procedure")
    for n, step in enumerate(procedure.steps):
        if not step.sps_id:
            raise MissingField(f"{path}.steps.{n}.sps_id", "the order has several steps: say which one")


def _check_new(procedure: ProcedureBody, mine: Sequence[Has], path: str) -> None:
    known = {sps_id for one in mine for sps_id in one.sps_ids}
    needed: list[tuple[str, Any]] = [] if mine else [(f"{path}.steps", procedure.steps)]
    for n, step in enumerate(procedure.steps):
        if not mine or (step.sps_id and step.sps_id not in known):
            needed += _of_new_step(step, f"{path}.steps.{n}")
    for where, value in needed:
        if not value:
            raise MissingField(where, "is required: the order has no such procedure or step, and a new one has it")


def _of_new_step(step: StepBody, path: str) -> list[tuple[str, Any]]:
    """What a worklist item cannot do without (PS3.4 Table K.6-1)."""
    return [(f"{path}.{name}", getattr(step, name)) for name in ("modality", "station_ae_titles", "scheduled_start")]


def _require(body: OrderBody, site: Site) -> None:
    """What a worklist item cannot do without, and what this site makes of missing identifiers."""
    patient = body.patient or PatientBody()
    needed: list[tuple[str, Any]] = [("patient.id", patient.id)]
    needed.append(("patient.name", _name_of(patient.name, site, "patient.name").pn))
    needed.append(("requested_procedures", body.requested_procedures))
    rejected = [("accession_number", body.accession_number, site.missing_accession_number)]
    for n, procedure in enumerate(body.requested_procedures):
        path = f"requested_procedures.{n}"
        needed.append((f"{path}.steps", procedure.steps))
        rejected.append((f"{path}.id", procedure.id, site.missing_requested_procedure_id))
        rejected.append((f"{path}.study_instance_uid", procedure.study_instance_uid, site.missing_study_instance_uid))
        for m, step in enumerate(procedure.steps):
            needed += _of_new_step(step, f"{path}.steps.{m}")
            rejected.append((f"{path}.steps.{m}.sps_id", step.sps_id, site.missing_sps_id))
    needed += [(where, value) for where, value, policy in rejected if policy == "reject"]
    if missing := [(where, "is required") for where, value in needed if not value]:
        raise json_faults.several(MissingField, missing)


def _command(control: str, body: OrderBody, site: Site) -> OrderCommand:
    """admission_issuer: as HL7 has it in PV1-19.4."""
    issuer = body.said("admission_issuer")
    procedures = tuple(
        _procedure(one, site, f"requested_procedures.{n}") for n, one in enumerate(body.requested_procedures)
    )
    _refuse_contradiction(procedures)
    return OrderCommand(
        control=control,  # type: ignore[arg-type]
        priority=body.said("priority") if body.said("priority") != "" else "ROUTINE",
        procedures=tuple(replace(one, steps=alike.once(one.steps)) for one in procedures),
        attributes={
            "RequestingPhysician": _physician(body, "requesting_physician", site),
            "RequestingService": body.said("requesting_service"),
            "AdmissionID": body.said("admission_id"),
            "IssuerOfAdmissionIDSequence": None if issuer is None else values.entity(issuer),
            "CurrentPatientLocation": body.said("current_patient_location"),
        },
        place="order",
    )


def _refuse_contradiction(procedures: Sequence[ProcedureCommand]) -> None:
    if found := alike.contradiction(procedures):
        procedure, step = found
        place = f"requested_procedures.{procedure}" + (".id" if step is None else f".steps.{step}.sps_id")
        raise InvalidValue(place, "is named before with other contents: say it once, or give it its own ID", err="102")


def _person(body: PatientBody | None, site: Site) -> PersonCommand | None:
    if body is None:
        return None
    name = _name_of(body.name, site, "patient.name")
    issuer = site.patient_id_issuer if body.issuer is None else body.issuer
    return PersonCommand(
        identifiers=(Identifier(body.id or "", issuer),),
        name=name.pn or None,
        birth_date=body.said("birth_date", lambda day: day.strftime("%Y%m%d")),
        sex=body.said("sex"),
        romanised=name.romaji_derived,
    )


def _procedure(body: ProcedureBody, site: Site, path: str) -> ProcedureCommand:
    for name in PROCEDURE_KEYS:
        if body.said(name) == "":
            raise InvalidValue(f"{path}.{name}", "cannot be empty or deleted: the order is found by it")
    if body.study_instance_uid and not ids.valid_uid(body.study_instance_uid):
        raise InvalidValue(f"{path}.study_instance_uid", "is no UID")
    code = body.said("code", lambda one: _code(one, f"{path}.code"))
    triple = {"CodeValue": None, "CodingSchemeDesignator": None, "CodeMeaning": None} if code is None else (
        code or dict.fromkeys(("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), "")
    )  # fmt: skip
    return ProcedureCommand(
        requested_procedure_id=body.id or "",
        study_instance_uid=body.study_instance_uid or "",
        placer_number=body.placer_order_number or "",
        placer_issuer=body.placer_order_issuer or "",
        filler_number=body.filler_order_number or "",
        filler_issuer=body.filler_order_issuer or "",
        description=body.said("description"),
        code_value=triple["CodeValue"],
        code_scheme=triple["CodingSchemeDesignator"],
        code_meaning=triple["CodeMeaning"],
        attributes={
            "ReasonForTheRequestedProcedure": body.said("reason"),
            "RequestedProcedureComments": body.said("comments"),
            "PatientTransportArrangements": body.said("transport"),
            "ReferringPhysicianName": _physician(body, "referring_physician", site),
        },
        steps=tuple(_step(one, site, f"{path}.steps.{n}") for n, one in enumerate(body.steps)),
    )


def _step(body: StepBody, site: Site, path: str) -> StepCommand:
    if body.said("sps_id") == "":
        raise InvalidValue(f"{path}.sps_id", "cannot be empty or deleted: the step is found by it")
    start = body.said("scheduled_start", lambda at: local(at, site))
    date, time = ("", "") if start == "" else start or (None, None)
    return StepCommand(
        sps_id=body.sps_id or "",
        modality=body.said("modality"),
        station_ae_titles=body.said("station_ae_titles", tuple) if body.said("station_ae_titles") != "" else (),
        start_date=date,
        start_time=time,
        description=body.said("description"),
        label=body.said("label"),
        attributes={
            "ScheduledPerformingPhysicianName": _physician(body, "performing_physician", site),
            "ScheduledStationName": body.said("station_name", lambda name: [name] if name else ""),
            "ScheduledProcedureStepLocation": body.said("location"),
            "ScheduledProtocolCodeSequence": body.said(
                "protocol_codes",
                lambda codes: [_code(one, f"{path}.protocol_codes.{n}") for n, one in enumerate(codes)],
            ),
        },
    )


# Values, as HL7 reads them


def moment(at: dt.datetime, site: Site) -> dt.datetime:
    """Without an offset it is the site's time."""
    return at if at.tzinfo else at.replace(tzinfo=ZoneInfo(site.timezone))


def local(at: dt.datetime, site: Site) -> tuple[str, str]:
    """DICOM date and time in the site's zone."""
    here = moment(at, site).astimezone(ZoneInfo(site.timezone))
    return here.strftime("%Y%m%d"), here.strftime("%H%M%S")


def _code(body: Code, path: str) -> dict[str, Any]:
    return code(body.value, body.meaning, body.scheme, path)


def code(value: str, meaning: str, scheme: str, path: str) -> dict[str, Any]:
    """A code item, by the rule for JJ1017 that HL7's codes have. Raises InvalidValue for one that DICOM cannot hold."""
    if values.JJ1017_SCHEME.match(scheme) or (not scheme and values.JJ1017_32.fullmatch(value)):
        made = values.jj1017(value, meaning, scheme)
        if made is None:
            raise InvalidValue(path, "is no JJ1017 code: 16 or 32 characters, digits and capitals without I and O")
        return made
    if not value or len(value) > values.CHARACTERS_MAX["SH"]:
        raise InvalidValue(path, "must have 1 to 16 characters, or the 32 of JJ1017")
    return values.code(value, meaning, scheme)


def _physician(body: Body, name: str, site: Site) -> str | None:
    found = body.said(name, lambda said: _name_of(said, site, name).pn)
    return None if found is None else str(found)


def _name_of(said: Name | None, site: Site, path: str) -> names.Name:
    if said is None:
        return names.Name("")
    groups = (("A", said.alphabetic), ("I", said.ideographic), ("P", said.phonetic))
    return name([(code, _parts(group)) for code, group in groups if group], site, path)


def _parts(group: str) -> list[str]:
    """DICOM says prefix, suffix; HL7 suffix, prefix."""
    family, given, middle, prefix, suffix = [*group.split("^"), "", "", "", ""][:5]
    return [family, given, middle, suffix, prefix]


def name(said: list[tuple[str, list[str]]], site: Site, path: str) -> names.Name:
    """said: (representation A, I, P or empty, [family, given, middle, suffix, prefix])."""
    try:
        return names.grouped(said, site, path, names.XPN)
    except BrokerError as error:
        raise InvalidValue(path, error.text) from None
