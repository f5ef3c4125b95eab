"""Each line of the crash table (durability.md 1.4), set up by hand and put right; a second time nothing is to be done."""

import errno
import os

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy.exc import DataError, OperationalError
from sqlmodel import Session, select

from broker import clock, config, db
from broker.archive import ingest, recovery
from broker.archive.intake import accept
from broker.archive.recovery import recover
from broker.archive.staging import Staging
from broker.errors import NoRoom
from broker.model.images import Instance, Study
from broker.model.work import AuditEvent
from tests.objects import ct, stage

NOTHING = {"swept": 0, "adopted": 0, "copies": 0, "unreadable": 0, "missing": 0, "left": 0}


@pytest.fixture
def staging(database, settings) -> Staging:
    return Staging(settings)


def instances() -> list[Instance]:
    return db.read(lambda session: list(session.exec(select(Instance).order_by(Instance.pk)).all()))  # type: ignore[arg-type]


def last_action() -> str:
    return db.read(lambda session: session.exec(select(AuditEvent.action).order_by(AuditEvent.pk.desc())).first())


def register(settings: config.Settings, staging: Staging, ds) -> Instance:
    instance = accept(settings, staging, stage(staging, ds), now=clock.now()).instance
    assert instance is not None
    return instance


def recovered(settings: config.Settings, staging: Staging, **expected: int) -> None:
    """It finds just that, and nothing a second time."""
    assert recover(settings, staging).counts() == NOTHING | expected
    assert recover(settings, staging).counts() == NOTHING


def test_what_was_never_whole_is_swept(settings, staging):
    for name in ("a.part", "b.part"):
        (staging.incoming / name).write_bytes(b"half an object")
    recovered(settings, staging, swept=2)
    assert list(staging.incoming.iterdir()) == []


def test_an_object_with_its_row_stays_as_it_is(settings, staging):
    instance = register(settings, staging, ct())
    recovered(settings, staging)
    assert list(staging.keys()) == [instance.staged_key]
    assert instances() == [instance]


@pytest.mark.parametrize("transfer_syntax", ["1.2.840.10008.1.2.1", ImplicitVRLittleEndian])
def test_a_whole_object_without_a_row_is_adopted(settings, staging, transfer_syntax):
    ds = ct()
    staged = stage(staging, ds, transfer_syntax)
    recovered(settings, staging, adopted=1)
    (instance,) = instances()
    assert (instance.sop_instance_uid, instance.sha256, instance.size) == (
        ds.SOPInstanceUID, staged.sha256, staged.size,
    )  # fmt: skip
    assert (instance.state, instance.staged_key, instance.source_ae) == ("STAGED", staged.key, "CT1")
    assert instance.transfer_syntax_uid == transfer_syntax
    assert instance.facts == staged.header.facts
    assert last_action() == "instance.adopt"
    assert db.read(lambda session: session.exec(select(Study.state)).all()) == ["RECEIVING"]


def test_the_copy_that_a_crash_left_of_a_known_object_is_removed(settings, staging):
    ds = ct()
    instance = register(settings, staging, ds)
    stage(staging, ds)
    recovered(settings, staging, copies=1)
    assert list(staging.keys()) == [instance.staged_key]


def test_an_orphan_with_a_known_uid_and_other_bytes_is_kept_beside(settings, staging):
    ds = ct()
    first = register(settings, staging, ds)
    ds.PixelData = bytes(32)
    stage(staging, ds)
    recovered(settings, staging, adopted=1)
    assert [one.conflict_of for one in instances()] == [None, first.pk]
    assert len(list(staging.keys())) == 2


def test_an_orphan_that_cannot_be_read_is_put_aside_not_deleted(settings, staging):
    staged = stage(staging, ct())
    path = staging.path(staged.key)
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    recovered(settings, staging, unreadable=1)
    assert [path.read_bytes() for path in staging.refused.iterdir()] == [damaged]
    assert instances() == []


def test_a_row_whose_file_is_gone_is_marked_and_audited_never_hidden(settings, staging):
    kept, lost = register(settings, staging, ct()), register(settings, staging, ct())
    staging.path(lost.staged_key).unlink()
    recovered(settings, staging, missing=1)
    assert [(one.pk, one.missing) for one in instances()] == [(kept.pk, False), (lost.pk, True)]
    assert last_action() == "instance.missing"


def test_an_orphan_that_is_the_missing_file_of_a_row_heals_it(settings, staging):
    ds = ct()
    lost = register(settings, staging, ds)
    staging.path(lost.staged_key).rename(staging.root / "elsewhere")
    stage(staging, ds)
    recovered(settings, staging, missing=1, adopted=1)
    (instance,) = instances()
    assert not instance.missing
    assert list(staging.keys()) == [instance.staged_key]


@pytest.mark.parametrize("field", ["store_key", "staged_node"])
def test_bytes_in_the_archive_or_on_another_node_are_not_missed_here(settings, staging, field):
    instance = register(settings, staging, ct())
    staging.path(instance.staged_key).unlink()

    def move(session: Session) -> None:
        row = session.get_one(Instance, instance.key)
        setattr(row, field, "elsewhere")
        session.add(row)

    db.run(move)
    recovered(settings, staging)


def test_more_orphans_than_a_batch_are_all_adopted(settings, staging, monkeypatch):
    monkeypatch.setattr("broker.archive.recovery.BATCH", 2)
    for _ in range(5):
        stage(staging, ct())
    recovered(settings, staging, adopted=5)
    assert len(instances()) == 5


@pytest.mark.filterwarnings("ignore")
def test_an_orphan_with_a_nul_inside_a_text_is_adopted_like_any_other(settings, staging):
    stage(staging, ct(Modality="C\0TX", PatientID="1\x002"))
    recovered(settings, staging, adopted=1)
    assert instances()[0].facts["undecodable"] == ["modality", "patient_id"]


def poison(ds, error):
    """`ingest.register` as it is, but for that object."""
    real = ingest.register

    def register(session, staged, **how):
        if staged.header.sop_instance_uid == ds.SOPInstanceUID:
            raise error
        return real(session, staged, **how)

    return register


@pytest.mark.parametrize(
    "error",
    [
        DataError("", {}, Exception("NUL")),
        OperationalError("", {}, Exception("lock timeout")),
        NoRoom("(0008,0018)"),
        OSError(errno.EIO, "Input/output error"),
        KeyError("a bug"),
    ],
    ids=["never taken", "locked", "no room", "cannot be read", "a bug"],
)
def test_an_orphan_that_cannot_be_adopted_stays_and_stops_neither_the_others_nor_the_start(
    settings, staging, monkeypatch, error
):
    orphans = [ct() for _ in range(3)]
    keys = [stage(staging, ds).key for ds in orphans]
    with monkeypatch.context() as bad:
        bad.setattr(ingest, "register", poison(orphans[1], error))
        for adopted in (2, 0):
            assert recover(settings, staging).counts() == NOTHING | {"adopted": adopted, "left": 1}
        assert sorted(staging.keys()) == sorted(keys)
    recovered(settings, staging, adopted=1)


def test_an_orphan_that_the_disk_does_not_give_back_stays(settings, staging, monkeypatch):
    stage(staging, ct())

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as bad:
        bad.setattr(recovery, "read_header", fail)
        assert recover(settings, staging).counts() == NOTHING | {"left": 1}
    recovered(settings, staging, adopted=1)


def test_without_a_database_there_is_no_start_and_every_orphan_stays(settings, staging, monkeypatch):
    keys = [stage(staging, ct()).key for _ in range(3)]
    asked = []

    def away(*_args, **_kwargs):
        asked.append(1)
        raise OperationalError("", {}, Exception("connection refused"))

    monkeypatch.setattr(ingest, "register", away)
    monkeypatch.setattr(ingest, "with_row", lambda session, keys: set() if len(keys) > 1 else away())
    with pytest.raises(OperationalError):
        recover(settings, staging)
    assert len(asked) == 2  # once for the first orphan, once whether it is away altogether
    assert sorted(staging.keys()) == sorted(keys)


def test_what_cannot_be_swept_is_left(settings, staging):
    (staging.incoming / "folder.part").mkdir()
    stage(staging, ct())
    assert recover(settings, staging).counts() == NOTHING | {"adopted": 1, "left": 1}


@pytest.mark.parametrize("now", [{"store_key": "custody/1"}, {"staged_key": "ab/cd/another.dcm"}, {}])
def test_a_row_is_looked_at_again_before_it_is_marked(settings, staging, now):
    instance = register(settings, staging, ct())

    def change(session: Session) -> None:
        session.add(session.get_one(Instance, instance.key).sqlmodel_update(now))

    db.run(change)
    gone = {instance.key: instance.staged_key}
    assert db.run(recovery._mark_missing, gone, lambda key: bool(now), now=clock.now()) == []
    assert not instances()[0].missing


def test_a_file_that_cannot_be_looked_at_is_not_missed(settings, staging, monkeypatch):
    instance = register(settings, staging, ct())
    path, real = staging.path(instance.staged_key), os.stat

    def fail(what, *args, **kwargs):
        if what == path:
            raise OSError(errno.EIO, "Input/output error")
        return real(what, *args, **kwargs)

    monkeypatch.setattr(os, "stat", fail)
    assert recover(settings, staging).counts() == NOTHING


def test_an_orphan_of_last_year_that_cannot_be_read_is_kept_as_long_as_any_other(settings, staging):
    path = staging.path(stage(staging, ct()).key)
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, (0, 0))
    recovered(settings, staging, unreadable=1)
    assert len(list(staging.refused.iterdir())) == 1
