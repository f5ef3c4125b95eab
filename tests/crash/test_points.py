"""Killed at every single durable effect, restarted: nothing acknowledged is missing, nothing is there twice."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import Session, SQLModel, select

from broker import clock, config, db, ids
from broker.archive import commit, rendition, status
from broker.archive.intake import accept
from broker.archive.recovery import recover
from broker.archive.staging import Staging
from broker.model.images import Instance, Study
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.status import OrderStatus
from broker.ris_bridge.hl7 import road
from broker.sim.ris import code_of, omi
from tests.crash.points import every_crash
from tests.objects import ct, encoded, stage
from tests.service.exam import Exams
from tests.world import order


@pytest.fixture
def houses(database: None, database_url: str, tmp_path: Path) -> Iterator[config.Settings]:
    """Settings of one house after the other: a data folder each, one database."""

    def build() -> Iterator[config.Settings]:
        for number in itertools.count():
            settings = config.Settings(data_dir=tmp_path / f"house{number}", database_url=database_url)
            settings.limits.staging_free_bytes_min = 0
            yield settings

    return build()


def store(settings: config.Settings, staging: Staging, ds) -> None:
    accept(settings, staging, stage(staging, ds), now=clock.now())


def instances(uid: str) -> list[Instance]:
    return db.read(lambda session: list(session.exec(select(Instance).where(Instance.sop_instance_uid == uid)).all()))


def hash_of(ds) -> str:
    return hashlib.sha256(encoded(ds)).hexdigest()


def hashes_on_disk(staging: Staging) -> list[str]:
    """SHA-256 of every staged data set."""
    return sorted(hash_in(staging.path(key)) for key in staging.keys())  # noqa: SIM118  it is no dict


def test_a_kill_anywhere_while_objects_are_stored_loses_and_doubles_nothing(houses):
    """STO-16, durability.md A1: an object, the same again, another one with its UID."""
    crashes = 0
    world: dict = {}

    def scenario(answer) -> None:
        settings = world["settings"]
        staging = Staging(settings)
        for ds in world["sent"]:
            store(settings, staging, ds)
            answer(hash_of(ds))

    def prepare() -> None:
        first = ct()
        other = ct(**{k: getattr(first, k) for k in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")})
        other.PixelData = bytes(32)
        world.update(settings=next(houses), sent=[first, first, other], uid=first.SOPInstanceUID)

    prepare()
    for run in every_crash(scenario):
        settings, sent = world["settings"], world["sent"]
        staging = Staging(settings)
        recover(settings, staging)
        assert set(recover(settings, staging).counts().values()) == {0}
        rows = instances(world["uid"])
        assert set(run.answered) <= {one.sha256 for one in rows}, f"lost at effect {run.k}"
        assert sorted(one.sha256 for one in rows) == hashes_on_disk(staging), f"rows and files differ at {run.k}"
        assert len({one.sha256 for one in rows}) == len(rows), f"twice at effect {run.k}"
        assert list(staging.incoming.iterdir()) == []
        for ds in sent:  # the device sends again what it got no answer for
            store(settings, staging, ds)
        assert hashes_on_disk(staging) == sorted({hash_of(ds) for ds in sent})
        assert len(instances(world["uid"])) == 2
        crashes += not run.ended
        prepare()
    assert run.answered == [hash_of(ds) for ds in sent]
    assert crashes > 40


def test_a_kill_anywhere_in_the_recovery_itself_is_harmless(houses):
    """An orphan, a copy, a half object, a damaged one, a row without its file: the next recovery finds the rest."""
    world: dict = {}

    def prepare() -> None:
        settings = next(houses)
        staging = Staging(settings)
        known, orphan, lost = ct(), ct(), ct()
        store(settings, staging, known)
        store(settings, staging, lost)
        staging.path(instances(lost.SOPInstanceUID)[0].staged_key).unlink()
        stage(staging, known)
        stage(staging, orphan)
        damaged = staging.path(stage(staging, ct()).key)
        damaged.write_bytes(damaged.read_bytes()[:-1])
        (staging.incoming / "half.part").write_bytes(b"half")
        world.update(settings=settings, known=known, orphan=orphan, lost=lost)

    def scenario(_answer) -> None:
        recover(world["settings"], Staging(world["settings"]))

    prepare()
    for run in every_crash(scenario):
        staging = Staging(world["settings"])
        recover(world["settings"], staging)
        assert hashes_on_disk(staging) == sorted(hash_of(world[name]) for name in ("known", "orphan"))
        assert [one.missing for one in instances(world["lost"].SOPInstanceUID)] == [True]
        assert [len(instances(world[name].SOPInstanceUID)) for name in ("known", "orphan")] == [1, 1]
        assert list(staging.incoming.iterdir()) == []
        assert len(list(staging.refused.iterdir())) == 1
        if not run.ended:
            prepare()
    assert run.k > 5


def test_a_kill_anywhere_while_a_study_is_committed_leaves_it_in_the_archive_once(houses):
    """STO-16, durability.md A1: two images, each with the bytes as received and a coerced rendition."""
    world: dict = {}

    def prepare() -> None:
        settings = next(houses)
        settings.limits.archive_partial_seconds_max = 0
        exams = Exams(settings)
        accession = f"ACC{ids.short_id('')}"
        study = exams.receive(exams.uid(accession), AccessionNumber=accession, PatientName="YAMADA^TAROU=山田^太郎")
        exams.accept(study, exams.place(accession))
        world.update(exams=exams, study=study)

    def scenario(_answer) -> None:
        commit.work(world["exams"].settings)

    prepare()
    for run in every_crash(scenario):
        exams, study = world["exams"], world["study"]
        for one in exams.instances(study):
            if one.state == "STORED":
                assert hash_in(exams.archive() / one.store_key) == one.sha256, f"not in the archive at effect {run.k}"
            else:
                assert hash_in(exams.settings.staging_dir / one.staged_key) == one.sha256, f"lost at effect {run.k}"
        found = recover(exams.settings, exams.staging).counts()
        assert found == dict.fromkeys(found, 0) | {"swept": found["swept"]}, f"recovery had to mend {found}"
        exams.set(Study, study, lease_until=None, not_before=None)  # the lease of the dead has run out
        commit.work(exams.settings)
        assert exams.states(study) == ("ARCHIVED", ["STORED", "STORED"]), f"not stored at effect {run.k}"
        rows = exams.instances(study)
        for one in rows:
            assert hash_in(exams.archive() / one.store_key) == one.sha256
            for key, sha256 in ((one.store_key, one.store_sha256), (one.rendition_key, one.rendition_sha256)):
                assert hashlib.sha256((exams.archive() / key).read_bytes()).hexdigest() == sha256
        kept = {str(path.relative_to(exams.archive())) for path in exams.archive().rglob("*") if path.is_file()}
        assert kept == {key for one in rows for key in (one.store_key, one.rendition_key)}, f"more at effect {run.k}"
        assert len(kept) == 4
        assert exams.staged_files() == []
        assert [one.staged_key for one in rows] == ["", ""]
        if not run.ended:
            prepare()
    assert run.k > 60


def test_a_kill_anywhere_while_an_order_is_received_makes_it_once(houses):
    """durability.md A1: the RIS sends again what got no answer."""
    world: dict = {}

    def receive() -> bytes:
        answer = road.receive(world["raw"], "127.0.0.1", world["settings"])
        assert answer is not None
        return answer.raw

    def scenario(answer) -> None:
        answer(receive().hex())

    def prepare() -> None:
        accession = f"ACC{ids.short_id('')}"
        world.update(settings=next(houses), accession=accession, raw=omi(order(accession)))
        status.configure(world["settings"])
        db.on_finish(status.publish)

    prepare()
    for run in every_crash(scenario):
        first = [row.answer for row in rows_of(Message, raw=world["raw"])]
        if run.answered:
            assert first == [bytes.fromhex(run.answered[0])], f"lost at effect {run.k}"
        again = receive()
        assert code_of(again) == "AA"
        assert not first or first == [again]
        assert len(rows_of(Message, raw=world["raw"])) == 1
        (placed,) = rows_of(ImagingOrder, accession_number=world["accession"])
        for table in (RequestedProcedure, ScheduledStep, OrderStatus):
            assert len(rows_of(table, order_pk=placed.key)) == 1, f"{table.__name__} at effect {run.k}"
        if not run.ended:
            prepare()
    assert run.answered
    assert run.k > 2


def rows_of(table: type[SQLModel], **where: object) -> list:
    def fetch(session: Session) -> list:
        return list(session.exec(select(table).filter_by(**where)).all())

    return db.read(fetch)


def hash_in(path: Path) -> str:
    """SHA-256 of the data set in a file of ours."""
    with path.open("rb") as file:
        return rendition.digests(file)[0]
