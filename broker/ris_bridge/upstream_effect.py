"""What a list does to an order. It completes what others have ordered, and changes what lists alone have said.

A list has no message time and nobody who vouches for it: it fills what nobody has said. Where something else is known,
that stands, unless this list, or one of less weight, is all that it is known from. Another start, station or modality
than is known is a question for a person; other texts are noted in the journal. Whose exam it is, and what study, is
never changed: such an entry is refused, as with other roads."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session, col, select

from broker import casebook, clock, db
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.model.upstream import Upstream, UpstreamEntry
from broker.mwl import items, orders, patients, said, steps
from broker.mwl import order_finding as finding
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.mwl.order_changes import CONFLICT, PROCEDURE_FIELDS, STATIONS, STEP_FIELDS, is_of_lists_alone
from broker.mwl.said import Part
from broker.ris_bridge import effects, http_road
from broker.ris_bridge.effects import Cause, Done
from broker.ris_bridge.upstream_item import Entry
from broker.states import STEP, can

PROTOCOL = "dicom"  # of the journal: what came as an answer to a C-FIND of ours
ASKED_ABOUT = ("modality", "start_date", "start_time", STATIONS)  # what sends a patient to another place or time
MARK = said.LISTED
NOTHING: tuple[Any, ...] = ("", None, [])


@dataclass(frozen=True)
class Listed:
    """An entry as it is now. identity, digest: of its row (model.upstream)."""

    source: str
    entry: Entry
    identity: str
    digest: str


@dataclass(frozen=True)
class Voice:
    """Who speaks, and when. stronger: the other lists of no less weight, whose word it may not replace."""

    name: str
    at: str
    stronger: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Gone:
    """An entry that is listed no more. at: since when."""

    source: str
    identity: str
    at: dt.datetime


def _listed(session: Session, one: Listed, cause: Cause) -> Done:
    source = find_source(session, one.source)
    row = _row(session, source, one.identity, cause)
    command, order_pk = _meant(session, one.entry.command)
    differs: list[str] = []
    digest = one.digest
    if order_pk is not None:
        order = finding.locked(session, order_pk)
        _refuse_somebody_else(session, order, command, one.source)
        command = _as_ordered(session, order, command, row)
        if _was_told_since(session, order, command, cause):
            digest = ""  # so that the next answer is looked at again
        _bring_back(session, order, command, one.source, cause)
        command, differs = _completing(session, order, command, source)
    outcome = orders.carry_out(
        session, command, now=cause.now, actor=cause.actor, site=cause.site, message_pk=cause.message_pk
    )
    step_pk = _mark(session, outcome.order_pk, command, source, cause)
    _ask(session, outcome.order_pk, one, differs, cause)
    if row is not None:
        row.digest, row.refusal, row.gone_at, row.missed = digest, "", None, 0
        row.order_pk, row.step_pk, row.message_pk = outcome.order_pk, step_pk, cause.message_pk
        row.last_at = cause.now
        session.add(row)
    notes = [
        *([f"differs from what is known: {', '.join(differs)}"] if differs else []),
        *([f"left out: {', '.join(one.entry.left_out)}"] if one.entry.left_out else []),
    ]
    return Done("; ".join((f"NW order {outcome.order_pk}", *notes)), outcome.order_pk, outcome)


def _gone(session: Session, one: Gone, cause: Cause) -> Done:
    """Cancelled where a list alone knows of it, no other lists it, and it has not begun."""
    source = find_source(session, one.source)
    row = _row(session, source, one.identity, cause) if source else None
    if row is None or row.order_pk is None:
        return Done("nothing: its list is not known any more")
    row.gone_at = one.at
    session.add(row)
    order = finding.locked(session, row.order_pk)
    step = _step_of(session, row)
    if step is None or step.status in steps.HAVE_ENDED or not can(STEP, step.status, "cancel"):
        return Done(f"nothing: the step of order {order.key} has begun, or ended", order.key)
    if known_otherwise(session, order):
        return Done(f"nothing: order {order.key} is known from elsewhere", order.key)
    if _was_brought_back(session, order, step):
        return Done(f"nothing: a person has brought order {order.key} back", order.key)
    if _is_listed_elsewhere(session, row):
        return Done(f"nothing: order {order.key} is on another list", order.key)
    known = http_road.known(session, order.key)
    assert known is not None
    command = known.command(
        "CA", procedures=_only(session, step), at=one.at, place="item", reason=f"{one.source} lists it no more"
    )
    outcome = orders.carry_out(
        session, command, now=cause.now, actor=cause.actor, site=cause.site, message_pk=cause.message_pk
    )
    if step.status == "CANCELED":
        _mark_word(session, step, "cancel", one.source)
    return Done(f"CA order {outcome.order_pk}", outcome.order_pk, outcome)


def _was_brought_back(session: Session, order: ImagingOrder, step: ScheduledStep) -> bool:
    """By a person."""
    above: tuple[Part, ...] = (order, db.get(session, RequestedProcedure, step.requested_procedure_pk), step)
    return any(said.BACK in part.said and not said.is_listed(part, said.BACK) for part in above)


def _mark_word(session: Session, step: ScheduledStep, control: str, source: str) -> None:
    step.said = step.said | {MARK + control: f"{step.said[control]} {source}"}
    session.add(step)


# Which order


def _meant(session: Session, command: OrderCommand) -> tuple[OrderCommand, int | None]:
    """A study is one order's, whoever of two names no issuer, or no accession number at all."""
    (procedure,) = command.procedures
    found = procedure.study_instance_uid and finding.OF_STUDY.first(session, uid=procedure.study_instance_uid)
    if not found:
        return command, finding.pk_of_placed(session, command)
    order = db.get(session, ImagingOrder, found.order_pk)
    same_number = command.accession_number in ("", order.accession_number)
    same_issuer = (
        command.is_issuer_assumed or not order.accession_issuer or command.accession_issuer == order.accession_issuer
    )
    if not same_number or not (same_issuer or not command.accession_number):
        raise DuplicateKey("(0020,000D)", "is the study of an order with another accession number or issuer")
    numbers = {"accession_number": order.accession_number, "accession_issuer": order.accession_issuer}
    return replace(command, **numbers), order.key  # type: ignore[arg-type]


def _refuse_somebody_else(session: Session, order: ImagingOrder, command: OrderCommand, source: str) -> None:
    """Elsewhere an order that contradicts the patient's record is withheld until a person has looked. A list must not
    take an exam off the worklist that others have ordered."""
    assert command.patient is not None
    finding.check_patient(session, order, command.patient, command.at)
    patient = db.get(session, Patient, order.patient_pk)
    reasons = patients.contradictions(patient, command.patient, f"the list of {source}")
    if reasons and known_otherwise(session, order):
        raise DuplicateKey("patient", "; ".join(reasons))


def _as_ordered(
    session: Session, order: ImagingOrder, command: OrderCommand, row: UpstreamEntry | None
) -> OrderCommand:
    """What others have ordered has the parts that they ordered: a list calls them otherwise, and adds none."""
    (wanted,) = command.procedures
    if said.is_listed(order, said.BORN):
        return command
    rows = steps.procedures_of(session, order.key)
    uid = wanted.study_instance_uid
    found = (
        [one for one in rows if one.requested_procedure_id == wanted.requested_procedure_id]
        or [one for one in rows if uid and one.study_instance_uid == uid]
        or rows
    )
    own = steps.of(session, order.key, found[0].key) if len(found) == 1 else []
    mine = [one for one in own if one.sps_id == wanted.steps[0].sps_id] or own
    if len(mine) != 1 or (row is not None and _stands_for_another(session, row, mine[0])):
        raise DuplicateKey("item", "others have ordered this exam, without such a procedure or step")
    step = replace(wanted.steps[0], sps_id=mine[0].sps_id)
    named = replace(wanted, requested_procedure_id=found[0].requested_procedure_id, steps=(step,))
    return replace(command, procedures=(named,))


def _stands_for_another(session: Session, row: UpstreamEntry, step: ScheduledStep) -> bool:
    others = select(UpstreamEntry.pk).where(
        UpstreamEntry.upstream_pk == row.upstream_pk, UpstreamEntry.step_pk == step.key, UpstreamEntry.pk != row.pk,
        col(UpstreamEntry.gone_at).is_(None),
    )  # fmt: skip
    return session.exec(others.limit(1)).first() is not None


def known_otherwise(session: Session, order: ImagingOrder) -> bool:
    """Whether anybody but a list has told of it. What has no times is from before there were lists."""
    return not all(is_of_lists_alone(part) for part in _parts_of(session, order))


# What of it is news


def _completing(
    session: Session, order: ImagingOrder, command: OrderCommand, source: Upstream | None
) -> tuple[OrderCommand, list[str]]:
    """The command with what it may say of the order, and the names of what is known otherwise."""
    voice = _voice(session, source, command)
    differs: list[str] = []
    (wanted,) = command.procedures
    rows = finding.procedures(session, order, (wanted,), command.place)
    attributes = _news(order, command.attributes, {}, voice, differs)
    ordered = {orders.ORDERED: command.priority}
    if "priority" in order.said:  # a change has said it, and no list says it anew
        differs += [orders.ORDERED] if command.priority not in (None, order.priority) else []
        ordered = {}
    priority = _news(order, ordered, {orders.ORDERED: _priority(order)}, voice, differs)
    procedure = _procedure(session, rows[0], wanted, command, voice, differs) if rows[0] else wanted
    command = replace(
        command, attributes=attributes, priority=priority.get(orders.ORDERED), procedures=(procedure,), known="change",
        begun=command.begun and not _was_told_of_coming(session, order),
    )  # fmt: skip
    return command, differs


def _procedure(
    session: Session, row: RequestedProcedure, wanted: ProcedureCommand, command: OrderCommand, voice: Voice,
    differs: list[str],
) -> ProcedureCommand:  # fmt: skip
    """known: by the row's own ID, whatever the list calls it."""
    kept = _news(row, said.contents(wanted, PROCEDURE_FIELDS), {}, voice, differs)
    found = finding.steps_of(session, row, wanted.steps, command.place)
    made = tuple(
        _step(session, step, one, voice, differs) if step else one
        for step, one in zip(found, wanted.steps, strict=True)
    )
    fields, attributes = _parted(kept, PROCEDURE_FIELDS)
    return replace(
        wanted, requested_procedure_id=row.requested_procedure_id, attributes=attributes, steps=made, **fields
    )


def _step(session: Session, row: ScheduledStep, wanted: StepCommand, voice: Voice, differs: list[str]) -> StepCommand:
    """Of one that has ended nothing is told: it stays on some lists until the next day."""
    known = {STATIONS: items.stations(session, row.key)}
    values = said.contents(wanted, STEP_FIELDS)
    if wanted.station_ae_titles is not None:
        values[STATIONS] = list(dict.fromkeys(wanted.station_ae_titles))
    for name in row.said:  # what this list has said, and says no more
        if name.startswith(MARK) and row.said[name].partition(" ")[2] == voice.name:
            values.setdefault(name.removeprefix(MARK), "")
    over = row.status in steps.HAVE_ENDED
    kept = {} if over else _news(row, values, known, voice, differs)
    fields, attributes = _parted(kept, (*STEP_FIELDS, STATIONS))
    titles = fields.pop(STATIONS)
    return replace(
        wanted, **fields, attributes=attributes, station_ae_titles=None if titles is None else tuple(titles or ())
    )


def _news(
    row: Part, values: Mapping[str, Any], known: Mapping[str, Any], voice: Voice, differs: list[str]
) -> dict[str, Any]:
    kept = {}
    for name, value in values.items():
        current = known[name] if name in known else said.value_of(row, name)
        if value is None or value == current or (value in NOTHING and current in NOTHING):
            continue
        if voice.at < row.said.get(name, ""):
            continue  # looked at again, when more is known
        if (current in NOTHING and name not in row.said) or _may_replace(row, name, voice):
            kept[name] = value
        else:
            differs.append(name)
    return kept


def _may_replace(row: Part, name: str, voice: Voice) -> bool:
    return said.is_listed(row, name) and row.said[MARK + name].partition(" ")[2] not in voice.stronger


def _was_told_of_coming(session: Session, order: ImagingOrder) -> bool:
    """Whether anybody has said already that the patient is here, or is not."""
    return any(part.said.keys() & {"arrive", "unarrive"} for part in _parts_of(session, order))


def _was_told_since(session: Session, order: ImagingOrder, command: OrderCommand, cause: Cause) -> bool:
    """Whether anybody has spoken of it since the list was asked."""
    assert command.at is not None
    at, now = clock.iso(command.at), clock.iso(cause.now)
    told = [one for part in _parts_of(session, order) for one in part.said.items()]
    return any(at < time <= now for name, time in told if not name.startswith(MARK))


def _parts_of(session: Session, order: ImagingOrder) -> list[Part]:
    return [order, *steps.procedures_of(session, order.key), *steps.of(session, order.key)]


def _parted(kept: Mapping[str, Any], fields: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields, None for what is not said; attributes."""
    names = tuple(fields)
    return {name: kept.get(name) for name in names}, {
        name: value for name, value in kept.items() if name not in names
    }  # fmt: skip


def _priority(order: ImagingOrder) -> str:
    return order.priority if {orders.ORDERED, "priority"} & order.said.keys() else ""


# Whose word it is


def _voice(session: Session, source: Upstream | None, command: OrderCommand) -> Voice:
    assert command.at is not None
    at = clock.iso(command.at)
    if source is None:
        return Voice("", at)
    others = select(Upstream.name).where(col(Upstream.priority) <= source.priority, Upstream.name != source.name)
    return Voice(source.name, at, frozenset(session.exec(others).all()))


def _mark(session: Session, order_pk: int, command: OrderCommand, source: Upstream | None, cause: Cause) -> int | None:
    """The step's key."""
    order = db.get(session, ImagingOrder, order_pk)
    assert command.at is not None
    at = said.time_of(command.at, None, cause.now)
    (wanted,) = command.procedures
    (procedure,) = finding.procedures(session, order, (wanted,), command.place)
    assert procedure is not None
    step = finding.steps_of(session, procedure, wanted.steps, command.place)[0]
    if source is not None:
        _mark_row(session, order, (*command.attributes, orders.ORDERED), source, at)
        _mark_row(session, procedure, (*PROCEDURE_FIELDS, *wanted.attributes), source, at)
        if step is not None:
            names = (*STEP_FIELDS, STATIONS, *wanted.steps[0].attributes)
            _mark_row(session, step, names, source, at)
    return step.key if step is not None else None


def _mark_row(session: Session, row: Part, names: Iterable[str], source: Upstream, at: str) -> None:
    """Where the time is that of this message, it is this message that said it."""
    marks = {MARK + name: f"{at} {source.name}" for name in (said.BORN, *names) if row.said.get(name) == at}
    if marks:
        row.said = row.said | marks
        session.add(row)


# Its row, its step


def find_source(session: Session, name: str) -> Upstream | None:
    return session.exec(select(Upstream).where(Upstream.name == name)).first()


def _row(session: Session, source: Upstream | None, identity: str, cause: Cause) -> UpstreamEntry | None:
    """Locked; made where it is new. None: the provider was removed since."""
    if source is None:
        return None
    key = {"upstream_pk": source.key, "identity": identity}
    db.insert_new(session, UpstreamEntry, {**key, "last_at": cause.now})
    query = select(UpstreamEntry).where(
        UpstreamEntry.upstream_pk == source.key, UpstreamEntry.identity == identity
    ).with_for_update()  # fmt: skip
    return session.exec(query).one()


def _step_of(session: Session, row: UpstreamEntry) -> ScheduledStep | None:
    return None if row.step_pk is None else db.get(session, ScheduledStep, row.step_pk)


def _only(session: Session, step: ScheduledStep) -> tuple[ProcedureCommand, ...]:
    procedure = db.get(session, RequestedProcedure, step.requested_procedure_pk)
    return (ProcedureCommand(procedure.requested_procedure_id, steps=(StepCommand(step.sps_id),)),)


def _is_listed_elsewhere(session: Session, row: UpstreamEntry) -> bool:
    others = select(UpstreamEntry.pk).where(
        UpstreamEntry.step_pk == row.step_pk, UpstreamEntry.pk != row.pk, col(UpstreamEntry.gone_at).is_(None)
    )
    return session.exec(others.limit(1)).first() is not None


def _bring_back(session: Session, order: ImagingOrder, command: OrderCommand, source: str, cause: Cause) -> None:
    """What was cancelled for no other reason than that it was listed no more, and is listed again."""
    (wanted,) = command.procedures
    (procedure,) = finding.procedures(session, order, (wanted,), command.place)
    step = finding.steps_of(session, procedure, wanted.steps, command.place)[0] if procedure else None
    if step is None or procedure is None or step.status != "CANCELED":
        return
    if said.is_listed(step, "cancel") and not said.newest((order, procedure), "cancel"):
        known = http_road.known(session, order.key)
        assert known is not None
        back = known.command(
            said.BACK, procedures=_only(session, step), at=command.at, place="item", reason="it is listed again"
        )
        orders.carry_out(session, back, now=cause.now, actor=cause.actor, site=cause.site, message_pk=cause.message_pk)
        if step.status != "CANCELED":
            _mark_word(session, step, said.BACK, source)


# Who is asked


def _ask(session: Session, order_pk: int, one: Listed, differs: Iterable[str], cause: Cause) -> None:
    """One case for each order, with a sentence for each list and step; closed when all agree."""
    subject = f"order:{order_pk}"
    case = casebook.find_open(session, CONFLICT, subject)
    step = f"{one.entry.procedure.requested_procedure_id}/{one.entry.step.sps_id}"
    mine = f"the list of {one.source} has step {step} with"
    words = ", ".join(name.replace("_", " ") for name in differs if name in ASKED_ABOUT)
    others = [reason for reason in (case.reasons if case else []) if not reason.startswith(mine)]
    reasons = [*others, *([f"{mine} another {words} than is known; nothing was changed"] if words else [])]
    if case is not None and not reasons:
        casebook.close_case(session, case, now=cause.now, actor=cause.actor, resolution={"action": "agrees"})
    elif reasons and (case is None or case.reasons != reasons):
        casebook.open_case(
            session, CONFLICT, subject, level="amber", reasons=reasons[: items.REASONS_MAX], order_pk=order_pk,
            now=cause.now, actor=cause.actor,
        )  # fmt: skip


effects.EFFECTS |= {Listed: _listed, Gone: _gone}
