"""The runner: one transaction, replayed when the database asks, finished before its commit."""

import contextlib
import threading

import pytest
from sqlalchemy import bindparam, delete, inspect
from sqlalchemy.exc import IntegrityError, InvalidRequestError, NoResultFound
from sqlalchemy.orm.exc import StaleDataError
from sqlmodel import Session, select

from broker import clock, db, statements
from broker.errors import WrongState
from broker.model.messages import Message
from broker.model.patients import Patient, PatientIdentifier
from broker.model.work import AuditEvent

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


# Statements made once

NAMES = db.Prepared(db.columns(Patient.name).where(Patient.sex == bindparam("sex")).order_by(Patient.pk))
AMONG = db.Prepared(db.columns(Patient.name).where(Patient.name.in_(bindparam("among", expanding=True))))
IDENTIFIER = {"value": "1", "issuer": "HOSP"}


def noted(session: Session, subject: str) -> None:
    said = {"at": clock.now(), "actor": "broker", "action": "site.change", "subject": subject}
    db.append(session, AuditEvent, said)


def subjects() -> list[str]:
    return list(db.read(lambda session: session.exec(select(AuditEvent.subject).order_by(AuditEvent.pk)).all()))


def test_a_statement_made_once_shows_what_the_session_has_changed_and_what_others_have():
    def look(session: Session) -> list[list[str]]:
        patient = Patient(name="YAMADA^TARO", sex="M")
        session.add(patient)
        seen = [NAMES.rows(session, sex="M"), NAMES.rows(session, sex="F")]
        db.update(session, Patient, patient.key, {"name": "YAMADA^JIRO"})
        seen += [NAMES.rows(session, sex="M"), AMONG.rows(session, among=["YAMADA^JIRO", "NOBODY"])]
        assert NAMES.first(session, sex="O") is None
        return [[row.name for row in rows] for rows in seen]

    assert db.run(look) == [["YAMADA^TARO"], [], ["YAMADA^JIRO"], ["YAMADA^JIRO"]]


def test_a_row_that_is_inserted_or_changed_by_columns_is_the_row_that_an_entity_would_be():
    now = clock.now()
    said = {"sender": "HIS|HOSP", "control_id": "1", "sha256": "00", "raw": b"\x00MSH", "received_at": now}

    def both(session: Session) -> list[dict]:
        session.add(entity := Message(**said))
        session.flush()
        pk = db.insert(session, Message, said | {"sha256": "01"})
        for one in (entity.key, pk):
            db.update(session, Message, one, {"answer_sent": True, "answer": b"\xff"})
        session.expire_all()
        rows = [session.get_one(Message, one) for one in (entity.key, pk)]
        assert rows[1].created_at >= now
        assert rows[1].updated_at > rows[1].created_at
        return [row.model_dump(exclude={"pk", "sha256", "created_at", "updated_at"}) for row in rows]

    entity, columns = db.run(both)
    assert entity == columns
    assert (columns["answer_sent"], columns["received_at"]) == (True, now)


def test_times_lists_and_truths_come_back_as_they_were_given():
    now = clock.now()
    said = db.Prepared(db.columns(Message.received_at, Message.answer_sent, Message.raw, Message.order_pk))
    audited = db.Prepared(db.columns(AuditEvent.detail))

    def look(session: Session) -> list[tuple]:
        db.insert(session, Message, {"sha256": "0", "received_at": now, "answer_sent": True, "raw": b"\x00"})
        db.append(session, AuditEvent, {"at": now, "actor": "", "action": "", "subject": "", "detail": {"a": ["山"]}})
        session.flush()
        return [tuple(said.first(session)), tuple(audited.first(session))]

    assert db.run(look) == [(now, True, b"\x00", None), ({"a": ["山"]},)]


def test_a_second_row_of_one_key_is_none_and_says_so():
    def twice(session: Session) -> tuple[int | None, int | None]:
        patient = db.insert(session, Patient, {})
        identifier = IDENTIFIER | {"patient_pk": patient}
        return db.insert_new(session, PatientIdentifier, identifier), db.insert_new(
            session, PatientIdentifier, identifier
        )

    first, second = db.run(twice)
    assert first is not None
    assert second is None


def test_a_row_that_breaks_a_rule_is_refused_as_by_an_entity_and_nothing_stays():
    def broken(session: Session) -> None:
        patient = db.insert(session, Patient, {"name": "YAMADA^TARO"})
        for _ in range(2):
            db.append(session, PatientIdentifier, IDENTIFIER | {"patient_pk": patient})

    with pytest.raises(IntegrityError):
        db.run(broken)
    assert names() == []


@pytest.mark.parametrize("write", [
    lambda session: db.insert(session, Patient, {"nmae": "YAMADA^TARO"}),
    lambda session: db.append(session, Patient, {"nmae": "YAMADA^TARO"}),
    lambda session: db.update(session, Patient, 1, {"nmae": "YAMADA^TARO"}),
    lambda session: db.append(session, AuditEvent, {"actor": "broker"}),
])  # fmt: skip
def test_a_column_that_there_is_not_or_that_is_missing_is_noticed(write):
    with pytest.raises(AssertionError):
        db.run(write)


def test_what_is_appended_is_written_in_its_order_by_the_next_flush():
    def work(session: Session) -> list[str]:
        noted(session, "a")
        noted(session, "b")
        seen = list(session.exec(select(AuditEvent.subject).order_by(AuditEvent.pk)).all())
        noted(session, "c")
        return seen

    assert db.run(work) == ["a", "b"]
    assert subjects() == ["a", "b", "c"]


def test_what_a_finisher_appends_is_written_too(monkeypatch):
    monkeypatch.setattr(db, "_finishers", [lambda session: noted(session, "last")])
    db.run(lambda session: noted(session, "first"))
    assert subjects() == ["first", "last"]


def test_what_is_appended_goes_with_its_savepoint_and_with_its_transaction():
    def work(session: Session) -> None:
        noted(session, "before")
        with pytest.raises(WrongState), session.begin_nested():
            noted(session, "inside")
            raise WrongState("step", "no")
        noted(session, "after")

    def refused(session: Session) -> None:
        noted(session, "refused")
        raise WrongState("step", "no")

    db.run(work)
    with pytest.raises(WrongState):
        db.run(refused)
    assert subjects() == ["before", "after"]


# Entities


OF_SEX = db.Entities(select(Patient).where(Patient.sex == bindparam("sex")).order_by(Patient.pk))


def test_rows_are_written_in_the_order_in_which_they_were_added_and_changed_ones_by_their_keys():
    def work(session: Session) -> list[list]:
        added = [Patient(name=name) for name in "CAB"]
        session.add_all(added)
        session.flush()
        keys = [row.pk for row in added]
        for row in reversed(added):
            row.name += "!"
            row.attributes = {"PatientWeight": "60"}
        return [keys, [row.pk for row in session.exec(select(Patient).order_by(Patient.name)).all()]]

    assert db.run(work) == [[1, 2, 3], [2, 3, 1]]
    assert [(row.name, row.attributes) for row in db.read(OF_SEX.all, sex="")] == [
        (name, {"PatientWeight": "60"}) for name in ("C!", "A!", "B!")
    ]


def test_only_what_changed_is_written_and_a_change_that_was_taken_back_is_none():
    db.run(lambda session: session.add(Patient(name="YAMADA^TARO")))
    before = db.read(db.get, Patient, 1).updated_at

    def back_and_forth(session: Session) -> None:
        patient = db.get(session, Patient, 1)
        patient.name, patient.sex = "ONO^YUKI", "F"
        patient.name, patient.sex = "YAMADA^TARO", ""

    def beside(session: Session) -> None:
        patient = db.get(session, Patient, 1)
        db.update(session, Patient, 1, {"sex": "M"})
        patient.birth_date = "19700101"

    db.run(back_and_forth)
    assert db.read(db.get, Patient, 1).updated_at == before
    db.run(beside)
    after = db.read(db.get, Patient, 1)
    assert (after.name, after.sex, after.birth_date, after.updated_at > before) == (
        "YAMADA^TARO", "M", "19700101", True
    )  # fmt: skip


def test_a_row_is_the_same_entity_however_often_it_is_met_and_shows_what_is_there():
    def work(session: Session) -> None:
        session.add(made := Patient(sex="M"))
        assert OF_SEX.one(session, sex="M") is db.get(session, Patient, made.key) is db.lock(session, Patient, made.key)
        db.update(session, Patient, made.key, {"name": "ONO^YUKI"})
        assert (OF_SEX.first(session, sex="M").name, made.name) == ("ONO^YUKI", "ONO^YUKI")
        session.expire_all()
        db.update(session, Patient, made.key, {"name": "SATO^HANAKO"})
        assert OF_SEX.one(session, sex="M") is made
        assert (made.name, inspect(made).expired_attributes) == ("SATO^HANAKO", set())

    db.run(work)
    with pytest.raises(NoResultFound):
        db.read(OF_SEX.one, sex="F")


def test_a_row_with_a_key_of_its_own_and_one_that_goes_are_written_too():
    def work(session: Session) -> None:
        session.add(Patient(pk=7, name="YAMADA^TARO"))
        session.add(gone := Patient(name="ONO^YUKI"))
        session.flush()
        session.delete(gone)

    db.run(work)
    assert [(row.pk, row.name) for row in db.read(OF_SEX.all, sex="")] == [(7, "YAMADA^TARO")]


def test_what_was_changed_inside_a_savepoint_goes_with_it():
    def work(session: Session) -> None:
        session.add(patient := Patient(name="YAMADA^TARO"))
        with pytest.raises(WrongState), session.begin_nested():
            patient.name = "ONO^YUKI"
            session.add(Patient(name="SATO^HANAKO"))
            session.flush()
            raise WrongState("step", "no")
        assert patient.name == "YAMADA^TARO"
        patient.sex = "M"

    db.run(work)
    assert [(row.name, row.sex) for row in db.read(OF_SEX.all, sex="M")] == [("YAMADA^TARO", "M")]
    assert db.read(OF_SEX.all, sex="") == []


def test_a_change_of_a_row_that_is_gone_is_told():
    def work(session: Session) -> None:
        session.add(patient := Patient(name="YAMADA^TARO"))
        session.flush()
        session.connection().execute(delete(Patient))
        patient.name = "ONO^YUKI"

    with pytest.raises(StaleDataError):
        db.run(work)
    with pytest.raises(StaleDataError):
        db.run(db.update, Patient, 1, {"name": "ONO^YUKI"})


def test_a_row_that_is_made_has_its_defaults_and_no_field_that_there_is_not():
    made = Patient(name="YAMADA^TARO")
    assert (made.name, made.sex, made.attributes, made.pk, made.merged_into) == ("YAMADA^TARO", "", {}, None, None)
    assert made.attributes is not Patient().attributes
    with pytest.raises(AssertionError):
        Patient(nmae="YAMADA^TARO")


def test_who_swallows_an_error_of_the_database_cannot_commit():
    def work(session: Session) -> None:
        patient = db.insert(session, Patient, {"name": "YAMADA^TARO"})
        with contextlib.suppress(IntegrityError):
            for _ in range(2):
                db.insert(session, PatientIdentifier, IDENTIFIER | {"patient_pk": patient})

    with pytest.raises(InvalidRequestError):
        db.run(work)
    assert names() == []


def test_what_was_made_inside_a_savepoint_that_went_may_be_made_again():
    def work(session: Session) -> None:
        patient = Patient(name="YAMADA^TARO")
        with pytest.raises(WrongState), session.begin_nested():
            session.add(patient)
            session.flush()
            raise WrongState("step", "no")
        session.add(other := Patient(name="ONO^YUKI"))
        session.flush()
        assert patient not in session
        patient.pk = None
        session.add(patient)
        session.flush()
        assert patient.pk != other.pk

    db.run(work)
    assert names() == ["ONO^YUKI", "YAMADA^TARO"]


def test_a_row_that_is_merged_into_the_session_is_written():
    db.run(lambda session: session.merge(Patient(name="YAMADA^TARO")))
    assert names() == ["YAMADA^TARO"]


def test_changes_are_written_in_the_order_of_locks_patients_before_their_numbers(monkeypatch):
    def make(session: Session) -> None:
        for number in (1, 2):
            session.add(Patient(pk=number))
            session.add(PatientIdentifier(pk=number, **IDENTIFIER | {"patient_pk": number, "value": str(number)}))

    written: list[tuple[str, int]] = []
    update = statements._update

    def noted(session: Session, table: type, key: int, values: dict) -> dict:
        written.append((table.__name__, key))
        return update(session, table, key, values)

    def change(session: Session) -> None:
        met = [db.get(session, table, number) for table in (PatientIdentifier, Patient) for number in (2, 1)]
        for row in met:
            setattr(row, "type" if isinstance(row, PatientIdentifier) else "sex", "M")

    db.run(make)
    monkeypatch.setattr(statements, "_update", noted)
    db.run(change)
    assert written == [("Patient", 1), ("Patient", 2), ("PatientIdentifier", 1), ("PatientIdentifier", 2)]
