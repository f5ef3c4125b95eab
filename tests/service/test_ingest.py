"""From a staged file to rows, on both databases: once, whatever comes how often, in which order, at the same time."""

import contextlib
import hashlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator

import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from sqlalchemy import event
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoTurn
from sqlmodel import Session, SQLModel, select

from broker import clock, db, outbox
from broker.archive import ingest, intake
from broker.archive.digest import canonical_digest
from broker.archive.intake import accept
from broker.archive.recovery import recover
from broker.archive.scp import StorageService
from broker.archive.staging import Staging
from broker.archive.store import make_store
from broker.dicom.service import C_STORE_RQ, Command, Request
from broker.errors import BrokerError
from broker.model.images import Instance, Series, Study
from broker.model.work import AuditEvent
from broker.states import STUDY, advance
from tests.house import eventually
from tests.objects import PEER, ct, encoded, stage


@pytest.fixture
def staging(database, settings) -> Staging:
    return Staging(settings)


def rows(table: type[SQLModel]) -> list:
    return db.read(lambda session: list(session.exec(select(table).order_by(table.pk)).all()))  # type: ignore[attr-defined]


def actions() -> list[str]:
    return [event.action for event in rows(AuditEvent)]


def files(staging: Staging) -> list[str]:
    return list(staging.keys())


def send(settings, staging, ds, transfer_syntax="1.2.840.10008.1.2.1") -> ingest.Registered:
    return accept(settings, staging, stage(staging, ds, transfer_syntax), now=clock.now())


def change(table: type[SQLModel], pk: int, **values: object) -> None:
    def apply(session: Session) -> None:
        row = session.get_one(table, pk)
        for name, value in values.items():
            setattr(row, name, value)
        session.add(row)

    db.run(apply)


def test_an_object_becomes_study_series_and_instance(settings, staging):
    ds = ct()
    registered = send(settings, staging, ds)
    (study,), (series,), (instance,) = rows(Study), rows(Series), rows(Instance)
    assert registered.instance.pk == instance.pk
    assert (study.study_instance_uid, study.state) == (ds.StudyInstanceUID, "RECEIVING")
    assert (series.study_pk, series.series_instance_uid, series.modality) == (study.pk, ds.SeriesInstanceUID, "CT")
    assert (instance.state, instance.sha256) == ("STAGED", hashlib.sha256(encoded(ds)).hexdigest())
    assert (instance.source_ae, instance.source_address) == ("CT1", "127.0.0.1")
    assert (instance.staged_node, instance.staged_key) == (staging.node, files(staging)[0])
    assert instance.facts["patient_name"] == "YAMADA^TARO=山田^太郎"
    assert actions() == ["instance.receive"]


def test_the_same_object_again_changes_nothing(settings, staging):
    ds = ct()
    first = send(settings, staging, ds)
    study = rows(Study)[0]
    again = send(settings, staging, ds)
    assert (again.duplicate, again.conflict, again.instance.pk) == (True, False, first.instance.pk)
    assert len(rows(Instance)) == len(files(staging)) == 1
    assert rows(Study)[0].last_received_at == study.last_received_at
    assert actions() == ["instance.receive", "instance.duplicate"]


@pytest.mark.parametrize("transfer_syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_same_object_in_another_transfer_syntax_changes_nothing(settings, staging, transfer_syntax):
    """reconciliation.md row 29"""
    ds = ct()
    send(settings, staging, ds)
    for _ in range(2):
        assert send(settings, staging, ds, transfer_syntax).duplicate
    assert len(rows(Instance)) == len(files(staging)) == 1


def test_our_own_rendition_sent_back_changes_nothing(settings, staging):
    ds = ct()
    first = send(settings, staging, ds).instance
    ds.PatientName = "YAMADA^TAROU"
    rendition = stage(staging, ds)
    make_store(settings).put("rendition/1", staging.path(rendition.key), sha256_of(staging.path(rendition.key)))
    staging.remove(rendition.key)
    change(Instance, first.key, rendition_key="rendition/1")
    assert send(settings, staging, ds).duplicate
    assert len(rows(Instance)) == 1


def sha256_of(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("keyword", "value", "differs_in"),
    [
        ("PixelData", bytes(32), "pixels"),
        ("PatientID", "0000099999", "identity"),
        ("StudyDate", "20251224", "attributes"),
    ],
)
def test_another_object_with_the_same_uid_is_kept_beside_the_first(settings, staging, keyword, value, differs_in):
    """STO-06"""
    ds = ct()
    first = send(settings, staging, ds).instance
    before = staging.path(first.staged_key).read_bytes()
    setattr(ds, keyword, value)
    second = send(settings, staging, ds)
    assert second.conflict
    assert second.instance.conflict_of == first.pk
    assert second.instance.facts["conflict"] == differs_in
    assert staging.path(first.staged_key).read_bytes() == before
    assert len(files(staging)) == 2
    assert actions() == ["instance.receive", "instance.receive", "instance.conflict"]
    assert send(settings, staging, ds).duplicate  # and the second once more: known by now
    assert len(rows(Instance)) == 2


def test_a_conflict_is_found_with_the_archive_as_well(settings, staging):
    ds = ct()
    first = send(settings, staging, ds).instance
    path = staging.path(first.staged_key)
    make_store(settings).put("custody/1", path, sha256_of(path))
    path.unlink()
    change(Instance, first.key, store_key="custody/1", staged_key="")
    assert send(settings, staging, ds, ImplicitVRLittleEndian).duplicate
    ds.PixelData = bytes(32)
    assert send(settings, staging, ds).conflict


def test_an_object_whose_earlier_bytes_cannot_be_read_here_is_never_taken_for_a_copy(settings, staging):
    ds = ct()
    first = send(settings, staging, ds).instance
    change(Instance, first.key, staged_node="another node")
    second = send(settings, staging, ds, ImplicitVRLittleEndian)
    assert second.instance.facts["conflict"] == "pixels"


@pytest.mark.parametrize("state", sorted({state for state, event in STUDY if event == "receive"}))
def test_a_later_object_makes_the_study_be_decided_again_unless_a_person_has_it(settings, staging, state):
    ds = ct()
    send(settings, staging, ds)
    change(Study, rows(Study)[0].key, state=state)
    send(settings, staging, ct(StudyInstanceUID=ds.StudyInstanceUID))
    (study,) = rows(Study)
    assert study.state == advance(STUDY, state, "receive")
    assert [one.state for one in rows(Instance)] == ["STAGED", "STAGED"]


def test_lost_bytes_come_back_with_the_next_sending(settings, staging):
    ds = ct()
    first = send(settings, staging, ds).instance
    staging.path(first.staged_key).unlink()
    change(Instance, first.key, missing=True)
    assert not send(settings, staging, ds).duplicate
    (instance,) = rows(Instance)
    assert not instance.missing
    assert files(staging) == [instance.staged_key]


def at_once(work, things) -> list:
    barrier, results = threading.Barrier(len(things)), []

    def run(thing):
        barrier.wait()
        results.append(work(thing))

    threads = [threading.Thread(target=run, args=(thing,)) for thing in things]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_first_images_of_a_study_at_once_make_one_study(settings, staging):
    study, series = ct().StudyInstanceUID, ct().SeriesInstanceUID
    images = [ct(StudyInstanceUID=study, SeriesInstanceUID=series) for _ in range(6)]
    results = at_once(lambda ds: send(settings, staging, ds), images)
    assert len(results) == 6
    assert (len(rows(Study)), len(rows(Series)), len(rows(Instance))) == (1, 1, 6)
    assert {one.study_pk for one in rows(Instance)} == {rows(Study)[0].pk}


@pytest.mark.parametrize("kinds", [1, 2])
def test_one_uid_from_many_sides_at_once_is_one_instance_for_each_content(settings, staging, kinds):
    """durability.md A14: rows per UID 1, overwritten 0, conflicts held."""
    ds = ct()
    contents = [ds, ct(**{k: getattr(ds, k) for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")})]
    contents[1].PixelData = bytes(32)
    results = at_once(lambda n: send(settings, staging, contents[n % kinds]), range(6))
    assert len(results) == 6
    assert len(rows(Instance)) == len(files(staging)) == kinds
    assert sum(one.conflict_of is None for one in rows(Instance)) == 1
    assert sorted(files(staging)) == sorted(one.staged_key for one in rows(Instance))


def test_an_order_whose_study_is_decided_is_looked_at_again(settings, staging, monkeypatch):
    seen = []
    monkeypatch.setattr(ingest, "_orders_of", lambda _session, _study_pk: [17])
    monkeypatch.setattr(outbox, "touch", lambda _session, order_pk: seen.append(order_pk))
    ds = ct()
    send(settings, staging, ds)
    assert seen == []
    send(settings, staging, ct(StudyInstanceUID=ds.StudyInstanceUID))
    assert seen == [17]


def request(staging, ds) -> Request:
    command = Command(C_STORE_RQ, 1, ds.SOPClassUID, ds.SOPInstanceUID, has_dataset=True)
    sink = staging.open_sink(PEER, command, "1.2.840.10008.1.2.1")
    sink.write(memoryview(encoded(ds)))
    return Request(PEER, command, "1.2.840.10008.1.2.1", sink=sink)


def test_0000_is_not_handed_out_before_the_row_is_there(settings, staging):
    answer = next(iter(StorageService(settings, staging).handle(request(staging, ct()))))
    assert answer.status == 0x0000
    assert [one.staged_key for one in rows(Instance)] == files(staging) != []


def refused(service: StorageService, staging: Staging, ds) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        list(service.handle(request(staging, ds)))
    return caught.value


def broken(*_args: object, **_kwargs: object) -> None:
    raise OperationalError("", {}, Exception("server closed the connection"))


def no_turn(*_args: object, **_kwargs: object) -> None:
    raise NoTurn("no connection in time")


@contextlib.contextmanager
def commits_fail(with_what: Callable[..., None] = broken) -> Iterator[None]:
    """The connection breaks in each COMMIT, and nobody knows what the server made of it."""
    event.listen(db.engine(), "commit", with_what)
    try:
        yield
    finally:
        event.remove(db.engine(), "commit", with_what)


@pytest.mark.parametrize("trouble", [broken, no_turn])
def test_while_the_database_is_away_every_repeat_is_answered_a702_and_no_file_stays(
    settings, staging, monkeypatch, trouble
):
    service, ds = StorageService(settings, staging), ct()
    with monkeypatch.context() as away:
        away.setattr(ingest, "register", trouble)
        for _ in range(3):
            assert refused(service, staging, ds).wire.dimse_c == 0xA702
            assert files(staging) == []
    (answer,) = service.handle(request(staging, ds))
    assert answer.status == 0x0000
    assert files(staging) == [rows(Instance)[0].staged_key]


def test_a_commit_whose_answer_was_lost_keeps_its_file(settings, staging, monkeypatch):
    service = StorageService(settings, staging)
    real = db.run

    def lose_the_answer(fn, *args, **kwargs):
        real(fn, *args, **kwargs)
        broken()

    ds = ct()
    monkeypatch.setattr(db, "run", lose_the_answer)
    assert refused(service, staging, ds).wire.dimse_c == 0xA702
    monkeypatch.setattr(db, "run", real)
    for _ in range(2):
        (answer,) = service.handle(request(staging, ds))
        assert answer.status == 0x0000
    assert files(staging) == [one.staged_key for one in rows(Instance)]


def test_the_file_of_a_commit_in_doubt_stays_whatever_is_stored_meanwhile(settings, staging):
    """The server may end its COMMIT long after the connection broke: then there is a row, and here is its file."""
    service, ds = StorageService(settings, staging), ct()
    with commits_fail():
        assert refused(service, staging, ds).wire.dimse_c == 0xA702
    (doubtful,) = files(staging)
    list(service.handle(request(staging, ct())))
    assert doubtful in files(staging)
    assert recover(settings, staging).adopted == 1
    assert next(iter(service.handle(request(staging, ds)))).status == 0x0000
    assert sorted(files(staging)) == sorted(one.staged_key for one in rows(Instance))
    assert len(rows(Instance)) == 2


def test_a_commit_that_outlives_its_connection_finds_its_file(settings, staging):
    service, ds = StorageService(settings, staging), ct()
    if db.is_sqlite():
        return  # its COMMIT is in this process, and ends with it
    with slow_commits(ds.SOPInstanceUID):
        with hanging_up():
            assert refused(service, staging, ds).wire.dimse_c == 0xA702
        list(service.handle(request(staging, ct())))
        assert len(rows(Instance)) == 1  # the server is at the first one still
        assert eventually(lambda: len(rows(Instance)) == 2)
        assert next(iter(service.handle(request(staging, ds)))).status == 0x0000
        assert sorted(files(staging)) == sorted(one.staged_key for one in rows(Instance))


@contextlib.contextmanager
def slow_commits(sop_instance_uid: str) -> Iterator[None]:
    """The server takes a second for the COMMIT of that instance."""

    def execute(*statements: str) -> None:
        with db.engine().begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.sop_instance_uid = '{sop_instance_uid}' THEN PERFORM pg_sleep(1); END IF; RETURN NEW; END $$",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON instance DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    try:
        yield
    finally:
        execute("DROP TRIGGER slow ON instance", "DROP FUNCTION slow")


@contextlib.contextmanager
def hanging_up() -> Iterator[None]:
    """The network breaks while the server is at a COMMIT."""

    def soon(connection) -> None:
        wire = socket.socket(fileno=os.dup(connection.connection.dbapi_connection.fileno()))
        threading.Timer(0.2, wire.shutdown, [socket.SHUT_RDWR]).start()

    with commits_fail(soon):
        yield


def test_a_commit_that_was_refused_leaves_no_doubt_about_the_next_try(settings, staging, monkeypatch):
    real, tries = ingest.register, []

    def register(*args, **kwargs):
        tries.append(1)
        return real(*args, **kwargs) if len(tries) == 1 else broken()

    def locked(_connection) -> None:
        raise OperationalError("", {}, Exception("database is locked"))

    monkeypatch.setattr(ingest, "register", register)
    with commits_fail(locked):
        assert refused(StorageService(settings, staging), staging, ct()).wire.dimse_c == 0xA702
    assert len(tries) == 2
    assert files(staging) == []


def test_a_full_disk_of_sqlite_is_no_doubt(settings, staging):
    def full(_connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise OperationalError("", {}, error)

    with commits_fail(full):
        assert refused(StorageService(settings, staging), staging, ct()).wire.dimse_c == 0xA702
    assert files(staging) == []


@pytest.mark.parametrize("error", [DataError, IntegrityError, ProgrammingError, KeyError])
def test_what_the_database_will_never_take_is_answered_c000_and_put_aside(settings, staging, monkeypatch, error):
    """It would be refused at every repeat, and at every start."""

    def fail(*_args, **_kwargs):
        raise error("", {}, Exception("invalid")) if error is not KeyError else error("a bug")

    monkeypatch.setattr(ingest, "register", fail)
    assert refused(StorageService(settings, staging), staging, ct()).wire.dimse_c == 0xC000
    assert files(staging) == []
    assert len(list(staging.refused.iterdir())) == 1


def test_a_race_for_one_uid_that_is_lost_again_and_again_is_to_be_tried_later(settings, staging, monkeypatch):
    def lose(*_args, **_kwargs):
        raise IntegrityError("", {}, sqlite3.IntegrityError("UNIQUE constraint failed: instance.sop_instance_uid"))

    monkeypatch.setattr(ingest, "register", lose)
    assert refused(StorageService(settings, staging), staging, ct()).wire.dimse_c == 0xA700
    assert files(staging) == []


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian])
@pytest.mark.parametrize("where", ["staging", "archive"])
def test_a_copy_of_what_is_gone_takes_its_place_before_0000_is_said(settings, staging, where, transfer_syntax):
    ds = ct()
    first = send(settings, staging, ds).instance
    digest = canonical_digest(staging.path(first.staged_key).open("rb"), first.transfer_syntax_uid, settings.limits)
    change(Instance, first.key, canonical_digest=str(digest))
    staging.path(first.staged_key).unlink()
    if where == "archive":
        change(Instance, first.key, state="STORED", staged_key="", store_key="custody/1", store_sha256="0")
    assert not send(settings, staging, ds, transfer_syntax).duplicate
    (instance,) = rows(Instance)
    assert files(staging) == [instance.staged_key]
    assert (instance.pk, instance.store_key, instance.transfer_syntax_uid) == (first.pk, "", transfer_syntax)
    assert instance.state == ("HIDDEN" if where == "archive" else "STAGED")
    assert send(settings, staging, ds, transfer_syntax).duplicate


def test_bytes_that_went_to_the_archive_while_it_was_asked_are_not_taken_for_lost(settings, staging, monkeypatch):
    ds = ct()
    first = send(settings, staging, ds).instance
    path = staging.path(first.staged_key)
    real = intake._is_there

    def meanwhile(*args):
        if path.exists():
            make_store(settings).put("custody/1", path, sha256_of(path))
            path.unlink()
            change(Instance, first.key, store_key="custody/1", staged_key="")
        return real(*args)

    monkeypatch.setattr(intake, "_is_there", meanwhile)
    assert send(settings, staging, ds).duplicate
    assert rows(Instance)[0].store_key == "custody/1"
    assert files(staging) == []
