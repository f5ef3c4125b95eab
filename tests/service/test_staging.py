"""Received bytes become durable, or leave nothing: on real volumes that are full, read-only or failing."""

import errno
import hashlib
import os
import time

import pydicom
import pytest
import structlog.testing

from broker import config
from broker.archive import staging as staging_module
from broker.archive.staging import Staging
from broker.dicom.service import C_STORE_RQ, Command, Peer
from broker.errors import NoRoom, OtherInstance, Unreadable
from tests.objects import PEER, ct, encoded, stage
from tests.volumes import small_volume

MEGABYTE = 1024 * 1024


@pytest.fixture
def settings(tmp_path) -> config.Settings:
    settings = config.Settings(data_dir=tmp_path / "data")
    settings.limits.staging_free_bytes_min = 0
    return settings


@pytest.fixture
def staging(settings) -> Staging:
    return Staging(settings)


def files(staging: Staging) -> list[str]:
    return sorted(str(path.relative_to(staging.root)) for path in staging.root.rglob("*") if path.is_file())


def open_sink(staging: Staging, ds):
    return staging.open_sink(PEER, Command(C_STORE_RQ, 1, ds.SOPClassUID, ds.SOPInstanceUID), "1.2.840.10008.1.2.1")


def test_an_object_becomes_one_file_with_our_own_meta_around_the_bytes_as_received(staging):
    ds = ct()
    data = encoded(ds)
    staged = stage(staging, ds)
    assert files(staging) == [staged.key]
    assert (staged.sha256, staged.size) == (hashlib.sha256(data).hexdigest(), len(data))
    whole = staging.path(staged.key).read_bytes()
    assert whole.startswith(bytes(128) + b"DICM")  # security V16
    assert whole.endswith(data)
    meta = pydicom.dcmread(staging.path(staged.key)).file_meta
    assert (meta.MediaStorageSOPInstanceUID, meta.SourceApplicationEntityTitle) == (ds.SOPInstanceUID, "CT1")
    assert meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_file_then_name_then_folders_are_made_durable_in_that_order(staging, monkeypatch):
    """durability.md 1.4, steps 3 and 5."""
    done = []
    fsync, rename = os.fsync, staging_module.Path.rename

    def note_fsync(descriptor):
        done.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(staging.root)))
        fsync(descriptor)

    def note_rename(path, target):
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(staging_module.Path, "rename", note_rename)
    staged = stage(staging, ct())
    outer, inner, _ = staged.key.split("/")
    assert done[0].startswith("fsync /in/")
    assert done[1:] == ["rename", f"fsync /{outer}/{inner}", f"fsync /{outer}", "fsync "]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a\0b", "CON", "x" * 16])
def test_no_string_of_a_peer_is_in_any_path(staging, name):
    """security V2"""
    command = Command(C_STORE_RQ, 1, name, name)
    sink = staging.open_sink(Peer(name, name, name, name), command, "1.2.840.10008.1.2.1")
    (path,) = files(staging)
    assert path.startswith("in/")
    assert name not in path
    sink.write(memoryview(encoded(ct())))
    with pytest.raises(Exception, match="0008"):
        sink.finish()
    assert all(path.startswith("refused/") and name not in path for path in files(staging))


def test_an_object_that_breaks_off_leaves_nothing(staging):
    sink = open_sink(staging, ct())
    sink.write(memoryview(b"beginning"))
    sink.abort()
    sink.abort()
    assert files(staging) == []


def test_a_corrupt_object_is_refused_and_kept_aside_for_a_while(staging, settings):
    ds = ct()
    data = encoded(ds)[:-1]
    with pytest.raises(Unreadable):
        stage(staging, ds, data=data)
    (path,) = files(staging)
    assert path.startswith("refused/")
    assert (staging.root / path).read_bytes().endswith(data)
    week_ago = time.time() - settings.limits.refused_keep_seconds - 1
    os.utime(staging.root / path, (week_ago, week_ago))
    staging.prune_refused()
    assert files(staging) == []


def test_another_instance_than_the_command_says_is_refused(staging):
    """STO-02"""
    ds = ct()
    sink = open_sink(staging, ct())
    sink.write(memoryview(encoded(ds)))
    with pytest.raises(OtherInstance):
        sink.finish()
    assert [path.split("/")[0] for path in files(staging)] == ["refused"]


@pytest.mark.parametrize("limit", [{"refused_objects_max": 3}, {"refused_bytes_max": 4000}])
def test_what_is_kept_of_refused_objects_is_bounded_and_the_oldest_goes_first(staging, settings, limit):
    for name, value in limit.items():
        setattr(settings.limits, name, value)
    kept = []
    for number in range(6):
        with pytest.raises(Unreadable):
            stage(staging, ct(), data=b"\0" * 700)
        (newest,) = set(files(staging)) - set(kept)
        os.utime(staging.root / newest, (number + time.time() - 60, number + time.time() - 60))
        kept = files(staging)
    assert newest in kept
    assert len(kept) <= 4


def test_an_object_over_the_limit_is_refused_while_it_comes(staging, settings):
    settings.limits.dicom_object_bytes_max = 1000
    sink = open_sink(staging, ct())
    sink.write(memoryview(bytes(1000)))
    with pytest.raises(Unreadable, match="dicom_object_bytes_max"):
        sink.write(memoryview(b"x"))
    assert files(staging) == []


def test_a_full_volume_is_told_and_nothing_is_left_of_the_object(tmp_path, settings):
    settings.limits.staging_probe_seconds = 0
    with small_volume(tmp_path / "data", 4):
        staging = Staging(settings)
        before = stage(staging, ct())
        sink = open_sink(staging, ct())
        with pytest.raises(NoRoom) as refused:
            for _ in range(8):
                sink.write(memoryview(bytes(MEGABYTE)))
        assert refused.value.wire.dimse_c == 0xA700
        assert files(staging) == [before.key]
        after = stage(staging, ct())  # the room is back, and so is the service, without a restart
        assert files(staging) == sorted([before.key, after.key])


def test_a_volume_that_went_away_refuses_until_it_is_back(staging, settings):
    settings.limits.staging_probe_seconds = 0
    aside = staging.root.with_name("unplugged")
    staging.root.rename(aside)
    for _ in range(2):
        with pytest.raises(NoRoom):
            open_sink(staging, ct())
    aside.rename(staging.root)
    assert stage(staging, ct())


def test_a_failed_fsync_refuses_the_object_and_is_never_tried_again(staging, settings, monkeypatch):
    """durability.md 1.1: the kernel may have dropped the pages, and a second fsync would say yes."""
    tried = []

    def fail(descriptor):
        tried.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NoRoom):
        stage(staging, ct())
    assert len(tried) == 1
    assert files(staging) == []
    with pytest.raises(NoRoom):  # bad until a probe works, and none is due yet
        open_sink(staging, ct())
    assert len(tried) == 1
    settings.limits.staging_probe_seconds = 0
    with pytest.raises(NoRoom):  # the probe fails as well
        open_sink(staging, ct())
    assert len(tried) == len(set(tried)) == 2
    assert files(staging) == []
    monkeypatch.undo()
    assert stage(staging, ct())


@pytest.mark.parametrize("effect", ["folder fsync", "rename", "mkdir"])
def test_a_failure_while_the_file_gets_its_name_leaves_nothing(staging, settings, monkeypatch, effect):
    def fail(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error")

    if effect == "folder fsync":
        monkeypatch.setattr(staging_module, "sync_folder", fail)
    else:
        monkeypatch.setattr(staging_module.Path, effect, fail)
    with pytest.raises(NoRoom):
        stage(staging, ct())
    monkeypatch.undo()
    assert files(staging) == []


def test_below_the_reserve_nothing_is_taken_not_even_the_rest_of_an_object(tmp_path, settings):
    settings.limits.staging_free_bytes_min = 20 * MEGABYTE
    with small_volume(tmp_path / "data", 48):
        staging = Staging(settings)
        sink = open_sink(staging, ct())
        with pytest.raises(NoRoom):
            for _ in range(40):
                sink.write(memoryview(bytes(MEGABYTE)))
        assert files(staging) == []
        settings.limits.staging_free_bytes_min = 1024**5
        with pytest.raises(NoRoom, match="reserve"):
            open_sink(staging, ct())


def test_the_reserve_grows_with_the_largest_object_seen(staging, settings, monkeypatch):
    settings.limits.staging_free_bytes_min = None
    monkeypatch.setattr(staging.volume, "_space", lambda: (1000 * MEGABYTE, 100 * MEGABYTE))
    open_sink(staging, ct()).abort()
    staging.volume.saw(51 * MEGABYTE)
    with pytest.raises(NoRoom):
        open_sink(staging, ct())


def test_little_room_is_logged_once_a_minute(staging, monkeypatch):
    monkeypatch.setattr(staging.volume, "_space", lambda: (1000, 149))
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            open_sink(staging, ct()).abort()
    assert [line["event"] for line in logs] == ["staging.low"]


def test_a_node_keeps_its_name_over_restarts(settings):
    assert Staging(settings).node == Staging(settings).node != ""


def test_a_file_that_somebody_took_away_is_no_failure_of_the_volume(staging):
    sink = open_sink(staging, ct())
    sink.write(memoryview(b"beginning"))
    for part in staging.incoming.iterdir():
        part.unlink()
    with pytest.raises(NoRoom):
        sink.finish()
    assert files(staging) == []
    assert stage(staging, ct())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_descriptor_left_is_no_failure_of_the_volume(staging, monkeypatch, number):
    def fail(*_args, **_kwargs):
        raise OSError(number, "Too many open files")

    with monkeypatch.context() as full:
        full.setattr(os, "open", fail)
        with pytest.raises(NoRoom):
            open_sink(staging, ct())
    assert stage(staging, ct())


def test_what_cannot_be_removed_is_left_to_the_next_start(staging):
    (staging.root / "folder.dcm").mkdir()
    with structlog.testing.capture_logs() as logs:
        staging.remove("folder.dcm")
    assert [line["event"] for line in logs] == ["staging.not_removed"]
