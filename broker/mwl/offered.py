"""What devices asked and what they were shown (detectors D3, D9, D10 and `why` live on it), and what its character set
kept from each.

The first time that a device is shown an item is on record before its query is answered to the end, so that no crash
lets an exam look as if its item had been made up. All else is written a little later: queries of one device that follow
each other with the same keys and the same answer are one run with its first and last time and their number.

No device waits long for a record that cannot be made: it is made as soon as it can be."""

import datetime as dt
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from broker import db, log
from broker.config import Settings
from broker.mwl import funnel, items, query_log
from broker.mwl.query_log import Asked, Batch, Key, Run, Source

FLUSH_SECONDS = 0.5
GAP_MAX = dt.timedelta(hours=1)  # inside one run
REPEATS_SECONDS = 5.0  # between two writes of how often a run came again
COUNTED_SECONDS = 10.0  # what the keys of one source remove is counted once in this time
COUNTED_MAX = 10  # sources at one turn: counting must not keep devices from their answers
SOURCES_MAX = 2_000  # whose last query is remembered with its answer; over it they all begin a new run
RUNS_AT_ONCE = 200  # in one transaction: it must end in time, and others wait for their turn to write
ITEMS_AT_ONCE = 10_000  # shown by them, about
FIRSTS_AT_ONCE = 1_000  # first offers in one transaction
TURN_SECONDS = 0.01  # between two transactions: a lock goes to who waits for it only if nobody else takes it at once
RECORD_SECONDS_MAX = 2.0  # that a device waits for the record of what it is shown
PAUSE_SECONDS = 10.0  # after a record that could not be made, in which nobody waits for one

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Loss:
    """lost: kinds (dicom/variants.py). withheld: why the device is not offered the item, empty = it is."""

    step_pk: int
    version: int
    lost: frozenset[str]
    withheld: str


class Recorder:
    """Collects queries and writes them together. Bounded: of more runs or first offers that are not written yet than
    its limits say, the oldest give way, and the log says so."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queries = 0
        self._runs: dict[Source, Run] = {}
        self._due: dict[Run, None] = {}  # to be written; the oldest first, as in all of these
        self._firsts: dict[Key, dt.datetime] = {}  # shown and without a row
        self._recorded: dict[Key, None] = {}  # have their row
        self._told: dict[tuple[str, Loss], None] = {}
        self._counted: dict[Source, tuple[float, funnel.Counts]] = {}  # when: monotonic
        self._left_to_count = COUNTED_MAX  # at this turn
        self._nobody_waits_until = 0.0  # monotonic
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._writing_firsts, self._writing_runs = threading.Lock(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.flush(repeats=True)

    def before_the_end(
        self, ae_title: str, shown: Sequence[tuple[int, int, str]], at: dt.datetime, *, waits: bool = True
    ) -> None:
        """Of a query that is about to be answered to the end. waits: for the record; else it is made when it can be."""
        with self._lock:
            new = [key for one in shown if (key := (ae_title, one[0], one[1])) not in self._recorded]
            for key in new:
                self._firsts.setdefault(key, at)
            if lost := _oldest_out(self._firsts, self.settings.limits.offered_items_max):
                log.get().error("offers.lost", items=len(lost))
        if new and waits and time.monotonic() >= self._nobody_waits_until:
            try:
                with db.within(RECORD_SECONDS_MAX):
                    done = self._write_firsts(RECORD_SECONDS_MAX)
            except Exception as error:
                log.get().error("offers.not_yet", kind=type(error).__name__)
                done = False
            if not done:
                self._nobody_waits_until = time.monotonic() + PAUSE_SECONDS

    def note(self, asked: Asked) -> None:
        """After its answer."""
        with self._lock:
            self.queries += 1
            run = self._runs.get(asked.source)
            if run is not None and run.goes_on_with(asked) and asked.at - run.last_at < GAP_MAX:
                run.last_at, run.times = asked.at, run.times + 1
                return
            if run is not None:
                self._end(run)
            if len(self._runs) >= SOURCES_MAX:
                for one in self._runs.values():
                    self._end(one)
                self._runs = {}
            self._runs[asked.source] = made = Run(asked, asked.at)
            self._due[made] = None
            if lost := _oldest_out(self._due, self.settings.limits.offer_queue_max):
                log.get().error("offers.queries_lost", runs=len(lost))
                self._lose(lost)

    def _end(self, run: Run) -> None:
        if run.times > run.written:
            self._due[run] = None

    def _lose(self, runs: Sequence[Run]) -> None:
        """The next such query is a run of its own: nothing is added to what is never written."""
        for run in runs:
            self._due.pop(run, None)
            if self._runs.get(run.asked.source) is run:
                del self._runs[run.asked.source]

    def tell(self, ae_title: str, losses: Sequence[Loss], at: dt.datetime) -> None:
        """Say once for each device and version what it was not shown; ask a person where it is not offered the item."""
        with self._lock:
            new = [loss for loss in losses if (ae_title, loss) not in self._told]
            self._told |= {(ae_title, loss): None for loss in new}
            _oldest_out(self._told, self.settings.limits.offered_items_max)
        for loss in new:
            log.get().warning(
                "worklist.characters", step=loss.step_pk, version=loss.version, ae_title=ae_title,
                lost=sorted(loss.lost), withheld=loss.withheld,
            )  # fmt: skip
        withheld = [(loss.step_pk, loss.version, loss.withheld) for loss in new if loss.withheld]
        if withheld:
            try:
                with db.within(RECORD_SECONDS_MAX):
                    db.run(items.ask_about_characters, ae_title, withheld, now=at)
            except Exception:  # the device gets its worklist all the same, and the next query tries again
                log.get().exception("offers.characters")
                with self._lock:
                    for loss in new:
                        self._told.pop((ae_title, loss), None)

    def flush(self, *, repeats: bool = False) -> None:
        """repeats: also how often runs came again since they were written."""
        self._write_firsts()
        self._write_runs(repeats)

    def _write_firsts(self, seconds: float = -1) -> bool:
        """seconds: at most, for a turn; -1 is any. False: there was none. Who had to wait finds his own written."""
        if not self._writing_firsts.acquire(timeout=seconds):
            return False
        try:
            for _ in range(0, len(self._firsts), FIRSTS_AT_ONCE):
                self._write_some_firsts()
            return True
        finally:
            self._writing_firsts.release()

    def _write_some_firsts(self) -> None:
        with self._lock:
            firsts = dict(itertools.islice(self._firsts.items(), FIRSTS_AT_ONCE))
        db.run(query_log.offer, firsts)
        with self._lock:
            for key in firsts:
                self._firsts.pop(key, None)
            self._recorded |= dict.fromkeys(firsts)
            _oldest_out(self._recorded, self.settings.limits.offered_items_max)

    def _write_runs(self, repeats: bool) -> None:
        """What is due now, in parts. What cannot be written for now stays due."""
        with self._writing_runs:
            if repeats:
                with self._lock:
                    self._forget_silent()
                    for run in self._runs.values():
                        self._end(run)
            self._begin_counting()
            left = len(self._due)
            while left > 0 and (some := self._next()):
                self._write(some)
                left -= len(some)
                if left > 0:
                    time.sleep(TURN_SECONDS)

    def _next(self) -> list[tuple[Run, int]]:
        """With their times, as they are now."""
        some, items_ = [], 0
        with self._lock:
            for run in itertools.islice(self._due, RUNS_AT_ONCE):
                some.append((run, run.times))
                items_ += len(run.asked.shown)
                if items_ >= ITEMS_AT_ONCE:
                    break
        return some

    def _write(self, some: list[tuple[Run, int]]) -> None:
        try:
            counts = {id(run): self._counts(run) for run, _ in some if run.pk is None}
            self._written(some, db.run(query_log.write, Batch(some, counts)))
        except Exception as error:
            if db.is_away(error):
                raise
            for run, times in some:
                self._write_alone(run, times)

    def _write_alone(self, run: Run, times: int) -> None:
        """Of some of which one cannot be written: it must not keep the others from it."""
        try:
            one = [(run, times)]
            self._written(one, db.run(query_log.write, Batch(one, {id(run): funnel.NOT_COUNTED})))
        except Exception as error:
            if db.is_away(error):
                raise
            log.get().error("offers.query_lost", ae_title=run.asked.source.ae_title, exc_info=error)
            with self._lock:
                self._lose([run])

    def _written(self, some: list[tuple[Run, int]], made: dict[int, int]) -> None:
        with self._lock:
            for run, times in some:
                run.pk, run.written = made.get(id(run), run.pk), times
                # Else it came again while it was written, and then another took its place.
                if run.times == times or self._runs.get(run.asked.source) is run:
                    self._due.pop(run, None)

    def _forget_silent(self) -> None:
        """Nothing is added to a run after the longest gap."""
        if not self._runs:
            return
        newest = max(run.last_at for run in self._runs.values())
        for source, run in list(self._runs.items()):
            if newest - run.last_at >= GAP_MAX:
                self._end(run)
                del self._runs[source]

    def _begin_counting(self) -> None:
        since = time.monotonic() - COUNTED_SECONDS
        self._counted = {source: one for source, one in self._counted.items() if one[0] > since}
        self._left_to_count = COUNTED_MAX

    def _counts(self, run: Run) -> funnel.Counts:
        """What its keys remove now, or did a moment ago."""
        asked = run.asked
        if asked.source in self._counted:
            return self._counted[asked.source][1]
        if asked.plan is None or asked.view is None or asked.directory is None or not self._left_to_count:
            return funnel.NOT_COUNTED
        self._left_to_count -= 1
        counts = funnel.count(asked.plan, asked.view, asked.directory)
        self._counted[asked.source] = (time.monotonic(), counts)
        return counts

    def forget(self) -> None:
        """Ask the table again which rows there are."""
        with self._lock:
            self._recorded, self._told = {}, {}
            self._runs, self._due, self._firsts, self._counted = {}, {}, {}, {}

    def _try_to_flush(self, *, repeats: bool = False) -> None:
        try:
            self.flush(repeats=repeats)
        except Exception:  # kept, and written at the next turn
            log.get().exception("offers.write")

    def _run(self) -> None:
        turns = round(REPEATS_SECONDS / FLUSH_SECONDS)
        turn = 0
        while not self._stopping.wait(FLUSH_SECONDS):
            turn += 1
            self._try_to_flush(repeats=turn % turns == 0)


def _oldest_out(kept: dict[K, V], most: int) -> list[K]:
    """Those of too many that give way: a tenth at once, so that it is rare and does not fill the log."""
    out = list(itertools.islice(kept, len(kept) - most * 9 // 10)) if len(kept) > most else []
    for key in out:
        del kept[key]
    return out
