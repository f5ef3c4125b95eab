"""What was acknowledged against what is there: nothing is missing, nothing is there twice, nobody's image is another's."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

from sqlmodel import Session, select

from broker import db
from broker.archive.staging import Staging
from broker.config import Settings
from broker.model.images import Decision, Instance, Study
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.performed import PerformedStep, PerformedStepLink
from broker.model.status import OrderStatus, StatusChange
from broker.model.work import AuditEvent
from tests.crash.storm import Exam


def check(settings: Settings, exams: list[Exam]) -> Counter[str]:
    """How much was acknowledged and found, by kind. The broker is down."""
    found: Counter[str] = Counter()
    for look in (_messages, _orders, _performed, _images, _files, _feed):
        found += db.read(look, settings, exams)
    return found


def _messages(session: Session, _settings: Settings, exams: list[Exam]) -> Counter[str]:
    journal: dict[bytes, list[Message]] = defaultdict(list)
    for message in session.exec(select(Message)):
        journal[message.raw].append(message)
    sent = [message for exam in exams for message in exam.messages]
    for raw in sent:
        (row,) = journal.pop(raw)
        assert (row.state, row.answer[:3]) == ("APPLIED", b"MSH")
    assert all(len(rows) == 1 for rows in journal.values()), "a message that was not answered is there twice"
    return Counter(messages=len(sent))


def _orders(session: Session, _settings: Settings, exams: list[Exam]) -> Counter[str]:
    orders = session.exec(select(ImagingOrder.accession_number)).all()
    assert len(orders) == len(set(orders))
    placed = [exam for exam in exams if exam.placed]
    assert {exam.order.accession for exam in placed} <= set(orders)
    for table in (RequestedProcedure, ScheduledStep):
        assert len(session.exec(select(table)).all()) == len(orders), "one of each, as ordered"
    return Counter(orders=len(placed))


def _performed(session: Session, _settings: Settings, exams: list[Exam]) -> Counter[str]:
    rows = {row.sop_instance_uid: row for row in session.exec(select(PerformedStep))}
    steps = dict(
        session.exec(
            select(PerformedStep.sop_instance_uid, ScheduledStep.status)
            .where(PerformedStepLink.performed_pk == PerformedStep.pk)
            .where(PerformedStepLink.step_pk == ScheduledStep.pk)
        ).all()
    )
    started = [exam for exam in exams if exam.started]
    assert len(rows) == len(started)
    for exam in started:
        if exam.finished:
            assert (rows[exam.mpps_uid].status, steps[exam.mpps_uid]) == ("COMPLETED", "COMPLETED")
    return Counter(performed=len(started), finished=sum(exam.finished for exam in exams))


def _images(session: Session, settings: Settings, exams: list[Exam]) -> Counter[str]:
    """Every acknowledged image once, with its bytes; in the archive exactly where it shows the patient of the order."""
    rows: dict[str, list[Instance]] = defaultdict(list)
    for instance in session.exec(select(Instance)):
        rows[instance.sop_instance_uid].append(instance)
    reasons = {one.study_pk: (one.row, one.reasons) for one in session.exec(select(Decision))}
    count = 0
    for exam in exams:
        for uid, sha256 in exam.images.items():
            (row,) = rows.pop(uid)
            assert (row.sha256, row.missing) == (sha256, False)
            assert row.state == ("HELD" if exam.wrong else "STORED"), (row.state, reasons[row.study_pk])
            assert bool(row.store_key) != bool(row.staged_key), "in one place"
            assert _data_set_hash(_path(settings, row)) == sha256
            count += 1
        for uid, sha256 in exam.given_up.items():
            assert [row.sha256 for row in rows.pop(uid, [])] in ([], [sha256])
    assert not rows, "images that nobody sent"
    assert {study.state for study in session.exec(select(Study))} <= {"ARCHIVED", "IN_REVIEW"}
    received = session.exec(
        select(AuditEvent.subject).where(AuditEvent.action.in_(("instance.receive", "instance.adopt")))  # type: ignore[attr-defined]
    ).all()
    assert len(received) == len(set(received)), "received once"
    return Counter(images=count, held=sum(len(exam.images) for exam in exams if exam.wrong))


def _files(session: Session, settings: Settings, _exams: list[Exam]) -> Counter[str]:
    """No file without its row, and nothing half."""
    rows = session.exec(select(Instance)).all()
    staging = Staging(settings)
    assert sorted(staging.keys()) == sorted(row.staged_key for row in rows if row.staged_key)
    archive = _archive(settings)
    there = {str(path.relative_to(archive)) for path in archive.rglob("*.dcm")}
    assert there == {key for row in rows for key in (row.store_key, row.rendition_key) if key}
    for room in (staging.incoming, staging.refused):
        assert list(room.iterdir()) == [], room.name
    return Counter()


def _feed(session: Session, _settings: Settings, exams: list[Exam]) -> Counter[str]:
    """Gap-free, in one order, and its last word on each exam is the truth."""
    changes = session.exec(select(StatusChange).order_by(StatusChange.sequence)).all()  # type: ignore[arg-type]
    assert [one.sequence for one in changes] == list(range(1, len(changes) + 1))
    by_order: dict[int, list[int]] = defaultdict(list)
    for one in changes:
        by_order[one.order_pk].append(one.version)
    assert all(versions == list(range(1, len(versions) + 1)) for versions in by_order.values())
    documents = {row["accession_number"]: row for row in map(json.loads, session.exec(select(OrderStatus.document)))}
    for exam in exams:
        if exam.finished:
            document = documents[exam.order.accession]
            assert document["state"] == ("HELD" if exam.wrong else "AVAILABLE"), document
            assert document["images"]["available"] >= (0 if exam.wrong else len(exam.images))
    return Counter(changes=len(changes))


def _path(settings: Settings, row: Instance) -> Path:
    return _archive(settings) / row.store_key if row.store_key else settings.staging_dir / row.staged_key


def _archive(settings: Settings) -> Path:
    return Path(settings.archive.removeprefix("file://"))


def _data_set_hash(path: Path) -> str:
    """Of what follows our File Meta, whose length stands in its first element."""
    whole = path.read_bytes()
    return hashlib.sha256(whole[144 + int.from_bytes(whole[140:144], "little") :]).hexdigest()
