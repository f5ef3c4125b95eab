"""From a staged file to rows, on both databases: once, whatever comes how often, in which order, at the same time."""

import hashlib
import threading

import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, SQLModel, select

from broker import clock, db, outbox
from broker.archive import ingest
from broker.archive.intake import accept
from broker.archive.scp import StorageService
from broker.archive.staging import Staging
from broker.archive.store import make_store
from broker.dicom.service import C_STORE_RQ, Command, Request
from broker.errors import DatabaseAway
from broker.model.images import Instance, Series, Study
from broker.model.work import AuditEvent
from broker.states import STUDY, advance
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


def test_while_the_database_is_away_the_answer_is_a702_and_no_file_stays_behind(settings, staging, monkeypatch):
    service = StorageService(settings, staging)
    real = ingest.register

    def away(*_args, **_kwargs):
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(ingest, "register", away)
    with pytest.raises(DatabaseAway) as refused:
        list(service.handle(request(staging, ct())))
    assert refused.value.wire.dimse_c == 0xA702
    assert len(files(staging)) == 1  # the commit may have worked: the file stays until the database can be asked
    monkeypatch.setattr(ingest, "register", real)
    (answer,) = service.handle(request(staging, ct()))
    assert answer.status == 0x0000
    assert files(staging) == [rows(Instance)[0].staged_key]


def test_a_commit_whose_answer_was_lost_keeps_its_file(settings, staging, monkeypatch):
    service = StorageService(settings, staging)
    real = db.run

    def lose_the_answer(fn, *args, **kwargs):
        real(fn, *args, **kwargs)
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    ds = ct()
    monkeypatch.setattr(db, "run", lose_the_answer)
    with pytest.raises(DatabaseAway):
        list(service.handle(request(staging, ds)))
    monkeypatch.setattr(db, "run", real)
    for _ in range(2):
        (answer,) = service.handle(request(staging, ds))
        assert answer.status == 0x0000
    assert files(staging) == [one.staged_key for one in rows(Instance)]
