"""Performed steps: begun, changed, ended; the scheduled steps that they belong to follow."""

import datetime as dt
from collections.abc import Collection, Sequence

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from broker import audit, casebook, clock, db, ids, outbox
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.tree import EXPLICIT_LE, Tree
from broker.errors import DuplicateKey, InvalidInstance, InvalidValue, NotAllowed, UnknownKey
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.model.site import Node
from broker.mpps import link, rules
from broker.mwl import orders
from broker.states import PERFORMED, STEP, advance, can

UNICODE = "ISO_IR 192"
INCOMPLETE, NO_INSTANCES = "incomplete_final", "no_instances"


def start(
    session: Session, uid: str, said: Tree, *, source_ae: str, strict: bool, settings: Settings, now: dt.datetime
) -> str:
    """N-CREATE: a new performed step, linked to its scheduled steps, which start. Its SOP Instance UID, which is made
    here where the device gave none.

    Never refused for a patient or order that is not known: the device cannot mend that, a person can.
    Raises DuplicateKey also for the same content again: after a lost answer the device takes 0111 as done."""
    uid = uid or ids.uid(settings.site.uid_root)
    if not ids.valid_uid(uid):
        raise InvalidInstance("Affected SOP Instance UID")
    dataset = rules.check_create(said, strict=strict)
    if len(rules.items(dataset, rules.SCHEDULED_STEPS)) > settings.limits.list_items_max:
        raise InvalidValue("(0040,0270)", "more items than limits.list_items_max", tags=(rules.SCHEDULED_STEPS,))
    performed = PerformedStep(sop_instance_uid=uid, status=advance(PERFORMED, "", "create"), source_ae=source_ae)
    _describe(performed, dataset, settings.site.timezone)
    session.add(performed)
    try:
        session.flush()
    except IntegrityError:
        raise DuplicateKey("Affected SOP Instance UID", "exists already") from None
    _replace_series(session, performed, dataset)
    by_default = link.defaults(session, source_ae, settings.site)
    found = link.find(session, dataset, by_default)
    audit.record(
        session, "performed.create", f"performed:{performed.key}",
        actor=source_ae, now=now, mpps=uid, steps=sorted(found.steps), rules=sorted(set(found.steps.values())),
    )  # fmt: skip
    if found.unmatched or not found.steps:
        _ask_unscheduled(session, performed, found, now=now)
    _begin(session, performed, dataset, found, by_default, now=now)
    return uid


def update(
    session: Session, uid: str, said: Tree, *, digest: str, source_ae: str, strict: bool, settings: Settings,
    now: dt.datetime,
) -> tuple[int, ...]:  # fmt: skip
    """N-SET: all of it or nothing. The attributes that were ignored because no N-SET may change them.

    digest: SHA-256 of the data set as received. Raises UnknownKey; NotAllowed for another machine than the one that
    began it; WrongState once it is final."""
    steps = _locked_steps(session, uid)
    performed = session.exec(
        select(PerformedStep)
        .where(PerformedStep.sop_instance_uid == uid)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()
    if performed is None:
        raise UnknownKey("Requested SOP Instance UID")
    if not _is_same_machine(session, source_ae, performed.source_ae):
        raise NotAllowed("Requested SOP Instance UID", "another machine began this step")
    if settings.mpps.final_retry_ok and performed.final_digest == digest:
        return ()
    change = rules.check_set(_stored(performed, settings), performed.status, said, strict=strict)
    dataset = change.dataset | _end(change.missing, performed.started_at, now, settings.site.timezone)
    before, performed.status = performed.status, advance(PERFORMED, performed.status, change.event)
    if performed.status in rules.FINAL:
        performed.final_digest = digest
        performed.flags = _flags(performed.status, dataset, change.missing)
    _describe(performed, dataset, settings.site.timezone)
    session.add(performed)
    if rules.PERFORMED_SERIES in said:
        _replace_series(session, performed, dataset)
    audit.record(
        session, "performed.update", f"performed:{performed.key}",
        actor=source_ae, now=now, mpps=uid, before=before, after=performed.status, ignored=rules.names(change.ignored),
        flags=performed.flags,
    )  # fmt: skip
    session.flush()
    for step in steps:
        _follow(session, step, source_ae, now=now)
        outbox.touch(session, step.order_pk)
    return change.ignored


def get(session: Session, uid: str, tags: Collection[int], *, settings: Settings) -> tuple[Tree, bool]:
    """N-GET: (attributes, whether some were asked for that we do not have). No tags: all."""
    performed = session.exec(select(PerformedStep).where(PerformedStep.sop_instance_uid == uid)).first()
    if performed is None:
        raise UnknownKey("Requested SOP Instance UID")
    return rules.select(_stored(performed, settings), tags)


def _is_same_machine(session: Session, ae_title: str, other: str) -> bool:
    """Only the modality moves its performed step (conformance.md 2.2), under any of the AE titles that are one device:
    by the site's word, else by host or station name (reconciliation.md 3.3)."""
    if ae_title == other:
        return True
    nodes = session.exec(select(Node).where(col(Node.ae_title).in_((ae_title, other)))).all()
    if len(nodes) < 2:
        return False
    a, b = nodes
    if a.device and b.device:
        return a.device == b.device
    return a.host == b.host != "" or bool(set(a.station_names) & set(b.station_names))


# The scheduled steps


def _begin(
    session: Session, performed: PerformedStep, dataset: Tree, found: link.Found, by_default: link.Defaults, *,
    now: dt.datetime,
) -> None:  # fmt: skip
    """Link and start each step, unless it is another patient's or may not start any more: then a person is asked."""
    strangers: list[ScheduledStep] = []
    closed: list[ScheduledStep] = []
    for step in _locked(session, sorted(found.steps)):
        order = session.get_one(ImagingOrder, step.order_pk)
        is_his = link.same_patient(session, dataset, order, by_default)
        starts = is_his and can(STEP, step.status, "start")
        session.add(
            PerformedStepLink(
                performed_pk=performed.key, step_pk=step.key, rule=found.steps[step.key], propagated=starts
            )
        )
        if starts:
            orders.move_step(session, step, "start", now=now, actor=performed.source_ae, cause="MPPS N-CREATE")
        else:
            (closed if is_his else strangers).append(step)
        outbox.touch(session, step.order_pk)
    session.flush()
    if strangers:
        _ask(
            session, performed, "mpps_patient_mismatch", "red", strangers,
            "the patient whom the device names is not the patient of step", now=now,
        )  # fmt: skip
    if closed:
        _ask(
            session, performed, "mpps_closed_step", "amber", closed, "the device began, but nothing may start at step",
            now=now,
        )  # fmt: skip


def _follow(session: Session, step: ScheduledStep, actor: str, *, now: dt.datetime) -> None:
    """Give the step what all its performed steps together say."""
    parts = session.exec(
        select(PerformedStep)
        .where(PerformedStepLink.performed_pk == PerformedStep.pk)
        .where(PerformedStepLink.step_pk == step.pk, col(PerformedStepLink.propagated))
    ).all()
    event = rules.step_event((part.status, is_wrong_entry(part)) for part in parts)
    if event and can(STEP, step.status, event):
        orders.move_step(session, step, event, now=now, actor=actor, cause="MPPS N-SET")


def is_wrong_entry(performed: PerformedStep) -> bool:
    """The technologist picked another patient's worklist entry: images of this MPPS are nobody's yet."""
    return (performed.discontinuation_code, performed.discontinuation_scheme) == rules.WRONG_ENTRY


def _locked_steps(session: Session, uid: str) -> Sequence[ScheduledStep]:
    """The steps that follow that performed step. Links are made at its creation, before anything can wait for them."""
    pks = session.exec(
        select(PerformedStepLink.step_pk)
        .join(PerformedStep, col(PerformedStepLink.performed_pk) == col(PerformedStep.pk))
        .where(PerformedStep.sop_instance_uid == uid, col(PerformedStepLink.propagated))
    ).all()
    return _locked(session, sorted(pks))


def _locked(session: Session, step_pks: Sequence[int]) -> Sequence[ScheduledStep]:
    """The steps as they are now, behind the locks of their patients, then of their orders (architecture.md 7)."""
    owners = session.exec(
        select(ImagingOrder.patient_pk, ImagingOrder.pk)
        .join(ScheduledStep, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(col(ScheduledStep.pk).in_(step_pks))
    ).all()
    for patient_pk in sorted({patient_pk for patient_pk, _ in owners}):
        db.lock(session, Patient, patient_pk)
    for order_pk in sorted({order_pk for _, order_pk in owners if order_pk is not None}):
        db.lock(session, ImagingOrder, order_pk)
    return [db.lock(session, ScheduledStep, pk) for pk in step_pks]


# Questions for a person


def _ask(
    session: Session, performed: PerformedStep, kind: str, level: str, steps: Sequence[ScheduledStep], sentence: str, *,
    now: dt.datetime,
) -> None:  # fmt: skip
    casebook.open_case(
        session, kind, f"performed:{performed.key}", level=level, now=now, actor=performed.source_ae,
        reasons=[f"{sentence} {step.sps_id} ({step.status})" for step in steps],
        candidates=[
            {"order_id": step.order_pk, "accession_number": step.accession_number, "sps_id": step.sps_id}
            for step in steps
        ],
        order_pk=steps[0].order_pk, performed_pk=performed.key,
    )  # fmt: skip


def _ask_unscheduled(session: Session, performed: PerformedStep, found: link.Found, *, now: dt.datetime) -> None:
    what = (
        "no worklist item fits this exam" if not found.steps else f"{found.unmatched} of its items fit no worklist item"
    )
    casebook.open_case(
        session, "mpps_unscheduled", f"performed:{performed.key}", level="amber", reasons=[what],
        performed_pk=performed.key, now=now, actor=performed.source_ae,
    )  # fmt: skip


# The row


def _describe(performed: PerformedStep, dataset: Tree, zone: str) -> None:
    """The whole data set, and the columns that are searched and joined."""
    try:
        performed.dataset = tree.write(dataset | {tree.CHARSET: ("CS", UNICODE)}, EXPLICIT_LE, (UNICODE,))
    except ValueError:  # grown by UTF-8 beyond what its VR can hold
        raise InvalidValue("data set", "a text is too long") from None
    scheduled = rules.items(dataset, rules.SCHEDULED_STEPS)
    performed.study_instance_uid = rules.text(scheduled[0], rules.STUDY_UID)
    performed.station_ae = rules.text(dataset, rules.STATION_AE)
    performed.station_name = rules.text(dataset, rules.STATION_NAME)
    performed.modality = rules.text(dataset, rules.MODALITY)
    performed.patient_id = rules.text(dataset, rules.PATIENT_ID)
    performed.patient_id_issuer = rules.text(dataset, rules.PATIENT_ID_ISSUER)
    performed.started_at = _moment(dataset, rules.START_DATE, rules.START_TIME, zone)
    performed.ended_at = _moment(dataset, rules.END_DATE, rules.END_TIME, zone)
    if performed.status == rules.DISCONTINUED:
        value, scheme, meaning = rules.reason(dataset)
        performed.discontinuation_code, performed.discontinuation_scheme = value, scheme
        performed.discontinuation_meaning = meaning


def _moment(dataset: Tree, date: int, time: int, zone: str) -> dt.datetime | None:
    said = rules.moment(dataset, date, time)
    return clock.aware(*said, zone) if said else None


def _end(missing: Collection[int], started_at: dt.datetime | None, now: dt.datetime, zone: str) -> Tree:
    """The end that a device did not tell is the receipt of its last word (conformance.md 2.4); with a clock that is
    ahead, its start. Half an end that it told is left as it is: with the receipt it would be a third moment."""
    date, time = clock.local(max(now, started_at or now), zone)
    said: Tree = {rules.END_DATE: ("DA", date), rules.END_TIME: ("TM", time)}
    return said if said.keys() <= set(missing) else {}


def _flags(status: str, dataset: Tree, missing: Collection[int]) -> list[str]:
    flags = [INCOMPLETE] if missing else []
    if status == rules.COMPLETED and not any(rules.announced(dataset).values()):
        flags.append(NO_INSTANCES)
    return flags


def _replace_series(session: Session, performed: PerformedStep, dataset: Tree) -> None:
    """An N-SET sends every series each time, not only the changed ones (PS3.4 F.7.2.2.2)."""
    for row in session.exec(select(PerformedSeries).where(PerformedSeries.performed_pk == performed.key)):
        session.delete(row)
    session.flush()
    for uid, instance_uids in rules.announced(dataset).items():
        session.add(PerformedSeries(performed_pk=performed.key, series_instance_uid=uid, instance_uids=instance_uids))


def read(data: bytes, transfer_syntax: str, settings: Settings) -> Tree:
    """A data set of a device: larger than a query, for it names every image of the exam."""
    limits = settings.limits
    return tree.read(data, transfer_syntax, limits.model_copy(update={"header_elements_max": limits.mpps_elements_max}))


def _stored(performed: PerformedStep, settings: Settings) -> Tree:
    """What was taken is read whatever it has grown to: no data set has more elements than bytes."""
    limits = settings.limits.model_copy(update={"header_elements_max": len(performed.dataset)})
    return rules.without_charsets(tree.read(performed.dataset, EXPLICIT_LE, limits))
