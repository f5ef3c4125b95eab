"""The status of an order, in one place: document and states of the contract, derived from rows (ADR 0005).

`publish` is a finisher of db.run: every transaction ends with a new version for each order that it changed."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import bindparam, false, or_, true, union, union_all, update
from sqlmodel import Session, col, select

from broker import clock, db, outbox
from broker.archive.performed_by_images import is_quiet
from broker.config import Settings
from broker.errors import DuplicateKey, InvalidValue, UnknownKey
from broker.model.images import Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import PatientIdentifier
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.model.status import Counter, OrderStatus, StatusChange
from broker.mpps.rules import FINAL, WRONG_ENTRY

FEED = "status_change"
MISSING_SHOWN_MAX = 1_000  # SOP Instance UIDs in images.missing
FINISHED = ("COMPLETED", "DISCONTINUED", "CANCELED", "EXPIRED", "NO_SHOW")
ENDED_WITHOUT_IMAGES = {
    "CANCELED": "CANCELLED",
    "DISCONTINUED": "DISCONTINUED",
    "EXPIRED": "EXPIRED",
    "NO_SHOW": "NO_SHOW",
}
UNDECIDED = ("RECEIVING", "RECONCILING", "IN_REVIEW")  # of a study
GONE = ("REJECTED", "PURGED")  # of an instance
EVENTS = {
    "SCHEDULED": "order.scheduled", "ARRIVED": "order.arrived", "IN_PROGRESS": "order.started",
    "ACQUIRED": "order.acquired", "HELD": "order.held", "AVAILABLE": "order.available", "REPORTED": "order.reported",
    "CANCELLED": "order.cancelled", "DISCONTINUED": "order.discontinued",
}  # fmt: skip

_zone = ZoneInfo("Asia/Tokyo")


def configure(settings: Settings) -> None:
    """The site's zone, in which times of steps are shown."""
    global _zone
    _zone = ZoneInfo(settings.site.timezone)


@dataclass(frozen=True)
class Facts:
    """steps: their states. expected, received, available: SOP Instance UIDs. held: reasons."""

    steps: Sequence[str]
    expected: frozenset[str] = frozenset()
    received: frozenset[str] = frozenset()
    available: frozenset[str] = frozenset()
    held: Sequence[str] = ()
    reported: bool = False


def state_of(facts: Facts) -> str:
    """The first that fits (contract.md 4)."""
    steps = set(facts.steps)
    all_ended = bool(steps) and steps <= set(FINISHED)
    complete = bool(facts.expected) and facts.expected <= facts.available
    if facts.held:
        return "HELD"
    if all_ended and "COMPLETED" not in steps and not facts.available:
        return next(
            ENDED_WITHOUT_IMAGES[one] for one in ("DISCONTINUED", "CANCELED", "NO_SHOW", "EXPIRED") if one in steps
        )
    if "STARTED" in steps or (not all_ended and (facts.available or steps & {"COMPLETED", "DISCONTINUED"})):
        return "IN_PROGRESS"
    if all_ended:
        if complete:
            return "REPORTED" if facts.reported else "AVAILABLE"
        return "ACQUIRED"
    if "ON_HOLD" in steps:
        return "ON_HOLD"
    return "ARRIVED" if steps & {"ARRIVED", "READY"} else "SCHEDULED"


# What is asked of each order that changes. Columns show a row as it is now, not as the session met it before it waited
# for a lock.

OF: Any = bindparam("order_pk")
KNOWN = db.Prepared(
    db.columns(OrderStatus.pk, OrderStatus.document, OrderStatus.version, OrderStatus.state)
    .where(OrderStatus.order_pk == OF)
    .with_for_update()
)
# A row for each station of each step of each procedure.
PARTS = db.Prepared(
    db.columns(
        RequestedProcedure.pk, RequestedProcedure.requested_procedure_id, RequestedProcedure.placer_number,
        RequestedProcedure.filler_number, RequestedProcedure.study_instance_uid,
        col(ScheduledStep.pk).label("step_pk"), ScheduledStep.sps_id, ScheduledStep.modality, ScheduledStep.start_date,
        ScheduledStep.start_time, ScheduledStep.status, ScheduledStation.ae_title,
    )
    .outerjoin(ScheduledStep, ScheduledStep.requested_procedure_pk == RequestedProcedure.pk)
    .outerjoin(ScheduledStation, ScheduledStation.step_pk == ScheduledStep.pk)
    .where(RequestedProcedure.order_pk == OF)
    .order_by(RequestedProcedure.pk, ScheduledStep.pk, ScheduledStation.pk)
)  # fmt: skip
# The MPPS that its steps follow.
_followed = (
    db.columns(
        PerformedStepLink.step_pk, PerformedStep.pk, PerformedStep.sop_instance_uid, PerformedStep.status,
        PerformedStep.study_instance_uid, PerformedStep.discontinuation_code, PerformedStep.discontinuation_scheme,
    )
    .join(PerformedStep, PerformedStep.pk == PerformedStepLink.performed_pk)
    .join(ScheduledStep, ScheduledStep.pk == PerformedStepLink.step_pk)
    .where(ScheduledStep.order_pk == OF, PerformedStepLink.propagated)
)  # fmt: skip
PERFORMED = db.Prepared(_followed.order_by(PerformedStep.pk))
# The studies that were decided for it, aliases included; and images that name it by its Study UID, which belong to it
# until somebody decides otherwise.
_its_studies = db.columns(StudyOrder.study_pk).where(StudyOrder.order_pk == OF)
_planned_uids = db.columns(RequestedProcedure.study_instance_uid).where(RequestedProcedure.order_pk == OF)
_is_undecided = ~db.columns(StudyOrder.pk).where(StudyOrder.study_pk == Study.pk).exists()
_study = (
    Study.pk, Study.study_instance_uid, Study.state, Study.flags, Study.quiet_at, Study.last_received_at,
)  # fmt: skip
STUDIES = db.Prepared(
    union_all(
        db.columns(*_study, true().label("linked")).where(col(Study.pk).in_(_its_studies)),
        db.columns(*_study, false()).where(
            col(Study.study_instance_uid).in_(
                union(_planned_uids, _followed.with_only_columns(PerformedStep.study_instance_uid))
            ),
            _is_undecided,
        ),
    ).order_by("pk")
)
# The open ones about its images.
CASES = db.Prepared(
    db.columns(ReconciliationCase.reasons)
    .where(ReconciliationCase.kind == "study", ReconciliationCase.state != "RESOLVED")
    .where(
        or_(
            col(ReconciliationCase.order_pk) == OF,
            col(ReconciliationCase.study_pk).in_(bindparam("studies", expanding=True)),
        )
    )
    .order_by(ReconciliationCase.pk)
)
# With the patient's leading identifier. has_more: whether the last three may find something; mostly they cannot.
ORDER = db.Prepared(
    db.columns(
        ImagingOrder.accession_number, ImagingOrder.accession_issuer, ImagingOrder.reported_at,
        PatientIdentifier.value, PatientIdentifier.issuer,
        or_(
            _followed.exists(), _its_studies.exists(),
            db.columns(Study.pk).where(col(Study.study_instance_uid).in_(_planned_uids), _is_undecided).exists(),
            db.columns(ReconciliationCase.pk).where(ReconciliationCase.order_pk == OF).exists(),
        ).label("has_more"),
    )
    .outerjoin(PatientIdentifier, PatientIdentifier.patient_pk == ImagingOrder.patient_pk)
    .where(ImagingOrder.pk == OF)
    .order_by(PatientIdentifier.retired, PatientIdentifier.pk)
    .limit(1)
)  # fmt: skip
COUNT = db.Prepared(
    update(Counter)
    .where(col(Counter.name) == FEED)
    .values(value=Counter.value + bindparam("more"))
    .returning(col(Counter.value))
)


# Publishing


def publish(session: Session) -> None:
    """Write the next version of every touched order whose document has changed; the feed's counter comes last, so
    that transactions queue for it as shortly as possible."""
    changed = [made for pk in sorted(outbox.touched(session)) if (made := _renewed(session, pk))]
    if not changed:
        return
    session.flush()
    last = COUNT.first(session, more=len(changed)).value
    for n, row in enumerate(changed, start=1):
        db.append(session, StatusChange, row | {"sequence": last - len(changed) + n})


def _renewed(session: Session, order_pk: int) -> dict[str, Any] | None:
    """The next row of the feed, but for its number. The lock comes before the look: of two transactions that change one
    order the later sees what the first did."""
    known = KNOWN.first(session, order_pk=order_pk)
    document = _derive(session, order_pk)
    if known is not None:
        before = json.loads(known.document)
        if before == {**document, "version": before["version"], "updated_at": before["updated_at"]}:
            return None
    now = clock.now()
    state, version = document["state"], (known.version if known else 0) + 1
    document |= {"version": version, "updated_at": clock.iso(now)}
    row = {"version": version, "state": state, "document": json.dumps(document, ensure_ascii=False)}
    if known is None:
        db.insert(session, OrderStatus, {**row, "order_pk": order_pk, "changed_at": now})
    else:
        db.update(session, OrderStatus, known.pk, {**row, "changed_at": now})
    is_the_same = known is not None and known.state == state
    event = "order.changed" if is_the_same else EVENTS.get(state, "order.changed")
    outbox.emit(session, event, lane=document["accession_number"], body=document, now=now)
    return {**row, "order_pk": order_pk, "at": now}


def _derive(session: Session, order_pk: int) -> dict[str, Any]:
    order = ORDER.first(session, order_pk=order_pk)
    parts = PARTS.rows(session, order_pk=order_pk)
    procedures = list({one.pk: one for one in parts}.values())
    steps = {one.step_pk: one for one in parts if one.step_pk}
    titles = {pk: [one.ae_title for one in parts if one.step_pk == pk and one.ae_title] for pk in steps}
    performed = PERFORMED.rows(session, order_pk=order_pk) if order.has_more else ()
    images = _images(session, order_pk, performed) if order.has_more else Images()
    facts = Facts(
        steps=[step.status for step in steps.values()], expected=images.expected, received=images.received,
        available=images.available, held=images.held, reported=order.reported_at is not None,
    )  # fmt: skip
    uids = list(dict.fromkeys([*(one.study_instance_uid for one in procedures), *images.study_uids]))
    return {
        "order_id": order_pk,
        "accession_number": order.accession_number,
        "accession_issuer": order.accession_issuer,
        "requested_procedures": [
            {"id": one.requested_procedure_id, "placer_order_number": one.placer_number,
             "filler_order_number": one.filler_number}
            for one in procedures
        ],
        "patient": {"id": order.value or "", "issuer": order.issuer or ""},
        "state": state_of(facts),
        "steps": [_step(steps[pk], titles[pk], performed) for pk in sorted(steps)],
        "study_instance_uids": uids,
        "images": {"announced": images.announced, "received": len(facts.received), "available": len(facts.available),
                   "missing": sorted(facts.expected - facts.received)[:MISSING_SHOWN_MAX]},
        "held": {"reasons": list(facts.held)} if facts.held else None,
        "links": _links(order_pk, next(iter([*images.study_uids, *uids]), None)),
    }  # fmt: skip


@dataclass(frozen=True)
class Images:
    """SOP Instance UIDs. study_uids: of the studies that were decided for the order, aliases included."""

    announced: int = 0
    expected: frozenset[str] = frozenset()
    received: frozenset[str] = frozenset()
    available: frozenset[str] = frozenset()
    study_uids: Sequence[str] = ()
    held: Sequence[str] = ()


def _images(session: Session, order_pk: int, performed: Sequence[Any]) -> Images:
    """Expected: the instances of all final MPPS; without MPPS, all received. Final MPPS that name none do not say how
    many are to come: nothing is known then until the studies are quiet. What a person rejected is not expected."""
    final = [one for one in performed if one.status in FINAL and not _is_wrong_entry(one)]
    announced = _announced(session, final)
    found = STUDIES.rows(session, order_pk=order_pk)
    linked = [one.pk for one in found if one.linked]
    here = [
        one.pk for one in found
        if one.linked or (one.state in UNDECIDED and "UNSCHEDULED" not in one.flags)
    ]  # fmt: skip
    instances = session.exec(
        select(Instance.study_pk, Instance.sop_instance_uid, Instance.state).where(
            col(Instance.study_pk).in_([one.pk for one in found]), col(Instance.conflict_of).is_(None)
        )
    ).all()
    gone = {uid for _, uid, state in instances if state in GONE}
    received = frozenset(uid for study_pk, uid, state in instances if study_pk in here and state not in GONE)
    available = frozenset(uid for study_pk, uid, state in instances if study_pk in linked and state == "STORED")
    is_known = announced or not final or all(is_quiet(one) for one in found if one.linked)
    return Images(
        announced=len(announced),
        expected=frozenset(announced or received) - gone if is_known else frozenset(),
        received=received,
        available=available,
        study_uids=[one.study_instance_uid for one in found if one.linked],
        held=_held(session, order_pk, here),
    )


def _announced(session: Session, final: Sequence[Any]) -> set[str]:
    named = select(PerformedSeries.instance_uids).where(
        col(PerformedSeries.performed_pk).in_([one.pk for one in final])
    )
    return {uid for uids in session.exec(named) for uid in uids}


def _is_wrong_entry(one: Any) -> bool:
    """Made from the wrong worklist item (110514): it promises nothing to this order."""
    return (one.discontinuation_code, one.discontinuation_scheme) == WRONG_ENTRY


def _held(session: Session, order_pk: int, study_pks: Sequence[int]) -> list[str]:
    """Reasons of the open cases about images of the order."""
    cases = CASES.rows(session, order_pk=order_pk, studies=study_pks)
    return [reason for case in cases for reason in case.reasons or ["waits for a person"]]


def _step(step: Any, titles: list[str], performed: Sequence[Any]) -> dict[str, Any]:
    start = clock.aware(step.start_date, step.start_time, _zone.key) if step.start_date else None
    return {
        "sps_id": step.sps_id,
        "modality": step.modality,
        "scheduled_start": start.astimezone(_zone).isoformat() if start else None,
        "station_ae_titles": titles,
        "state": "CANCELLED" if step.status == "CANCELED" else step.status,
        "performed": [
            {"sop_instance_uid": one.sop_instance_uid, "status": one.status,
             "discontinuation": {"code": one.discontinuation_code, "scheme": one.discontinuation_scheme}
             if one.discontinuation_code else None}
            for one in performed if one.step_pk == step.step_pk
        ],
    }  # fmt: skip


def _links(order_pk: int, study_uid: str | None) -> dict[str, str | None]:
    """Keys and UIDs only (invariant 8)."""
    return {
        "viewer": f"/IHEInvokeImageDisplay?requestType=STUDY&studyUID={study_uid}" if study_uid else None,
        "dicomweb": f"/dicom-web/studies/{study_uid}" if study_uid else None,
        "fhir": f"/fhir/ServiceRequest/{order_pk}",
    }


# Reads: documents as they were encoded when they changed


def find(session: Session, accession_number: str, issuer: str | None = None) -> tuple[str, int, int]:
    """Document, version, order. Raises UnknownKey, or DuplicateKey where two issuers have that number."""
    query = (
        select(OrderStatus, ImagingOrder.accession_issuer)
        .where(OrderStatus.order_pk == ImagingOrder.pk, ImagingOrder.accession_number == accession_number)
        .order_by(col(ImagingOrder.accession_issuer))
    )
    if issuer is not None:
        query = query.where(ImagingOrder.accession_issuer == issuer)
    rows = session.exec(query).all()
    if not rows:
        raise UnknownKey("accession_number", "no order has this number here")
    if len(rows) > 1:
        issuers = ", ".join(repr(one) for _, one in rows)
        raise DuplicateKey("accession_number", f"several issuers have this number: {issuers}; add ?issuer=")
    row = rows[0][0]
    return row.document, row.version, row.order_pk


def of_order(session: Session, order_pk: int) -> tuple[str, int]:
    row = session.exec(select(OrderStatus).where(OrderStatus.order_pk == order_pk)).first()
    if row is None:
        raise UnknownKey("order_id", "no such order")
    return row.document, row.version


def changes(session: Session, since: int, limit: int) -> list[tuple[int, str]]:
    """(sequence, document) after that cursor: gap-free, in the order of the commits."""
    rows = session.exec(
        select(StatusChange.sequence, StatusChange.document)
        .where(StatusChange.sequence > since)
        .order_by(col(StatusChange.sequence))
        .limit(limit)
    ).all()
    return [(sequence, document) for sequence, document in rows]


def last_change(session: Session) -> int:
    return session.exec(select(Counter.value).where(Counter.name == FEED)).first() or 0


def listing(session: Session, filters: dict[str, str], limit: int, after: int = 0) -> tuple[list[str], int | None]:
    """Documents that fit all filters, by order; and the key to go on from. InvalidValue for a filter that is none."""
    query = select(OrderStatus).where(OrderStatus.order_pk == ImagingOrder.pk, OrderStatus.order_pk > after)
    for name, value in filters.items():
        query = query.where(_condition(name, value))
    rows = session.exec(query.order_by(col(OrderStatus.order_pk)).limit(limit + 1)).all()
    return [row.document for row in rows[:limit]], rows[limit - 1].order_pk if len(rows) > limit else None


def _condition(name: str, value: str) -> Any:
    procedures = select(RequestedProcedure.order_pk)
    if name == "state":
        return OrderStatus.state == value
    if name == "patient_id":
        owners = select(PatientIdentifier.patient_pk).where(PatientIdentifier.value == value)
        return col(ImagingOrder.patient_pk).in_(owners)
    if name == "placer_order_number":
        return col(ImagingOrder.pk).in_(procedures.where(RequestedProcedure.placer_number == value))
    if name == "study_instance_uid":
        aliases = select(StudyOrder.order_pk).where(StudyOrder.study_pk == Study.pk, Study.study_instance_uid == value)
        planned = procedures.where(RequestedProcedure.study_instance_uid == value)
        return or_(col(ImagingOrder.pk).in_(planned), col(ImagingOrder.pk).in_(aliases))
    if name == "updated_since":
        try:
            at = dt.datetime.fromisoformat(value)
        except ValueError:
            raise InvalidValue("updated_since", "is no ISO 8601 time") from None
        return col(OrderStatus.changed_at) >= (at if at.tzinfo else at.replace(tzinfo=_zone))
    raise InvalidValue(name, "is no filter of this list")
