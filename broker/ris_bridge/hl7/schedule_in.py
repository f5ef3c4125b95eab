"""SIU S12 S13 S14 S15 S17 S26 to order commands (conformance.md 5.1; IHE RAD-48). Pure.

An appointment is the slot of one or more steps. Where orders come by themselves it says when, where and by whom; what
is to be done is the order's. Where the schedule is all there is (a profile with `unknown = "place"`), it is the order,
too.
Which segments make an appointment and its services stands here; which field says what stands in the mapping profile."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import Control, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.mwl.slots import CODES, ServiceCommand
from broker.ris_bridge import alike
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Message, Segment, groups
from broker.ris_bridge.hl7.patients_in import only_pid, patient_of
from broker.ris_bridge.mapping import profile as profiles
from broker.ris_bridge.mapping.paths import with_field
from broker.ris_bridge.mapping.profile import Group, Profile

EVENTS: dict[str, Control] = {
    "S12": "XO", "S13": "XO", "S14": "XO", "S15": "CA", "S17": "CA", "S26": "no_show",
}  # fmt: skip
# SCH-25 (table 0278) of a modified appointment (S14): ORC-1 and ORC-5 that say so of an order. What is not here changes
# nothing by itself; of the other events the event says it all.
STATUSES: dict[str, tuple[Control, str]] = {
    "CANCELLED": ("CA", ""), "CANCELED": ("CA", ""), "DC": ("CA", ""), "DELETED": ("CA", ""), "NOSHOW": ("no_show", ""),
    "STARTED": ("XO", "IP"), "COMPLETE": ("XO", "CM"),
}  # fmt: skip
RESOURCES = ("AIG", "AIL", "AIP")
DELETED = "D"  # table 0206, of RGS-2, AIS-2 and the resources'
UNITS = {"S": "seconds", "SEC": "seconds", "MIN": "minutes", "M": "minutes", "H": "hours", "HR": "hours", "D": "days"}
# What an appointment says of an order that comes by itself.
NUMBERS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")
OF_ORDER = ("accession_number", "accession_issuer", "at", "reason")
OF_PROCEDURE = ("requested_procedure_id", "study_instance_uid")
OF_STEP = (
    "sps_id", "appointment_number", "appointment_issuer", "station_ae_titles", "start_date", "start_time", "label",
)  # fmt: skip
OF_SLOT = ("ScheduledStationName", "ScheduledProcedureStepLocation", "ScheduledPerformingPhysicianName")
IDENTIFIERS = ("accession_number", "requested_procedure_id", "sps_id", "study_instance_uid")
PROFILE = "siu-scheduling"
ORDERS = (26, 27)  # SCH: placer and filler numbers


def to_commands(msg: Message, site: Site, profile: Profile | None = None) -> list[OrderCommand]:
    """One for each order of the appointment; as a rule it is one.

    profile: None = the fields of the shipped one, and no order is placed. Raises what the acknowledgement says: 100 for
    a missing or misplaced segment, 101, 102 for a field."""
    places = profile is not None and profile.identity.unknown == "place"
    profile = profile or profiles.shipped(PROFILE)
    sch = msg.first("SCH")
    if sch is None:
        raise MissingField("SCH", "an appointment's segment is required", err="100")
    orders = _orders(sch)
    reading = _Reading(msg, profile.source_site(site), profile, places and len(orders) == 1)
    if len(orders) > 1 and len(reading.services) > 1:
        raise InvalidValue(sch.place(26), "several orders, and several services: none says whose it is", err="102")
    return [reading.command(one) for one in orders]


def _orders(sch: Segment) -> list[Segment]:
    """SCH with the numbers of one order each: SCH-26 and 27 repeat. Such orders are never placed."""
    several = max(len(sch.repetitions(number)) for number in ORDERS)
    made = [sch]
    for n in range(2, several + 1):
        one = sch
        for number in ORDERS:
            repetitions = sch.repetitions(number)
            if repetitions:
                one = with_field(one, number, repetitions[n - 1] if n <= len(repetitions) else "")
        made.append(one)
    return made


@dataclass(frozen=True)
class _Service:
    """An AIS with the first of its group's resources of each kind; without an AIS, with those of the appointment."""

    ais: Segment | None
    segments: tuple[Segment, ...]


@dataclass
class _Reading:
    """One message on its way to commands. places: an order that is not known is made of it."""

    msg: Message
    site: Site
    profile: Profile
    places: bool

    @cached_property
    def patient(self) -> PersonCommand:
        person = patient_of(only_pid(self.msg), self.msg, self.site)
        fields, attributes = self.profile.said("patient", Group.of(self.msg.segments), self.site, new=True)
        said = {name: value for name, value in fields.items() if value is not None and name in ("birth_date", "sex")}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        return replace(person, **said, attributes=person.attributes | attributes)

    @cached_property
    def services(self) -> list[_Service]:
        return list(_services(self.msg))

    @cached_property
    def meaning(self) -> tuple[Control, str]:
        """Control, and status of the order."""
        event = self.msg.header.type.split("^")[-1]
        control = EVENTS[event]
        if control == "XO" and not self.services:
            return "CA", ""  # every service is taken out of it
        if event == "S14":
            return STATUSES.get(self.msg["SCH-25"].strip().upper(), (control, ""))
        return control, ""

    def command(self, sch: Segment) -> OrderCommand:
        control, status = self.meaning
        places = self.places and control == "XO"
        segments = [sch if one.name == "SCH" else one for one in self.msg.segments]
        scope = Group.of(segments)
        order, attributes = self.profile.said("order", scope, self.site, new=places)
        procedure, of_procedure = self.profile.said("procedure", scope, self.site, new=places)
        numbers = {name: procedure.get(name, "") for name in NUMBERS}
        if control == "XO":
            steps = tuple(self._step(one, scope, places, numbers) for one in self.services)
            self._check_alike(steps)
        else:
            steps = (self._slot(scope, numbers),)
        if not places:
            attributes, of_procedure = {}, {}
            order = {name: order[name] for name in OF_ORDER if name in order}
            procedure = {name: procedure[name] for name in OF_PROCEDURE if name in procedure}
        else:
            self._need(order, procedure, steps)
            visit = self.profile.said(
                "visit", Group.of([one for one in segments if one.name != "NTE"]), self.site, new=True
            )
            attributes = attributes | visit[1]
        named = (order.get("accession_number"), *(procedure.get(name) for name in OF_PROCEDURE), steps[0].sps_id)
        if not any((steps[0].appointment_number, *numbers.values(), *named)):
            raise MissingField(sch.place(2), "names neither an appointment nor an order", err="101")
        order["is_issuer_assumed"] = not order.get("accession_issuer")
        order["accession_issuer"] = order.get("accession_issuer") or self.site.accession_issuer
        order["reason"] = order.get("reason") or _reason(sch)
        order["at"] = order.get("at") and values.happened(order["at"], values.span(self.msg["MSH-7"], self.site))
        return OrderCommand(
            control=control,
            status=status,
            patient=self.patient,
            procedures=(ProcedureCommand(**procedure, attributes=of_procedure, steps=steps),),
            attributes=attributes,
            place=sch.place(26 if numbers["placer_number"] else 2),
            unknown="place" if places else "refuse",
            policies=self.profile.policies(self.site),
            **order,
        )

    def _slot(self, scope: Group, numbers: dict[str, str]) -> ServiceCommand:
        """The whole of it, for what is said of all its steps."""
        said, _ = self.profile.said("step", scope, self.site, new=False)
        names = ("appointment_number", "appointment_issuer", *(("sps_id",) if len(self.services) < 2 else ()))
        return ServiceCommand(**{name: said[name] for name in names if name in said} | numbers)

    def _step(self, service: _Service, above: Group, places: bool, numbers: dict[str, str]) -> ServiceCommand:
        own = {name: one for name, one in above.items() if name not in ("AIS", *RESOURCES)}
        scope = Group.of(service.segments, own)
        said, attributes = self.profile.said("step", scope, self.site, new=places)
        if service.ais and not service.ais.field(4):
            said |= _later(said, service.ais, self.site)
        if said.get("modality") is None:
            said["modality"] = values.modality_of(attributes.get(CODES))
        if places or said.get("station_ae_titles") or "AIG" in scope or "AIL" in scope:
            self.profile.set_station(said, attributes, scope, {})
        if not places:
            said = {name: said[name] for name in OF_STEP if name in said}
            attributes = {name: attributes[name] for name in OF_SLOT if name in attributes}
        return ServiceCommand(**said | numbers, attributes=attributes, codes=_codes(service.ais))

    def _check_alike(self, steps: Sequence[ServiceCommand]) -> None:
        """Where the profile reads a step ID of them: else the last of two would win, and nobody would know."""
        known: dict[str, StepCommand] = {}
        for service, step in zip(self.services, steps, strict=True):
            before = known.get(step.sps_id) if step.sps_id else None
            if before and alike.contradict(before, step):
                scope = Group.of(service.segments, Group.of(self.msg.segments))
                segment, number = self.profile.source_of("step.sps_id", scope) or (scope["SCH"], 1)
                what = "says something else of its step than another service; give each its own step ID"
                raise InvalidValue(segment.place(number), what, err="102")
            known[step.sps_id] = alike.both(before, step) if before else step

    def _need(self, order: dict[str, Any], procedure: dict[str, Any], steps: Sequence[ServiceCommand]) -> None:
        """What must be there of an order that it may place. As a rule, what is missing is derived."""
        found = {**order, **procedure, "sps_id": all(one.sps_id for one in steps)}
        for identifier in IDENTIFIERS:
            if not found.get(identifier) and self.profile.missing(identifier, self.site, "derive") == "reject":
                raise MissingField("SCH^1", f"{identifier.replace('_', ' ')} is required")


def _services(msg: Message) -> Iterator[_Service]:
    """None where each of them is taken out. A group's resources are its services'; a group without a service speaks for
    all services that have none of that kind.

    Raises InvalidValue for one that is taken out beside others that stay: an appointment is cancelled as a whole."""
    service_groups = list(groups(msg.segments, "RGS")) or [msg.segments]
    kept: list[tuple[Segment, dict[str, Segment]]] = []
    common: dict[str, Segment] = {}
    out: list[Segment] = []
    for group in service_groups:
        is_out = any(one.name == "RGS" and _is_deleted(one) for one in group)
        stays = [one for one in group if not is_out and not _is_deleted(one)]
        resources: dict[str, Segment] = {}
        for one in stays:
            if one.name in RESOURCES:
                resources.setdefault(one.name, one)
        services = [one for one in group if one.name == "AIS"]
        out += (one for one in services if is_out or _is_deleted(one))
        kept += ((one, resources) for one in stays if one.name == "AIS")
        if not services:
            common = resources | common
    if out and kept:
        raise InvalidValue(
            out[0].place(2), "takes a service out of an appointment that stays; cancel it by its order (CA)", err="102"
        )  # fmt: skip
    for ais, own in kept:
        yield _Service(ais, (ais, *(common | own).values()))
    if not kept and not out:
        yield _Service(None, tuple(common.values()))


def _is_deleted(segment: Segment) -> bool:
    return segment.get(2).strip().upper() == DELETED


def _codes(ais: Segment | None) -> tuple[str, ...]:
    found = [one for at in (1, 4) for one in values.codes(ais, 3, at) or ()] if ais else []
    return tuple(dict.fromkeys(one["CodeValue"] for one in found))


def _later(said: dict[str, Any], ais: Segment, site: Site) -> dict[str, str]:
    """AIS-5 and 6: how long after the appointment begins."""
    offset, date, time = ais.get(5).strip(), said.get("start_date"), said.get("start_time")
    if not (offset and date and time) or offset == values.NULL:
        return {}
    unit = UNITS.get(ais.get(6).strip().upper(), None if offset.strip("0") else "seconds")
    if unit is None or not offset.isascii() or not offset.isdigit() or len(offset) > 6:
        raise InvalidValue(
            ais.place(5), "is no offset: a whole number, with s, min, hr or d in the next field", err="102"
        )
    begin = dt.datetime.strptime(date + time, "%Y%m%d%H%M%S").replace(tzinfo=ZoneInfo(site.timezone))
    later = (begin.astimezone(dt.UTC) + dt.timedelta(**{unit: int(offset)})).astimezone(begin.tzinfo)
    return {"start_date": later.strftime("%Y%m%d"), "start_time": later.strftime("%H%M%S")}


def _reason(sch: Segment) -> str:
    """SCH-6, why it was made, moved or cancelled."""
    said = (values.shown(sch, 6, "ReasonForTheRequestedProcedure", component) for component in (2, 1))
    return values.first(one for one in said if one) or ""
