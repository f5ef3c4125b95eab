"""The runner: one transaction, replayed when the database asks, finished before its commit."""

import threading

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, select

from broker import clock, db
from broker.errors import WrongState
from broker.model.patients import Patient, PatientIdentifier

pytestmark = pytest.mark.usefixtures("database")


def names() -> list[str]:
    return sorted(patient.name for patient in db.read(lambda session: session.exec(select(Patient)).all()))


def test_a_refusal_rolls_everything_back():
    def half(session: Session) -> None:
        session.add(Patient(name="YAMADA^TARO"))
        session.flush()
        raise WrongState("step", "no")

    with pytest.raises(WrongState):
        db.run(half)
    assert names() == []


def test_two_threads_that_both_create_the_same_row_end_with_one_and_no_error():
    barrier, errors = threading.Barrier(8), []

    def find_or_make(session: Session) -> None:
        found = session.exec(select(PatientIdentifier).where(PatientIdentifier.value == "1")).first()
        if found is None:
            patient = Patient(name="SATO^HANAKO")
            session.add(patient)
            session.flush()
            session.add(PatientIdentifier(patient_pk=patient.key, value="1", issuer="HOSP"))

    def work() -> None:
        barrier.wait()
        try:
            db.run(find_or_make)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names() == ["SATO^HANAKO"]


def test_a_real_conflict_is_raised_after_a_few_tries():
    tries = []

    def always(session: Session) -> None:
        tries.append(1)
        for _ in range(2):
            session.add(PatientIdentifier(patient_pk=patient, value="7", issuer=""))
        session.flush()

    patient = db.run(lambda session: (session.add(row := Patient()), session.flush(), row.key)[-1])
    with pytest.raises(IntegrityError):
        db.run(always)
    assert len(tries) == db.UNIQUE_REPLAYS_MAX


def test_read_then_write_by_many_threads_loses_no_update():
    pk = db.run(lambda session: (session.add(row := Patient(name="0")), session.flush(), row.key)[-1])

    def add_one(session: Session) -> None:
        row = session.exec(select(Patient).where(Patient.pk == pk).with_for_update()).one()
        row.name = str(int(row.name) + 1)

    threads = [threading.Thread(target=lambda: [db.run(add_one) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names() == ["40"]


def test_a_read_sees_one_snapshot():
    def look(session: Session) -> tuple[int, int]:
        before = len(session.exec(select(Patient)).all())
        writer = threading.Thread(target=lambda: db.run(lambda s: s.add(Patient(name="NEW"))))
        writer.start()
        writer.join()
        return before, len(session.exec(select(Patient)).all())

    assert db.read(look) == (0, 0)
    assert names() == ["NEW"]


def test_times_come_back_aware_and_in_utc():
    now = clock.now()
    db.run(lambda session: session.add(Patient(created_at=now)))
    (patient,) = db.read(lambda session: session.exec(select(Patient)).all())
    assert patient.created_at == now
    assert patient.created_at.utcoffset().total_seconds() == 0
