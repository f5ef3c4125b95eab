"""Appointments: which steps of an order a slot of a schedule means.

A schedule names an appointment and its services, not steps: a step is known by its appointment; before it has one, by
the numbers of its order; among several, by the code of the service."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlmodel import Session

from broker import ids
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.mwl import order_finding as finding
from broker.mwl import steps
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand

CODES = "ScheduledProtocolCodeSequence"


@dataclass(frozen=True)
class ServiceCommand(StepCommand):
    """A service of an appointment. codes: by which it tells its step from the others of the appointment."""

    codes: tuple[str, ...] = ()


Pairs = list[tuple[ScheduledStep, ServiceCommand]]


def resolved(session: Session, order: ImagingOrder, command: OrderCommand) -> OrderCommand:
    """The same change of the order by the IDs of the steps that its appointment means; any other command as it is.

    A service is said of the steps with its code; one without a code of all steps of its appointment, several of as
    many one by one. Where there is one service and one step, it can mean no other, whatever its code. A service that is
    none of the steps is a new one where the schedule places orders. Raises DuplicateKey where nobody can say which step
    is meant."""
    said = [step for procedure in command.procedures for step in procedure.steps]
    services = [one for one in said if isinstance(one, ServiceCommand) and not one.sps_id]
    if not services or len(services) < len(said):
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
    pairs = _paired(rows, services, procedures, command.place or "order", places=places)
    rest = [one for one in services if not any(one is service for _, service in pairs)]
    if rest and not places:
        raise DuplicateKey(command.place or "order", f"{len(rest)} of its services are none of the order's steps")
    new = [replace(one, sps_id=ids.short_id("S")) for one in rest]
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
    services: Sequence[ServiceCommand],
    procedures: dict[int, RequestedProcedure],
    place: str,
    *,
    places: bool,
) -> Pairs:
    if pairs := _by_code(rows, services, procedures, place):
        return pairs
    is_coded = any(one.codes for one in services)
    if len(services) == 1 and (len(rows) == 1 or not is_coded):
        return [(row, services[0]) for row in rows]
    if len(services) != len(rows) or (is_coded and not places):
        raise DuplicateKey(place, f"its {len(services)} services do not tell which of {len(rows)} steps they mean")
    return list(zip(rows, services, strict=True))


def _by_code(
    rows: Sequence[ScheduledStep],
    services: Sequence[ServiceCommand],
    procedures: dict[int, RequestedProcedure],
    place: str,
) -> Pairs:
    """Each step with the service of its code; that of its procedure counts where no step has the service's. Several
    services of one code: as many steps of it, in their order."""
    known = set().union(*map(_protocol_codes, rows))
    of_procedures = [set() if known & set(one.codes) else set(one.codes) for one in services]
    pairs: Pairs = []
    taken: dict[tuple[int, ...], int] = {}
    for row in rows:
        own, above = _protocol_codes(row), {procedures[row.requested_procedure_pk].code_value} - {""}
        fitting = [n for n, one in enumerate(services) if own & set(one.codes)]
        fitting = fitting or [n for n, codes in enumerate(of_procedures) if above & codes]
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
