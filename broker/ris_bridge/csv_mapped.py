"""Rows of a CSV file as a mapping profile reads them: each row is a segment whose fields have names. Pure."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.mapping import paths
from broker.ris_bridge.mapping.profile import Group, Profile

KEYS = (
    ("accession", "order", "accession_number"), ("patient", "patient", "id"), ("placer", "procedure", "placer_number"),
    ("filler", "procedure", "filler_number"), ("study", "procedure", "study_instance_uid"),
)  # fmt: skip
NUMBERS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")


@dataclass(frozen=True)
class Reading:
    """One row: what it says of each level, as (fields, attributes)."""

    line: int
    scope: Group
    said: dict[str, tuple[dict[str, Any], dict[str, Any]]]


def reading(profile: Profile, names: Sequence[str], cells: Sequence[str], line: int, site: Site) -> Reading:
    """Raises what is wrong with a cell, at `line 7, column`."""
    scope = Group.of([paths.row(names, cells, line)])
    own = profile.source_site(site)
    levels = ("patient", "visit", "order", "procedure", "step")
    return Reading(line, scope, {level: profile.said(level, scope, own, new=True) for level in levels})


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


def command(profile: Profile, rows: Sequence[Reading], site: Site, at: dt.datetime) -> OrderCommand:
    """Of the rows of one order. Rows that say the same of the procedure are steps of it. at: of the file."""
    site, first = profile.source_site(site), rows[0]
    for row in rows[1:]:
        for level in ("patient", "visit", "order"):
            if row.said[level] != first.said[level]:
                raise InvalidValue(f"line {row.line} {level}", "differs from the first row of the same order")
    order, attributes = first.said["order"]
    _need(profile, site, "accession_number", order, first)
    procedures: list[tuple[Any, ProcedureCommand]] = []
    for row in rows:
        step = _step(profile, row, site)
        known = next((n for n, (said, _) in enumerate(procedures) if said == row.said["procedure"]), None)
        if known is None:
            procedures.append((row.said["procedure"], replace(_procedure(profile, row, site), steps=(step,))))
        else:
            said, made = procedures[known]
            procedures[known] = said, replace(made, steps=(*made.steps, step))
    fields = {**order, "accession_issuer": order.get("accession_issuer") or site.accession_issuer}
    return OrderCommand(
        "NW",
        patient=_person(first, site),
        procedures=tuple(one for _, one in procedures),
        attributes=attributes | first.said["visit"][1],
        place="order",
        known=profile.identity.known or "change",
        unknown=profile.identity.unknown or "refuse",
        policies=profile.policies(site),
        **{**fields, "at": fields.get("at") or at},
    )


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
    own = {f"step.{name}": said.get(name) for name in ("modality", "description", "start_date", "start_time")}
    own |= {f"procedure.{name}": procedure.get(name) for name in ("code_value", "code_scheme", "description")}
    if rule := profile.station(row.scope, own, named=bool(said.get("station_ae_titles"))):
        for into, name, value in (
            (said, "station_ae_titles", rule.ae_titles),
            (said, "modality", rule.modality),
            (attributes, "ScheduledStationName", [rule.station_name] if rule.station_name else None),
            (attributes, "ScheduledProcedureStepLocation", rule.location),
        ):
            if value and (rule.always or not into.get(name)):
                into[name] = value
    for name in ("modality", "station_ae_titles", "start_date"):
        if not said.get(name):
            raise MissingField(f"line {row.line} step.{name}", "is required")
    return StepCommand(**said, attributes=attributes, **{name: procedure.get(name, "") for name in NUMBERS})


def _need(profile: Profile, site: Site, identifier: str, said: dict[str, Any], row: Reading) -> None:
    if not said.get(identifier) and profile.missing(identifier, site, "generate") == "reject":
        raise MissingField(f"line {row.line} {identifier}", "is required")
