"""Killed at every single durable effect, restarted: nothing acknowledged is missing, nothing is there twice."""

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import select

from broker import clock, config, db
from broker.archive.intake import accept
from broker.archive.recovery import recover
from broker.archive.staging import Staging
from broker.model.images import Instance
from tests.crash.points import every_crash
from tests.objects import ct, encoded, stage


@pytest.fixture
def houses(database_url: str, tmp_path: Path) -> Iterator[config.Settings]:
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
    """SHA-256 of every staged data set: what follows the File Meta."""
    found = []
    for key in staging.keys():  # noqa: SIM118  it is no dict
        whole = staging.path(key).read_bytes()
        found.append(hashlib.sha256(whole[144 + int.from_bytes(whole[140:144], "little") :]).hexdigest())
    return sorted(found)


def test_a_kill_anywhere_while_objects_are_stored_loses_and_doubles_nothing(houses, database_url):
    """STO-16, durability.md A1: an object, the same again, another one with its UID."""
    crashes = 0
    world: dict = {}

    def scenario(answer) -> None:
        settings = world["settings"]
        db.open_engine(database_url)
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
        db.open_engine(database_url)
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
        db.close_engine()
        crashes += not run.ended
        prepare()
    assert run.answered == [hash_of(ds) for ds in sent]
    assert crashes > 40


def test_a_kill_anywhere_in_the_recovery_itself_is_harmless(houses, database_url):
    """An orphan, a copy, a half object, a damaged one, a row without its file: the next recovery finds the rest."""
    world: dict = {}

    def prepare() -> None:
        settings = next(houses)
        db.open_engine(database_url)
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
        db.close_engine()
        world.update(settings=settings, known=known, orphan=orphan, lost=lost)

    def scenario(_answer) -> None:
        db.open_engine(database_url)
        recover(world["settings"], Staging(world["settings"]))

    prepare()
    for run in every_crash(scenario):
        db.open_engine(database_url)
        staging = Staging(world["settings"])
        recover(world["settings"], staging)
        assert hashes_on_disk(staging) == sorted(hash_of(world[name]) for name in ("known", "orphan"))
        assert [one.missing for one in instances(world["lost"].SOPInstanceUID)] == [True]
        assert [len(instances(world[name].SOPInstanceUID)) for name in ("known", "orphan")] == [1, 1]
        assert list(staging.incoming.iterdir()) == []
        assert len(list(staging.refused.iterdir())) == 1
        db.close_engine()
        if not run.ended:
            prepare()
    assert run.k > 5
