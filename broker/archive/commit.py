"""Accepted studies into the archive: verified copies first, then the rows, staging last (durability.md 1.4, step 8).

Whoever is killed between two steps leaves what the next pass finds, verifies and finishes: a copy has the same key at
every try, the rows change in one transaction, and only what they call stored is taken out of staging."""

import datetime as dt
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from sqlalchemy import exists, or_
from sqlmodel import Session, col, select

from broker import __version__, audit, casebook, clock, db, ids, leases, log, outbox
from broker.archive import plan, rendition
from broker.archive.changes import changes_for
from broker.archive.coerce import Record, coerce
from broker.archive.plan import Plan
from broker.archive.store import Store, custody_key, make_store, rendition_key
from broker.config import Limits, Settings
from broker.errors import BrokerError, Unreadable
from broker.model.images import Instance, Study, StudyOrder
from broker.states import INSTANCE, STUDY, advance

ACTOR = "broker"
FAILED = "commit_failed"  # the kind of case of a study that cannot be stored
# What fails for one fails for all: the volume is full or read-only, or this process has no descriptor left.
FOR_ALL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
IDENTITY = {"PatientName", "PatientID", "PatientBirthDate", "PatientSex"}


@dataclass(frozen=True)
class Stored:
    """Verified files of one instance. rendition_*: empty where nothing is coerced."""

    store_key: str
    store_sha256: str
    rendition_key: str = ""
    rendition_sha256: str = ""


def work(settings: Settings) -> int:
    """One pass over what was let in; how many studies were claimed. One that cannot be stored is tried again later, and
    keeps no other waiting."""
    make_store(settings).sweep(settings.limits.archive_partial_seconds_max)
    claimed, goes_on = 0, True
    while goes_on and claimed < settings.limits.commit_batch_studies_max and (study_pk := _claim(settings)) is not None:
        claimed += 1
        try:
            commit_study(settings, study_pk)
        except Exception as error:
            log.get().exception("study.commit_failed", study=study_pk, reason=_reason(error))
            goes_on = not _is_for_all(error)
            if goes_on:
                db.run(_postpone, study_pk, _reason(error), now=clock.now(), limits=settings.limits)
                continue
        # What is staged at another node is that node's to store: let it have its turn.
        wait = dt.timedelta(seconds=settings.limits.job_seconds_between)
        db.run(leases.release_study, study_pk, not_before=clock.now() + wait)
    purge(settings)
    return claimed


def commit_study(settings: Settings, study_pk: int) -> None:
    """Store what is decided. An instance that cannot be copied keeps the study open; the others become available."""
    made = db.read(plan.make_plan, study_pk, _node(settings), settings)
    if made is None:
        db.run(settle_up, study_pk, now=clock.now())
        return
    stored, failure = _copy_all(settings, made)
    db.run(mark_stored, made, stored, now=clock.now())
    purge(settings, study_pk)
    if failure:
        raise failure


def _node(settings: Settings) -> str:
    """Who we are; nobody before anything was received here (archive/staging.py)."""
    path = settings.data_dir / "node.id"
    return path.read_text() if path.exists() else ""


def _claim(settings: Settings) -> int | None:
    waits = exists().where(col(Instance.study_pk) == col(Study.pk), plan.is_pending())
    let_in = or_(col(Study.state) == "ACCEPTED", waits)
    claimed = db.run(leases.claim_studies, let_in, now=clock.now(), seconds=settings.limits.lease_seconds, limit=1)
    return claimed[0] if claimed else None


def _postpone(session: Session, study_pk: int, reason: str, *, now: dt.datetime, limits: Limits) -> None:
    """Back off: 2, 4, 8 … seconds. What fails again and again, a person is told; and again, where that did not help."""
    study = db.lock(session, Study, study_pk)
    study.attempts += 1
    session.add(study)
    wait = min(2.0 ** min(study.attempts, 30), limits.commit_retry_seconds_max)
    leases.release_study(session, study_pk, not_before=now + dt.timedelta(seconds=wait))
    if study.attempts % limits.commit_attempts_max == 0:
        casebook.open_case(
            session, FAILED, f"study:{study_pk}", level="amber", reasons=[f"not in the archive: {reason}"],
            study_pk=study_pk, order_pk=study.order_pk, now=now, actor=ACTOR,
        )  # fmt: skip


def _is_for_all(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in FOR_ALL


def _reason(error: Exception) -> str:
    """Without the text of a library, which may quote a value."""
    if isinstance(error, BrokerError):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else "") or type(error).__name__


# Copies: files only, no transaction


def _copy_all(settings: Settings, made: Plan) -> tuple[dict[int, Stored], Exception | None]:
    """Verified files by instance, and the failure that a person would want to know: the first one, or the one that ends
    the pass."""
    store, seconds = make_store(settings), settings.limits.lease_seconds
    stored: dict[int, Stored] = {}
    failure: Exception | None = None
    renew_at = clock.now() + dt.timedelta(seconds=seconds / 2)
    for instance in made.instances:
        if (now := clock.now()) > renew_at:
            db.run(leases.renew_study, made.study_pk, now=now, seconds=seconds)
            renew_at = now + dt.timedelta(seconds=seconds / 2)
        try:
            stored[instance.key] = copy_instance(settings, store, made, instance)
        except Exception as error:  # whatever is wrong with its bytes
            log.get().exception("instance.not_stored", instance=instance.key, reason=_reason(error))
            if _is_for_all(error):
                return stored, error
            if not isinstance(error, BrokerError):
                error = Unreadable(f"instance {instance.key}", f"cannot be stored: {_reason(error)}")
            failure = failure or error
    return stored, failure


def copy_instance(settings: Settings, store: Store, made: Plan, instance: Instance) -> Stored:
    """Put the received bytes, and the rendition where the decision wants one, into the archive."""
    if instance.store_key:  # hidden for a while: its bytes are there already
        key, sha256 = instance.store_key, instance.store_sha256
        if store.sha256(key) != sha256:
            raise Unreadable(f"archive {key}", "does not have the hash that it was stored with")
    else:
        path = settings.staging_dir / instance.staged_key
        key, sha256 = custody_key(instance.key, instance.sha256), _verified(path, instance)
        store.put(key, path, sha256)
    with store.open(key) as source:
        return Stored(key, sha256, *_render(settings, store, made, instance, source))


def _verified(path: Path, instance: Instance) -> str:
    """SHA-256 of the staged file, whose data set must be the one that was received."""
    try:
        with path.open("rb") as file:
            received, whole = rendition.digests(file)
    except FileNotFoundError:
        raise Unreadable(f"instance {instance.pk}", "its file is not in staging") from None
    if received != instance.sha256:
        raise Unreadable(f"instance {instance.pk}", "its staged bytes do not have the hash they were received with")
    return whole


def _render(settings: Settings, store: Store, made: Plan, instance: Instance, source: BinaryIO) -> tuple[str, str]:
    """Key and SHA-256 of the coerced rendition, empty where nothing changes."""
    how = made.how[instance.key]
    if how.target is None:
        return "", ""
    target = how.target

    def change(ds: Dataset) -> Dataset:
        changes = changes_for(ds, target, only_name=how.only_name, by_person=how.replaced)
        corrected = how.replaced and bool(IDENTITY & changes.keys())
        # The decision's time: the same bytes at every try.
        record = Record(
            "CORRECT" if corrected else "COERCE", instance.source_ae, _system(settings), how.decided_at,
            settings.site.timezone,
        )  # fmt: skip
        return coerce(ds, changes, record)

    aside = settings.staging_dir / "in" / f"{ids.file_name()}.part"
    try:
        sha256 = rendition.render(
            source, aside, instance.transfer_syntax_uid, change, settings.limits.rendition_header_bytes_max
        )
        if sha256 is None:
            return "", ""
        key = rendition_key(instance.key, sha256)
        store.put(key, aside, sha256)
        return key, sha256
    finally:
        aside.unlink(missing_ok=True)


def _system(settings: Settings) -> str:
    return f"BROKER {settings.dicom.ae_title} {__version__}"


# Rows


def mark_stored(session: Session, made: Plan, stored: dict[int, Stored], *, now: dt.datetime) -> bool:
    """The rows of what was copied; False, and nothing, where the study was merged meanwhile. An instance that was
    decided anew waits for the next pass."""
    study = db.lock(session, Study, made.study_pk)
    if study.patient_pk != made.patient_pk:
        return False
    waiting = plan.pending(session, study.key)
    done = [one for one in waiting if one.key in stored and one.decision_pk == made.decisions[one.key]]
    for instance in done:
        files = stored[instance.key]
        instance.state = advance(INSTANCE, instance.state, "show" if instance.state == "HIDDEN" else "store")
        instance.store_key, instance.store_sha256 = files.store_key, files.store_sha256
        instance.rendition_key, instance.rendition_sha256 = files.rendition_key, files.rendition_sha256
        session.add(instance)
    if not done:
        return False
    session.flush()
    settle_up(session, study.key, now=now)
    audit.record(
        session, "study.archive", f"study:{study.key}", actor=ACTOR, now=now, stored=len(done),
        coerced=sum(bool(stored[instance.key].rendition_key) for instance in done), waiting=len(waiting) - len(done),
    )  # fmt: skip
    for order_pk in session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study.key)).all():
        outbox.touch(session, order_pk)
    return True


def settle_up(session: Session, study_pk: int, *, now: dt.datetime) -> None:
    """An accepted study of which all is in the archive is archived."""
    study = db.lock(session, Study, study_pk)
    if plan.pending(session, study_pk):
        return
    if failed := casebook.find_open(session, FAILED, f"study:{study_pk}"):
        casebook.close_case(session, failed, now=now, actor=ACTOR, resolution={"action": "stored"})
    if study.state == "ACCEPTED":
        study.state = advance(STUDY, study.state, "store")
        study.archived_at, study.attempts = now, 0
        session.add(study)
        for order_pk in session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study_pk)).all():
            outbox.touch(session, order_pk)


# Staging, last


def purge(settings: Settings, study_pk: int | None = None) -> None:
    """Take out of this node's staging what the rows call stored (invariant 7); also what somebody who was killed left.
    A file that does not go keeps no other waiting."""
    node, after = _node(settings), 0
    while found := db.read(_purgeable, node, study_pk, after, settings.limits.list_items_max):
        after = found[-1][0]
        db.run(_forget_staged, {pk: key for pk, key in found if _is_removed(settings.staging_dir / key)})


def _is_removed(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.get().error("staging.not_removed", file=path.name, errno=error.errno)
        return False
    return True


def _purgeable(session: Session, node: str, study_pk: int | None, after: int, limit: int) -> Sequence[tuple[int, str]]:
    query = (
        select(Instance.pk, Instance.staged_key)
        .where(Instance.staged_node == node, Instance.staged_key > "", Instance.store_key > "")
        .where(col(Instance.pk) > after)
        .order_by(col(Instance.pk))
    )
    if study_pk is not None:
        query = query.where(Instance.study_pk == study_pk)
    return [(pk, key) for pk, key in session.exec(query.limit(limit)).all() if pk is not None]


def _forget_staged(session: Session, removed: Mapping[int, str]) -> None:
    query = select(Instance).where(col(Instance.pk).in_(removed)).with_for_update()
    for instance in session.exec(query).all():
        if instance.staged_key == removed[instance.key]:  # lost bytes may have come again meanwhile, under another key
            instance.staged_key = ""
            session.add(instance)
