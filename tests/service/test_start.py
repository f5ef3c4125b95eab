"""The start of the broker: what a crash left is put right before a port opens, and the data folder is one process's."""

import contextlib
from collections.abc import Iterator

import pytest

from broker import config, db, leases
from broker.archive.staging import Staging
from broker.errors import ConfigError
from broker.model.images import Instance
from broker.ris_bridge.crashes import CRASHES, FOLDER, Crashes
from broker.serve import Broker
from tests import commands
from tests.house import House
from tests.objects import ct, stage


@contextlib.contextmanager
def running(settings: config.Settings, *roles: str) -> Iterator[Broker]:
    broker = Broker(settings, roles)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def test_what_a_crash_left_is_put_right_before_a_port_opens(settings, monkeypatch):
    orphan, there = stage(Staging(settings), ct()), []
    house = House(settings)
    monkeypatch.setattr(Broker, "_start_dicom", lambda _: there.extend(house.rows(Instance)))
    with running(settings, "dicom"):
        assert [one.staged_key for one in there] == [orphan.key]


@pytest.mark.parametrize("role", ["dicom", "jobs"])
def test_a_second_broker_on_the_same_data_folder_is_refused_and_touches_nothing(settings, role):
    """It would sweep what the first one is just receiving."""
    with running(settings, role):
        engine = db.engine()
        part = Staging(settings).incoming / "half.part"
        part.write_bytes(b"half an object")
        for other in (["dicom"], ["jobs", "web"]):
            with pytest.raises(ConfigError, match="is in use by another broker") as refused:
                Broker(settings, other).start()
            assert str(settings.data_dir.resolve()) in str(refused.value)
            assert leases.OWNER in str(refused.value)
        assert part.exists()
        assert db.engine() is engine
    with running(settings, role):
        assert not part.exists()


def test_a_broker_without_images_runs_beside_and_touches_nothing(settings):
    part = Staging(settings).incoming / "half.part"
    part.write_bytes(b"half an object")
    leave = leases.hold_folder(settings.data_dir)
    with running(settings, "web", "hl7") as beside:
        assert set(beside.ports) == {"http", "hl7"}
    leave()
    assert part.exists()


def test_a_clean_stop_leaves_no_message_in_work(settings):
    with running(settings, "hl7"), CRASHES.watch("00" * 32):
        assert len(list((settings.data_dir / FOLDER).iterdir())) == 1
    assert list((settings.data_dir / FOLDER).iterdir()) == []


def test_a_message_is_parked_at_the_start_after_the_third_death(settings):
    digest = "5a" * 32
    for _ in range(settings.limits.message_deaths_max):
        with running(settings, "hl7"):
            assert not CRASHES.is_poison(digest)
        killed = Crashes()
        killed.open(settings.data_dir, 3)
        killed._work.note(bytes.fromhex(digest))
        del killed  # its file stays, and is nobody's
    with running(settings, "hl7", "web"):
        assert CRASHES.is_poison(digest)
    assert not CRASHES.is_poison(digest)


def test_the_person_who_starts_it_twice_reads_one_line(settings, database_url, tmp_path):
    with running(settings, "jobs"):
        environment = commands.environment(database_url, settings.data_dir)
        second = commands.begin(["serve"], environment, tmp_path)
        second.join(30)
    assert second.exitcode == 1
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith(f"broker: data_dir: {settings.data_dir.resolve()} is in use by another broker (")
    assert line.endswith("stop that one, or set BROKER_DATA_DIR")
