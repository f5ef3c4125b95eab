"""Identifiers that a message does not have: made new or derived, by the site's policies; and numbers that are taken.

What is derived is the same for the same numbers with their issuers, and is never shared: where another order or
procedure has it already, that is an error (205)."""

from sqlmodel import Session

from broker import ids
from broker.config import Site
from broker.errors import DuplicateKey, MissingField
from broker.model.orders import ImagingOrder, RequestedProcedure
from broker.mwl import identity
from broker.mwl import order_finding as finding
from broker.mwl.commands import OrderCommand, PersonCommand, Policies, ProcedureCommand, StepCommand


def policies(site: Site) -> Policies:
    """What the service does where the road did not refuse (`reject`) or the site says nothing."""
    fields = ("accession_number", "requested_procedure_id", "sps_id", "study_instance_uid")
    said = {name: getattr(site, f"missing_{name}") for name in fields}
    return Policies(**{name: how for name, how in said.items() if how in ("generate", "derive")})


def accession_number(session: Session, command: OrderCommand) -> str:
    if command.accession_number:
        return command.accession_number
    if command.policies.accession_number == "generate":
        return ids.short_id("A")
    numbers = [number for one in command.procedures for number in _numbers(one)]
    if not any(numbers):
        raise MissingField(command.place or "order", "has no accession number, and no number to derive one from")
    made = ids.derived_id("A", command.accession_issuer, *numbers)
    if finding.pk_by_accession(session, made, command.accession_issuer) is not None:
        raise DuplicateKey(command.place or "order", "the accession number derived for it is another order's")
    return made


def requested_procedure_id(
    session: Session, order: ImagingOrder, wanted: ProcedureCommand, policies: Policies, place: int
) -> str:
    """place: among the procedures of its message, which tells those apart that have no number."""
    if wanted.requested_procedure_id:
        return wanted.requested_procedure_id
    if policies.requested_procedure_id == "generate":
        return ids.short_id("R")
    made = ids.derived_id("R", *_of_order(order), *(_numbers(wanted) or [str(place)]), wanted.study_instance_uid)
    having = finding.having(RequestedProcedure, "order_pk", "requested_procedure_id")
    if having.first(session, order_pk=order.pk, requested_procedure_id=made):
        raise DuplicateKey("requested procedure id", "the one derived for it is another procedure's; state it")
    return made


def sps_id(
    order: ImagingOrder, procedure: RequestedProcedure, wanted: StepCommand, policies: Policies, place: int
) -> str:
    """place: among the steps of its procedure in its message."""
    if wanted.sps_id:
        return wanted.sps_id
    if policies.sps_id == "generate":
        return ids.short_id("S")
    numbers = [wanted.placer_issuer, wanted.placer_number, wanted.filler_issuer, wanted.filler_number,
               wanted.appointment_issuer, wanted.appointment_number]  # fmt: skip
    return ids.derived_id("S", *_of_order(order), procedure.requested_procedure_id, *numbers, str(place))


def study_instance_uid(
    session: Session, order: ImagingOrder, wanted: ProcedureCommand, number: str, policies: Policies, site: Site
) -> str:
    """number: the Requested Procedure ID. Raises DuplicateKey where another procedure has it."""
    uid = wanted.study_instance_uid
    if not uid and policies.study_instance_uid == "generate":
        return ids.uid(site.uid_root)
    uid = uid or ids.derived_uid(
        site.uid_root, *_of_order(order), wanted.placer_issuer, wanted.placer_number, wanted.filler_issuer,
        wanted.filler_number, number,
    )  # fmt: skip
    if finding.OF_STUDY.first(session, uid=uid):
        raise DuplicateKey("study instance uid", "belongs to another requested procedure")
    return uid


def order_number(session: Session, kind: str, column: str, order: ImagingOrder, procedure: RequestedProcedure) -> str:
    """A placer (P) or filler number (F) of ours, for a group that has none; its issuer is the site's name."""
    made = ids.derived_id(kind, *_of_order(order), procedure.requested_procedure_id)
    if finding.having(RequestedProcedure, column).first(session, **{column: made}):
        raise DuplicateKey("order", "the number made for it is another order's")
    return made


def identifier_pk(session: Session, person: PersonCommand) -> int | None:
    """The row of the leading identifier."""
    leading = person.identifiers[0]
    found = identity.OWNER.first(session, value=leading.value, issuer=leading.issuer)
    return found and found.pk


def refuse_reused_numbers(session: Session, command: OrderCommand, order: ImagingOrder | None) -> None:
    """A placer and filler number, or an appointment, that another order has already: two orders for one request. The
    placer number alone may be shared, where the filler splits what was asked. order: the one that is meant."""
    besides = order.key if order else 0
    both, slot = finding.NUMBERS, finding.STEP_NUMBERS[2:]
    stated: dict[tuple[tuple[str, str], ...], None] = {}  # (column, value); steps often repeat their procedure's
    for wanted in command.procedures:
        for one in (wanted, *wanted.steps):
            for pairs in (both, slot):
                if all(getattr(one, number, "") for number, _ in pairs):
                    stated[tuple((name, getattr(one, name)) for pair in pairs for name in pair)] = None
    for columns in stated:
        for table in finding.TABLES:
            if not hasattr(table, columns[0][0]):
                continue
            found = finding.having(table, *(name for name, _ in columns)).rows(session, **dict(columns))
            other = next((row.order_pk for row in found if row.order_pk != besides), None)
            if other is not None:
                what = "appointment belongs" if len(columns) == 2 else "placer and filler number belong"
                raise DuplicateKey(command.place or "order", f"its {what} to order {other} already")


def _of_order(order: ImagingOrder) -> tuple[str, str]:
    return order.accession_issuer, order.accession_number


def _numbers(wanted: ProcedureCommand) -> list[str]:
    """With their issuers; empty where it has none. Where the procedure has none of its own, its steps'."""
    pairs = [(getattr(one, issuer, ""), getattr(one, number, ""))
             for one in (wanted, *wanted.steps) for number, issuer in finding.STEP_NUMBERS]  # fmt: skip
    return [text for pair in pairs for text in pair] if any(number for _, number in pairs) else []
