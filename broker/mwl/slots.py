"""Appointments: which steps of an order a slot of a schedule means.

A schedule names an appointment and its services, not steps: a step is known by its appointment; before it has one, by
the numbers of its order; among several, by the code of the service."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlmodel import Session

from broker import ids
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.mwl import order_finding as finding
from broker.mwl import steps
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand

Pairs = list[tuple[ScheduledStep, StepCommand]]
CODES = "ScheduledProtocolCodeSequence"


@dataclass(frozen=True)
class ServiceCommand(StepCommand):
    """A service of an appointment. codes: by which it tells its step from the others of the appointment."""

    codes: tuple[str, ...] = ()


def resolved(session: Session, order: ImagingOrder, command: OrderCommand) -> OrderCommand:
    """The same change of the order by the IDs of the steps that its appointment means; any other command as it is.

    One service is said of all steps of its appointment, several each of the steps with their code, or one by one where
    none has a code of theirs. A service that is none of its steps is a new one where the schedule places orders, and
    otherwise none of the order's. Raises DuplicateKey where nobody can say which step is meant."""
    services = [step for procedure in command.procedures for step in procedure.steps]
    if not services or not all(isinstance(one, ServiceCommand) and not one.sps_id for one in services):
        return command
    places = command.unknown == "place"
    procedures = {row.key: row for row in steps.procedures_of(session, order.key)}
    rows = _booked(steps.of(session, order.key), services[0], places=places)
    if not rows:
        if places:
            return command  # one more slot of that order
        raise DuplicateKey(
            command.place or "order", "its steps have other appointments; cancel those, or change the order"
        )
    pairs = _paired(rows, services, procedures, command.place or "order")
    rest = [one for one in services if not any(one is service for _, service in pairs)]
    new = [replace(one, sps_id=ids.short_id("S")) for one in rest if places]
    return replace(command, procedures=_procedures(command.procedures[0], procedures, pairs, new))


def _booked(rows: Sequence[ScheduledStep], service: StepCommand, *, places: bool) -> list[ScheduledStep]:
    """The steps of that appointment; else those of the order's numbers that wait for one. Where all of these ended,
    they: it is not for a schedule to bring them back, unless it places orders itself, and then it is one more slot."""
    own = (service.appointment_number, service.appointment_issuer)
    booked = [row for row in rows if (row.appointment_number, row.appointment_issuer) == own]
    if booked and service.appointment_number:
        return booked
    bare = replace(service, appointment_number="")
    asked = (
        [row for row in rows if finding.has_numbers(row, bare)]
        if service.placer_number or service.filler_number
        else list(rows)
    )
    live = [row for row in asked if row.status not in steps.HAVE_ENDED]
    if service.appointment_number and (live or places):
        return [row for row in live if not row.appointment_number]
    return live or asked


def _paired(
    rows: Sequence[ScheduledStep],
    services: Sequence[StepCommand],
    procedures: dict[int, RequestedProcedure],
    place: str,
) -> Pairs:
    by_protocol = _by_code(rows, services, _protocol_codes, place)
    if pairs := by_protocol or _by_code(
        rows, services, lambda row: {procedures[row.requested_procedure_pk].code_value} - {""}, place
    ):
        return pairs
    if len(services) == 1 and (len(rows) == 1 or not services[0].attributes.get(CODES)):
        return [(row, services[0]) for row in rows]
    if len(services) != len(rows):
        raise DuplicateKey(place, f"its {len(services)} services do not tell which of {len(rows)} steps they mean")
    return list(zip(rows, services, strict=True))


def _by_code(
    rows: Sequence[ScheduledStep],
    services: Sequence[StepCommand],
    codes_of: Callable[[ScheduledStep], set[str]],
    place: str,
) -> Pairs:
    """Each step with the service of its code. Several services of one code: as many steps of it, in their order."""
    pairs: Pairs = []
    taken: dict[tuple[int, ...], int] = {}
    for row in rows:
        fitting = [n for n, one in enumerate(services) if codes_of(row) & set(getattr(one, "codes", ()))]
        if not fitting:
            continue
        turn = taken[tuple(fitting)] = taken.get(tuple(fitting), -1) + 1
        pairs.append((row, services[fitting[turn % len(fitting)]]))
    if any(len(fitting) > 1 and count + 1 != len(fitting) for fitting, count in taken.items()):
        raise DuplicateKey(place, "several of its services have one code, and the steps of that code are not as many")
    return pairs


def _protocol_codes(row: ScheduledStep) -> set[str]:
    found = row.attributes.get(CODES)
    return {item.get("CodeValue", "") for item in found} - {""} if isinstance(found, list) else set()


def _procedures(
    said: ProcedureCommand,
    rows: dict[int, RequestedProcedure],
    pairs: Pairs,
    new: Sequence[StepCommand],
) -> tuple[ProcedureCommand, ...]:
    """What is said of the procedure itself goes to it where the appointment is about one alone."""
    mentioned = list(dict.fromkeys(row.requested_procedure_pk for row, _ in pairs))
    made = []
    for pk in mentioned:
        own = tuple(replace(one, sps_id=row.sps_id) for row, one in pairs if row.requested_procedure_pk == pk)
        one = said if len(mentioned) == 1 else ProcedureCommand()
        made.append(
            replace(one, requested_procedure_id=rows[pk].requested_procedure_id,
                    steps=(*own, *(new if pk == mentioned[0] else ())))
        )  # fmt: skip
    return tuple(made)
