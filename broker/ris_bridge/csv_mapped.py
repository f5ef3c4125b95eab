"""Rows of a CSV file as a mapping profile reads them: each row is a segment whose fields have names. Pure."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge import alike
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.mapping import paths
from broker.ris_bridge.mapping.profile import Group, Profile

KEYS = (
    ("accession", "order", "accession_number"), ("patient", "patient", "id"), ("placer", "procedure", "placer_number"),
    ("filler", "procedure", "filler_number"), ("study", "procedure", "study_instance_uid"),
)  # fmt: skip
LEVELS = ("patient", "visit", "order", "procedure", "step")
ROWS_ARE = "ORM^O01"  # for the rules of a profile that say what a message means
CONTROL = "control"  # the column that says what a row wants, in the words of the profile's [controls]
CONTROLS = {"NW": "NW", "XO": "NW", "CA": "CA", "DC": "CA"}  # a row that is there says how the order is
SAID_TWICE = "another row of this order says something else under the same ID; give each its own ID"
NUMBERS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")


@dataclass(frozen=True)
class Reading:
    """One row: what it says of each level, as (fields, attributes); nothing where a rule of the profile ignores it.
    control: as its cell has it."""

    line: int
    scope: Group
    said: dict[str, tuple[dict[str, Any], dict[str, Any]]]
    control: str = ""
    is_ignored: bool = False


def reading(profile: Profile, names: Sequence[str], cells: Sequence[str], line: int, site: Site) -> Reading:
    """Raises what is wrong with a cell, at `line 7, column`."""
    scope = Group.of([paths.row(names, cells, line)])
    if profile.means(ROWS_ARE, scope) == "ignore":
        return Reading(line, scope, {level: ({}, {}) for level in LEVELS}, is_ignored=True)
    own = profile.source_site(site)
    said = {level: profile.said(level, scope, own, new=True) for level in LEVELS}
    return Reading(line, scope, said, dict(zip(names, cells, strict=False)).get(CONTROL, "").strip())


def order_of(row: Reading) -> tuple[str, str]:
    """Accession number and issuer; empty where the row does not say."""
    fields, _ = row.said["order"]
    return fields.get("accession_number") or "", fields.get("accession_issuer") or ""


def keys(rows: Sequence[Reading]) -> Iterator[tuple[str, str]]:
    """By which the journal finds them."""
    for row in rows:
        for kind, level, name in KEYS:
            if value := row.said[level][0].get(name):
                yield kind, value


def commands(profile: Profile, rows: Sequence[Reading], site: Site, at: dt.datetime) -> list[OrderCommand]:
    """Of the rows of one order: none where all are ignored. at: of the file."""
    counting = [row for row in rows if not row.is_ignored]
    if not counting:
        return []
    controls = [_control(profile, row) for row in counting]
    for row, control in zip(counting, controls, strict=True):
        if control != controls[0]:
            raise InvalidValue(f"line {row.line} {CONTROL}", "differs from the first row of the same order")
    read = _cancel if controls[0] == "CA" else _order
    return [read(profile, counting, profile.source_site(site), at)]


def _control(profile: Profile, row: Reading) -> str:
    meant = CONTROLS.get(profile.meaning(row.control, "") or "") if row.control else "NW"
    if meant is None:
        raise InvalidValue(f"line {row.line} {CONTROL}", "means nothing that a row can say: NW, XO, CA, DC", err="103")
    return meant


def _cancel(profile: Profile, rows: Sequence[Reading], site: Site, at: dt.datetime) -> OrderCommand:
    row = rows[0]
    order, patient = row.said["order"][0], row.said["patient"][0]
    for name, value in (("accession_number", order.get("accession_number")), ("patient.id", patient.get("id"))):
        if not value:
            raise MissingField(f"line {row.line} {name}", "is required to cancel an order")
    return OrderCommand(
        "CA",
        accession_number=order["accession_number"],
        accession_issuer=order.get("accession_issuer") or site.accession_issuer,
        patient=PersonCommand((Identifier(patient["id"], patient.get("issuer") or site.patient_id_issuer),)),
        at=_happened(order, at),
        place="order",
    )


def _order(profile: Profile, rows: Sequence[Reading], site: Site, at: dt.datetime) -> OrderCommand:
    """Rows that say the same of the procedure are steps of it."""
    first = rows[0]
    for row in rows[1:]:
        for level in ("patient", "visit", "order"):
            if row.said[level] != first.said[level]:
                raise InvalidValue(f"line {row.line} {level}", "differs from the first row of the same order")
    order, attributes = first.said["order"]
    _need(profile, site, "accession_number", order, first)
    procedures: list[tuple[Any, ProcedureCommand]] = []
    for row in rows:
        made_step = _step(profile, row, site)
        known = next((n for n, (said, _) in enumerate(procedures) if said == row.said["procedure"]), None)
        if known is None:
            procedures.append((row.said["procedure"], replace(_procedure(profile, row, site), steps=(made_step,))))
        else:
            said, made = procedures[known]
            procedures[known] = said, replace(made, steps=(*made.steps, made_step))
    found = [one for _, one in procedures]
    if wrong := alike.contradiction(found):
        procedure, step = wrong
        lines = [row.line for row in rows if row.said["procedure"] == procedures[procedure][0]]
        name = "procedure.requested_procedure_id" if step is None else "step.sps_id"
        raise InvalidValue(f"line {lines[step or 0]} {name}", SAID_TWICE, err="102")
    fields = {**order, "accession_issuer": order.get("accession_issuer") or site.accession_issuer}
    return OrderCommand(
        "NW",
        patient=_person(first, site),
        procedures=tuple(replace(one, steps=alike.once(one.steps)) for one in found),
        attributes=attributes | first.said["visit"][1],
        place="order",
        known=profile.identity.known or "change",
        unknown=profile.identity.unknown or "refuse",
        policies=profile.policies(site),
        **{**fields, "at": _happened(order, at)},
    )


def _happened(order: dict[str, Any], at: dt.datetime) -> dt.datetime | None:
    """A date alone is the second of that day at which the file was written."""
    return values.happened(order.get("at"), values.Span(at, at))


def _person(row: Reading, site: Site) -> PersonCommand:
    said, attributes = row.said["patient"]
    for name in ("id", "name"):
        if not said.get(name):
            raise MissingField(f"line {row.line} patient.{name}", "is required")
    identifier = Identifier(said["id"], said.get("issuer") or site.patient_id_issuer)
    return PersonCommand((identifier,), said["name"], said.get("birth_date"), said.get("sex"), attributes)


def _procedure(profile: Profile, row: Reading, site: Site) -> ProcedureCommand:
    said, attributes = row.said["procedure"]
    for name in ("requested_procedure_id", "study_instance_uid"):
        _need(profile, site, name, said, row)
    return ProcedureCommand(**said, attributes=attributes)


def _step(profile: Profile, row: Reading, site: Site) -> StepCommand:
    said, attributes = ({**part} for part in row.said["step"])
    procedure, _ = row.said["procedure"]
    _need(profile, site, "sps_id", said, row)
    if said.get("modality") is None:
        said["modality"] = values.modality_of(attributes.get("ScheduledProtocolCodeSequence"))
    profile.set_station(said, attributes, row.scope, procedure)
    for name in ("modality", "station_ae_titles", "start_date"):
        if not said.get(name):
            raise MissingField(f"line {row.line} step.{name}", "is required")
    return StepCommand(**said, attributes=attributes, **{name: procedure.get(name, "") for name in NUMBERS})


def _need(profile: Profile, site: Site, identifier: str, said: dict[str, Any], row: Reading) -> None:
    if not said.get(identifier) and profile.missing(identifier, site, "generate") == "reject":
        raise MissingField(f"line {row.line} {identifier}", "is required")
