"""A durable object becomes rows (durability.md 1.4, step 6); nothing is decided here.

One SOP Instance UID, one instance: the same object again changes nothing, another object with that UID is kept beside
the first and waits for a person (reconciliation.md rows 29, 29b, 30). Nothing received is ever overwritten."""

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from broker import audit, outbox
from broker.archive import performed_of
from broker.archive.digest import Comparison, difference
from broker.archive.staging import Staged
from broker.model.images import Instance, Series, Study, StudyOrder
from broker.states import INSTANCE, STUDY, advance


@dataclass(frozen=True)
class Registered:
    """instance: the row that stands for the object. duplicate: it is an earlier one, and the staged copy is not needed.
    compare: nothing was written; these instances have the same UID, and their files must be compared first."""

    instance: Instance | None = None
    duplicate: bool = False
    conflict: bool = False
    compare: tuple[Instance, ...] = ()


def register(
    session: Session,
    staged: Staged,
    *,
    now: dt.datetime,
    comparison: Comparison | None = None,
    lost: Instance | None = None,
    adopted: bool = False,
) -> Registered:
    """comparison: with the instances that an earlier call named. lost: the duplicate that an earlier call named, and
    whose bytes are not where it says. adopted: found at the start, sent before a crash."""
    study = session.exec(
        select(Study).where(Study.study_instance_uid == staged.header.study_instance_uid).with_for_update()
    ).first()
    known = session.exec(
        select(Instance).where(Instance.sop_instance_uid == staged.header.sop_instance_uid).order_by(col(Instance.pk))
    ).all()
    twin = _twin(known, staged, comparison)
    if twin is not None and twin.staged_key == staged.key:
        return Registered(twin)  # asked again after an answer of the database was lost
    if twin is not None:
        gone = twin.missing or (lost is not None and _bytes_of(twin) == _bytes_of(lost))
        return _duplicate(session, study, twin, staged, now, lost=gone)
    if known and (comparison is None or not {one.key for one in known} <= comparison.others.keys()):
        return Registered(compare=tuple(known))
    study = _receive(session, study, staged, now)
    instance = _instance(session, study, staged, now)
    if comparison is not None and known:
        _keep_beside(session, instance, known, comparison)
    session.add(instance)
    session.flush()
    performed_of.note(session, study.key, staged.header.facts["performed_steps"])
    audit.record(
        session, "instance.adopt" if adopted else "instance.receive", f"instance:{instance.key}",
        actor=staged.source_ae, now=now, study=study.key, sha256=staged.sha256, size=staged.size,
    )  # fmt: skip
    if instance.conflict_of is not None:
        audit.record(
            session, "instance.conflict", f"instance:{instance.key}", actor=staged.source_ae, now=now,
            first=instance.conflict_of, differs_in=instance.facts["conflict"],
        )  # fmt: skip
    return Registered(instance, conflict=instance.conflict_of is not None)


def _twin(known: Sequence[Instance], staged: Staged, comparison: Comparison | None) -> Instance | None:
    """The instance that is this object already, whatever transfer syntax it came in."""
    same = comparison.same if comparison else frozenset()
    return next((one for one in known if one.sha256 == staged.sha256 or one.key in same), None)


def _bytes_of(instance: Instance) -> tuple[int | None, str, str]:
    """Which instance, and where its bytes should be."""
    return instance.pk, instance.staged_key, instance.store_key


def _duplicate(
    session: Session, study: Study | None, twin: Instance, staged: Staged, now: dt.datetime, *, lost: bool
) -> Registered:
    """No effect (row 29), unless we have lost the bytes: then this is what there is of the object, in whatever transfer
    syntax."""
    if lost:
        if twin.state == "STORED":  # not in the archive, whatever the row says: the next commit shows it again
            twin.state = advance(INSTANCE, twin.state, "hide")
        twin.missing, twin.staged_node, twin.staged_key = False, staged.node, staged.key
        twin.store_key = twin.store_sha256 = twin.canonical_digest = ""
        twin.sha256, twin.size, twin.transfer_syntax_uid = staged.sha256, staged.size, staged.transfer_syntax
        session.add(twin)
        _receive(session, study, staged, now)
    audit.record(
        session, "instance.duplicate", f"instance:{twin.key}", actor=staged.source_ae, now=now, restored=lost,
        sha256=staged.sha256,
    )  # fmt: skip
    return Registered(twin, duplicate=not lost)


def _receive(session: Session, study: Study | None, staged: Staged, now: dt.datetime) -> Study:
    """The study, made or back in RECEIVING: every later object is decided too."""
    if study is None:
        study = Study(study_instance_uid=staged.header.study_instance_uid, last_received_at=now)
    else:
        study.state = advance(STUDY, study.state, "receive")
        study.last_received_at = now
        # The document of an order counts what its studies received; before the decision none does.
        for order_pk in _orders_of(session, study.key):
            outbox.touch(session, order_pk)
    session.add(study)
    session.flush()
    return study


def _orders_of(session: Session, study_pk: int) -> Sequence[int]:
    return session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study_pk)).all()


def _instance(session: Session, study: Study, staged: Staged, now: dt.datetime) -> Instance:
    header = staged.header
    series = session.exec(
        select(Series).where(Series.study_pk == study.key, Series.series_instance_uid == header.series_instance_uid)
    ).first()
    if series is None:
        series = Series(study_pk=study.key, series_instance_uid=header.series_instance_uid, modality=header.modality)
        session.add(series)
        session.flush()
    return Instance(
        study_pk=study.key,
        series_pk=series.key,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=staged.transfer_syntax,
        sha256=staged.sha256,
        size=staged.size,
        staged_node=staged.node,
        staged_key=staged.key,
        source_ae=staged.source_ae,
        source_address=staged.source_address,
        received_at=now,
        facts=header.facts,
    )


def _keep_beside(session: Session, instance: Instance, known: Sequence[Instance], comparison: Comparison) -> None:
    """Note what the newcomer is in conflict with, and how badly."""
    first = next(one for one in known if one.conflict_of is None)
    instance.conflict_of = first.key
    instance.canonical_digest = str(comparison.own)
    kind = difference(first.facts, instance.facts, comparison.same_pixels(first.key))
    instance.facts = instance.facts | {"conflict": kind}
    for one in known:
        one.canonical_digest = one.canonical_digest or str(comparison.others[one.key] or "")
        session.add(one)


def with_row(session: Session, staged_keys: Collection[str]) -> set[str]:
    """Those of the staged files that an instance names."""
    return set(session.exec(select(Instance.staged_key).where(col(Instance.staged_key).in_(staged_keys))).all())
