"""A message that takes the process with it is parked; one that merely was in work at a death is not."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.ris_bridge import crashes
from broker.ris_bridge.crashes import COUNTED_MAX, SLOTS, Crashes

DEATHS_MAX = 3
POISON, GOOD = (hashlib.sha256(one).hexdigest() for one in (b"poison", b"good"))

HELD: list[contextlib.AbstractContextManager[None]] = []  # a watch that nobody holds has ended


def dying(work: Callable[[], object]) -> None:
    """A process that does this and is killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def killed_at(data_dir: Path, *digests: str) -> None:
    """A process that dies while it has these in work."""

    def work() -> None:
        mine, _ = started(data_dir)
        HELD.extend(mine.watch(one) for one in digests)
        for one in HELD:
            one.__enter__()

    dying(work)


def started(data_dir: Path) -> tuple[Crashes, Callable[[], None]]:
    mine = Crashes()
    return mine, mine.open(data_dir, DEATHS_MAX)


def is_poison(data_dir: Path, digest: str) -> bool:
    mine, close = started(data_dir)
    close()
    mine, close = started(data_dir)
    found = mine.is_poison(digest)
    close()
    return found


def files(data_dir: Path) -> list[str]:
    return sorted(path.name for path in (data_dir / crashes.FOLDER).iterdir())


def test_what_was_in_work_at_three_deaths_is_poison(tmp_path):
    for deaths in range(1, DEATHS_MAX + 1):
        killed_at(tmp_path, POISON)
        assert is_poison(tmp_path, POISON) == (deaths == DEATHS_MAX)
    assert not is_poison(tmp_path, GOOD)


def test_a_clean_stop_leaves_nothing(tmp_path):
    mine, close = started(tmp_path)
    with mine.watch(GOOD):
        close()  # while it is still in work
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [None, ValueError])
def test_what_is_answered_or_raises_is_in_work_no_more(tmp_path, error):
    def work() -> None:
        mine, _ = started(tmp_path)
        with contextlib.suppress(ValueError), mine.watch(GOOD):
            if error:
                raise error

    dying(work)
    started(tmp_path)[1]()
    assert files(tmp_path) == []


@pytest.mark.parametrize("error", [None, ValueError])
def test_deaths_count_without_an_end_between_them(tmp_path, error):
    """Innocent messages are in work, too, when the process dies; they come again and end."""
    for _ in range(DEATHS_MAX):
        killed_at(tmp_path, POISON, GOOD)
        mine, close = started(tmp_path)
        with contextlib.suppress(ValueError), mine.watch(GOOD):
            if error:
                raise error
        close()
    assert is_poison(tmp_path, POISON)
    assert not is_poison(tmp_path, GOOD)
    assert POISON in (tmp_path / crashes.FOLDER / crashes.COUNTS).read_text()
    assert GOOD not in (tmp_path / crashes.FOLDER / crashes.COUNTS).read_text()


def test_a_poison_is_forgotten_when_a_person_has_had_it_looked_at(tmp_path):
    for _ in range(DEATHS_MAX):
        killed_at(tmp_path, POISON)
    mine, close = started(tmp_path)
    with pytest.raises(ValueError), mine.watch(POISON):
        raise ValueError("the database is away")
    assert mine.is_poison(POISON)
    with mine.watch(POISON):
        pass
    assert not mine.is_poison(POISON)
    close()
    assert files(tmp_path) == []


def test_two_processes_on_one_folder_know_the_living_from_the_dead(tmp_path):
    mine, close = started(tmp_path)
    with mine.watch(GOOD):
        for _ in range(DEATHS_MAX):
            killed_at(tmp_path, POISON)
        assert is_poison(tmp_path, POISON)
        assert not is_poison(tmp_path, GOOD)
        assert len([name for name in files(tmp_path) if name.endswith(".work")]) == 1
    close()


def test_one_process_forgets_and_keeps_what_another_has_counted_since(tmp_path):
    killed_at(tmp_path, GOOD)
    mine, close = started(tmp_path)
    for _ in range(DEATHS_MAX):
        killed_at(tmp_path, POISON)
    started(tmp_path)[1]()
    with mine.watch(GOOD):
        pass
    close()
    assert is_poison(tmp_path, POISON)


def test_a_poison_is_forgotten_by_all_when_one_of_them_has_looked_at_it(tmp_path):
    """The command line replays; the broker then takes what its sender sends again."""
    for _ in range(DEATHS_MAX):
        killed_at(tmp_path, POISON)
    mine, close = started(tmp_path)
    assert mine.is_poison(POISON)
    other, leave = started(tmp_path)
    with other.watch(POISON):
        pass
    leave()
    assert not mine.is_poison(POISON)
    close()


def test_the_same_message_by_two_connections_is_one_death(tmp_path):
    killed_at(tmp_path, POISON, POISON, POISON)
    started(tmp_path)[1]()
    assert json.loads((tmp_path / crashes.FOLDER / crashes.COUNTS).read_text()) == {POISON: 1}


def test_more_than_there_are_slots_for_are_not_noted_and_stop_nobody(tmp_path):
    digests = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(SLOTS + 5)]
    killed_at(tmp_path, *digests)
    mine, close = started(tmp_path)
    assert len(json.loads((tmp_path / crashes.FOLDER / crashes.COUNTS).read_text())) == SLOTS
    for _ in range(SLOTS * 2):  # slots are given back
        with mine.watch(GOOD):
            assert not mine.is_poison(GOOD)
    close()


def test_the_oldest_counts_are_forgotten_first(tmp_path):
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(COUNTED_MAX + 100)]
    for n in range(0, len(digests), 400):
        killed_at(tmp_path, *digests[n : n + 400])
    started(tmp_path)[1]()
    counts = json.loads((tmp_path / crashes.FOLDER / crashes.COUNTS).read_text())
    assert len(counts) == COUNTED_MAX
    assert set(digests[-100:]) <= counts.keys()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": "y"}', "\xff"])
def test_counts_that_cannot_be_read_are_none(tmp_path, text):
    (tmp_path / crashes.FOLDER).mkdir()
    (tmp_path / crashes.FOLDER / crashes.COUNTS).write_bytes(text.encode("latin-1"))
    killed_at(tmp_path, POISON)
    mine, close = started(tmp_path)
    assert not mine.is_poison(POISON)
    close()


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path):
    (tmp_path / crashes.FOLDER).write_bytes(b"no folder")
    mine, close = started(tmp_path)
    with mine.watch(GOOD):
        assert not mine.is_poison(GOOD)
    close()


def test_it_is_nothing_until_it_is_opened():
    mine = Crashes()
    with mine.watch(GOOD):
        assert not mine.is_poison(GOOD)


def test_it_costs_a_message_next_to_nothing(tmp_path):
    mine, close = started(tmp_path)

    def seconds() -> float:
        begun = time.thread_time()
        for _ in range(1_000):
            if not mine.is_poison(GOOD):
                with mine.watch(GOOD):
                    pass
        return (time.thread_time() - begun) / 1_000

    assert min(seconds() for _ in range(5)) < 20e-6
    close()


def test_many_threads_share_the_slots(tmp_path):
    mine, close = started(tmp_path)
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(8)]

    def work(digest: str) -> None:
        for _ in range(500):
            with mine.watch(digest):
                pass

    threads = [threading.Thread(target=work, args=(one,)) for one in digests]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(mine._work._free) == list(range(0, SLOTS * crashes.DIGEST_BYTES, crashes.DIGEST_BYTES))
    close()


def test_a_full_disk_does_not_make_us_forget(tmp_path, monkeypatch):
    for _ in range(DEATHS_MAX):
        killed_at(tmp_path, POISON)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(crashes, "_write", full)
        _, close = started(tmp_path)
        close()
    assert is_poison(tmp_path, POISON)
