"""The archive's files: written once, whole, verified, and never overwritten."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from broker.archive import store
from broker.archive.store import LocalStore, custody_key, make_store, rendition_key
from broker.config import Settings
from broker.errors import ConfigError, DuplicateKey, UnknownKey, Unreadable

CONTENT = os.urandom(3 * 1024 * 1024 + 17)
SHA = hashlib.sha256(CONTENT).hexdigest()
KEY = custody_key(1, SHA)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.dcm"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "archive")


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "archive").rglob("*") if path.is_file()]


def test_what_is_put_can_be_opened_and_has_its_hash(archive, source, tmp_path):
    archive.put(KEY, source, SHA)
    assert archive.exists(KEY)
    assert archive.open(KEY).read() == CONTENT
    assert archive.sha256(KEY) == SHA
    assert files(tmp_path) == [tmp_path / "archive" / KEY]
    assert source.exists()


def test_file_then_name_then_folders_are_made_durable_and_then_it_is_read_again(archive, source, tmp_path, monkeypatch):
    """durability.md 1.4, step 8."""
    done = []
    root = tmp_path / "archive"
    fsync, link, read = os.fsync, os.link, store._hash_on_disk

    def note_fsync(descriptor):
        done.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))
        fsync(descriptor)

    def note_link(aside, target):
        done.append(f"link {target.relative_to(root)}")
        link(aside, target)

    def note_read(path):
        done.append(f"read {path.relative_to(root)}")
        return read(path)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    monkeypatch.setattr(store, "_hash_on_disk", note_read)
    archive.put(KEY, source, SHA)
    folders = [f"fsync /archive/{parent}" for parent in list(Path(KEY).parents)[:-1]]
    assert done[0].startswith("fsync /archive/in/")
    assert done[1:] == [f"link {KEY}", *folders, "fsync /archive", "fsync ", f"read {KEY}"]
    del done[:]
    archive.put(KEY, source, SHA)  # whoever wrote it may have been killed before its folders were durable
    assert done == [*folders, "fsync /archive", "fsync ", f"read {KEY}"]


def test_the_same_object_put_again_is_found_and_not_written_twice(archive, source, tmp_path):
    archive.put(KEY, source, SHA)
    before = files(tmp_path)[0].stat().st_ino
    source.unlink()
    archive.put(KEY, source, SHA)
    assert [path.stat().st_ino for path in files(tmp_path)] == [before]


def test_another_object_under_a_taken_key_is_refused_and_changes_nothing(archive, source, tmp_path):
    archive.put(KEY, source, SHA)
    other = tmp_path / "other.dcm"
    other.write_bytes(b"other")
    with pytest.raises(DuplicateKey):
        archive.put(KEY, other, hashlib.sha256(b"other").hexdigest())
    assert archive.sha256(KEY) == SHA


def test_a_source_that_is_not_what_it_should_be_leaves_nothing_behind(archive, source, tmp_path):
    source.write_bytes(CONTENT[:-1])
    with pytest.raises(Unreadable):
        archive.put(KEY, source, SHA)
    assert files(tmp_path) == []


def test_a_flipped_bit_in_the_archive_is_found_when_the_object_is_put_again(archive, source, tmp_path):
    archive.put(KEY, source, SHA)
    path = tmp_path / "archive" / KEY
    path.write_bytes(b"\x00" + CONTENT[1:])
    with pytest.raises(DuplicateKey):
        archive.put(KEY, source, SHA)


def test_a_failed_fsync_leaves_no_object(archive, source, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store.os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        archive.put(KEY, source, SHA)
    assert files(tmp_path) == []


def test_two_who_write_the_same_object_at_once_leave_one(archive, source, tmp_path, monkeypatch):
    link = os.link

    def another_was_quicker(aside: Path, target: Path) -> None:
        target.write_bytes(CONTENT)
        link(aside, target)

    monkeypatch.setattr(store.os, "link", another_was_quicker)
    archive.put(KEY, source, SHA)
    assert files(tmp_path) == [tmp_path / "archive" / KEY]


def test_half_copies_of_the_killed_are_swept_and_those_under_way_are_not(archive, source, tmp_path):
    archive.put(KEY, source, SHA)
    old, young = (tmp_path / "archive" / "in" / f"{name}.part" for name in ("old", "young"))
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    archive.sweep(3600)
    assert not old.exists()
    assert young.exists()


def test_half_copies_that_cannot_be_swept_stop_nobody(archive, tmp_path):
    stubborn = tmp_path / "archive" / "in" / "folder.part"
    stubborn.mkdir(parents=True)
    other = stubborn.with_name("half.part")
    other.write_bytes(b"half")
    archive.sweep(-1)
    assert stubborn.exists()
    assert not other.exists()


def test_what_is_not_there_is_told_by_its_key(archive):
    assert not archive.exists(KEY)
    with pytest.raises(UnknownKey, match=KEY):
        archive.open(KEY)


def test_keys_are_stable_and_tell_instances_and_rooms_apart():
    assert custody_key(1, SHA) == custody_key(1, SHA)
    assert len({custody_key(1, SHA), custody_key(2, SHA), rendition_key(1, SHA)}) == 3
    room, first, second, name = KEY.split("/")
    assert (room, first + second) == ("custody", name[:4])


def test_only_a_local_folder_can_be_the_archive(tmp_path):
    assert isinstance(make_store(Settings(data_dir=tmp_path / "with space")), LocalStore)
    for url in ("s3://bucket/prefix", "file://other-host/folder", "/plain/path"):
        with pytest.raises(ConfigError, match="file:///"):
            make_store(Settings(data_dir=tmp_path, archive_url=url))
