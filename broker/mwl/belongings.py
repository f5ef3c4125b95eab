"""What goes with a patient's identifier: orders, studies, and what devices and status documents show of them."""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, or_, select

from broker import audit, casebook, outbox
from broker.model.images import Instance, Study, StudyOrder
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientMerge
from broker.mwl import identity, items, normalise
from broker.mwl.commands import Identifier

DOUBT = "merge_undone"


def orders_under(
    session: Session, patient_pk: int, rows: Iterable[PatientIdentifier], gone: Collection[int] = ()
) -> set[int]:
    """The patient's orders that were placed under these identifiers; of `gone`, those that are still the patient's."""
    under = col(ImagingOrder.identifier_pk).in_([row.key for row in rows])
    query = select(ImagingOrder.pk).where(ImagingOrder.patient_pk == patient_pk)
    found = session.exec(query.where(or_(under, col(ImagingOrder.pk).in_(gone)))).all()
    return {pk for pk in found if pk is not None}


def orders_unknown(session: Session, patient_pk: int) -> list[int]:
    """The patient's orders of which nobody knows under which identifier they were placed: older than that knowledge."""
    query = select(ImagingOrder.pk).where(ImagingOrder.patient_pk == patient_pk)
    found = session.exec(query.where(col(ImagingOrder.identifier_pk).is_(None))).all()
    return sorted(pk for pk in found if pk is not None)


def studies_with(
    session: Session,
    patient_pk: int,
    orders: Collection[int],
    rows: Sequence[PatientIdentifier],
    gone: Collection[int] = (),
    own: Collection[int] = (),
) -> tuple[list[int], list[int]]:
    """The patient's studies that go with these orders and identifiers; and those that stay, although a part of them
    goes. A study without an order goes where its objects name these identifiers alone; but for those of which is known
    that they go (`gone`), or stay (`own`)."""
    links = _links(session, patient_pk)
    everyone, going = identity.identifiers(session, patient_pk), {row.key for row in rows}
    goes, doubtful = [], []
    for study_pk, linked in sorted(links.items()):
        if linked:
            whole, part = linked <= set(orders), bool(linked & set(orders))
        elif study_pk in gone or study_pk in own:
            whole, part = study_pk in gone, False
        else:
            named = _named(session, study_pk, everyone)
            whole, part = named <= going and bool(named), bool(named & going)
        if whole:
            goes.append(study_pk)
        elif part:
            doubtful.append(study_pk)
    return goes, doubtful


def unlinked(session: Session, patient_pk: int) -> list[int]:
    """The patient's studies that no order ties to it."""
    return sorted(study_pk for study_pk, linked in _links(session, patient_pk).items() if not linked)


def _links(session: Session, patient_pk: int) -> dict[int, set[int]]:
    """Study -> orders, of all the patient's studies."""
    studies = session.exec(select(Study.pk).where(Study.patient_pk == patient_pk)).all()
    links: dict[int, set[int]] = {pk: set() for pk in studies if pk is not None}
    for study_pk, order_pk in session.exec(
        select(StudyOrder.study_pk, StudyOrder.order_pk).where(col(StudyOrder.study_pk).in_(links))
    ):
        links[study_pk].add(order_pk)
    return links


def _named(session: Session, study_pk: int, rows: Sequence[PatientIdentifier]) -> set[int]:
    """Which of one patient's identifiers the objects of a study name; zeros on the left and width do not count."""
    said = {
        (facts["patient_id"], facts["issuer_of_patient_id"])
        for facts in session.exec(select(Instance.facts).where(Instance.study_pk == study_pk)).all()
        if facts.get("patient_id")
    }
    return {row.key for row in rows for value, issuer in said if _plain(value) == _plain(row.value)
            and issuer.strip() in ("", row.issuer)}  # fmt: skip


def _plain(value: str) -> str:
    return normalise.plain(value).lstrip("0")


def give(session: Session, orders: Collection[int], studies: Collection[int], patient_pk: int) -> None:
    """Performed steps follow by their links and identifiers. Ended orders are touched, too: a status document names the
    patient's identifier."""
    for table, keys in ((ImagingOrder, orders), (Study, studies)):
        query = select(table).where(col(table.pk).in_(keys)).order_by(col(table.pk)).with_for_update()
        for row in session.exec(query.execution_options(populate_existing=True)).all():
            row.patient_pk = patient_pk
            session.add(row)
    linked = session.exec(select(StudyOrder.order_pk).where(col(StudyOrder.study_pk).in_(studies))).all()
    for order_pk in {*orders, *linked}:
        outbox.touch(session, order_pk)
    session.flush()


def ask_about_patient(
    session: Session, kind: str, patient_pk: int, reasons: Iterable[str], *, now: dt.datetime, actor: str
) -> None:
    """One case per kind and patient; what it asks already it asks on."""
    subject = f"patient:{patient_pk}"
    case = casebook.find_open(session, kind, subject)
    known = case.reasons if case else []
    new = [reason for reason in dict.fromkeys(reasons) if reason not in known]
    if new:
        casebook.open_case(
            session, kind, subject, level="amber", now=now, actor=actor, reasons=[*known, *new][: items.REASONS_MAX]
        )


def ask_about(session: Session, studies: Iterable[int], *, now: dt.datetime, actor: str) -> None:
    for study_pk in studies:
        casebook.open_case(
            session, DOUBT, f"study:{study_pk}", level="amber", study_pk=study_pk, now=now, actor=actor,
            reasons=["it goes with orders or identifiers of two patients, who were parted; it stays whose it was"],
        )  # fmt: skip


def report(
    session: Session, merge: PatientMerge, action: audit.Action, orders: Iterable[int], studies: Iterable[int], *,
    now: dt.datetime, actor: str, owner: int | None = None, **detail: Any,
) -> None:  # fmt: skip
    """On both sides, and for each study that changes its patient."""
    taken_back = action == "patient.undo"
    prior = owner if taken_back else merge.prior_pk
    detail |= {
        "merge": merge.key, "survivor": merge.patient_pk, "prior": prior, "cause": merge.cause,
        "orders": sorted(orders), "studies": sorted(studies),
    }  # fmt: skip
    for pk in sorted({merge.patient_pk, prior or merge.patient_pk}):
        audit.record(session, action, f"patient:{pk}", actor=actor, now=now, **detail)
    before, after = (merge.patient_pk, prior) if taken_back else (prior, merge.patient_pk)
    for pk in detail["studies"]:
        audit.record(
            session, "study.move", f"study:{pk}", actor=actor, now=now, merge=merge.key, before=before, after=after
        )


# What is shown


def leading(session: Session, *patients: Patient | None) -> dict[int, Identifier | None]:
    return {one.key: identity.leading(session, one.key) for one in patients if one}


def touch_renamed(session: Session, before: Mapping[int, Identifier | None]) -> None:
    """Where another identifier leads than before: every status document of that patient names it."""
    for pk, leading in before.items():
        if identity.leading(session, pk) != leading:
            for order_pk in session.exec(select(ImagingOrder.pk).where(ImagingOrder.patient_pk == pk)).all():
                outbox.touch(session, order_pk)


def rebuild(session: Session, patient_pk: int, *, now: dt.datetime) -> None:
    """Encode the items of every order of the patient that still has a live step."""
    orders = session.exec(
        select(ScheduledStep.order_pk)
        .join(ImagingOrder, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(ImagingOrder.patient_pk == patient_pk, col(ScheduledStep.status).in_(items.LIVE))
        .distinct()
        .order_by(col(ScheduledStep.order_pk))
    ).all()
    for order_pk in orders:
        items.rebuild(session, order_pk, now=now)
