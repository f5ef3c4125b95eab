"""What devices asked and what they were shown (detectors D3, D9, D10 and `why` live on it), and what its character set
kept from each.

The first time that a device is shown an item is on record before its query is answered to the end, so that no crash
lets an exam look as if its item had been made up. All else is written a little later: queries of one device that follow
each other with the same keys and the same answer are one run with its first and last time and their number.

No device waits long for a record that cannot be made: it is made as soon as it can be."""

import datetime as dt
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from broker import db, log
from broker.config import Settings
from broker.mwl import funnel, items, query_log
from broker.mwl.query_log import Asked, Batch, Key, Run, Source

FLUSH_SECONDS = 0.5
GAP_MAX = dt.timedelta(hours=1)  # inside one run
REPEATS_SECONDS = 5.0  # between two writes of how often a run came again
COUNTED_SECONDS = 10.0  # what the keys of one source remove is counted once in this time
COUNTED_MAX = 10  # sources at one turn: counting must not keep devices from their answers
RECORD_SECONDS_MAX = 2.0  # that a device waits for the record of what it is shown
PAUSE_SECONDS = 10.0  # after a record that could not be made, in which nobody waits for one


@dataclass(frozen=True)
class Loss:
    """lost: kinds (dicom/variants.py). withheld: why the device is not offered the item, empty = it is."""

    step_pk: int
    version: int
    lost: frozenset[str]
    withheld: str


class Recorder:
    """Collects queries and writes them together. Bounded: when it is full, the oldest runs that are not written yet
    give way, and the log says so."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queries = 0
        self._runs: dict[Source, Run] = {}
        self._due: list[Run] = []  # to be written
        self._firsts: dict[Key, dt.datetime] = {}  # shown and without a row
        self._recorded: dict[Key, None] = {}  # have their row; the oldest first
        self._told: set[tuple[str, Loss]] = set()
        self._counted: dict[Source, tuple[dt.datetime, funnel.Counts]] = {}
        self._max = settings.limits.offer_queue_max
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
            if len(self._firsts) > self._max:
                log.get().error("offers.lost", items=len(self._firsts))
                self._firsts.clear()
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
            self._make_room()
            self._runs[asked.source] = made = Run(asked, asked.at)
            self._due.append(made)

    def _end(self, run: Run) -> None:
        """One that is being written at this moment says itself what is left of it (`_written`)."""
        if run.pk is not None and run.times > run.written:
            self._due.append(run)

    def _make_room(self) -> None:
        if len(self._due) >= self._max:
            log.get().error("offers.queries_lost", runs=len(self._due))
            self._due.clear()
        if len(self._runs) >= self._max:
            for run in self._runs.values():
                self._end(run)
            self._runs = {}

    def tell(self, ae_title: str, losses: Sequence[Loss], at: dt.datetime) -> None:
        """Say once for each device and version what it was not shown; ask a person where it is not offered the item."""
        with self._lock:
            new = [loss for loss in losses if (ae_title, loss) not in self._told]
            if len(self._told) + len(new) > self._max:
                self._told = set()
            self._told |= {(ae_title, loss) for loss in new}
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
                    self._told -= {(ae_title, loss) for loss in new}

    def flush(self, *, repeats: bool = False) -> None:
        """repeats: also how often runs came again since they were written."""
        self._write_firsts()
        self._write_runs(repeats)

    def _write_firsts(self, seconds: float = -1) -> bool:
        """seconds: at most, for a turn; -1 is any. False: there was none. Who had to wait finds his own written."""
        if not self._writing_firsts.acquire(timeout=seconds):
            return False
        try:
            with self._lock:
                firsts, self._firsts = self._firsts, {}
            try:
                if firsts:
                    db.run(query_log.offer, firsts)
            except Exception:
                with self._lock:
                    self._firsts = {**firsts, **self._firsts}
                raise
            with self._lock:
                self._recorded |= dict.fromkeys(firsts)
                for key in list(self._recorded)[: max(0, len(self._recorded) - self._max)]:
                    del self._recorded[key]
            return True
        finally:
            self._writing_firsts.release()

    def _write_runs(self, repeats: bool) -> None:
        with self._writing_runs:
            with self._lock:
                due, self._due = [(run, run.times) for run in self._due], []
                if repeats:
                    self._forget_silent()
                    again = [run for run in self._runs.values() if run.pk is not None and run.times > run.written]
                    due += [(run, run.times) for run in again]
            if not due:
                return
            try:
                counts = {id(run): self._counts(run) for run, _ in due if run.pk is None}
                self._written(due, db.run(query_log.write, Batch(due, counts)))
            except Exception as error:
                if db.is_away(error):
                    with self._lock:
                        self._due = [run for run, _ in due] + self._due
                    raise
                self._write_one_by_one(due)

    def _write_one_by_one(self, due: list[tuple[Run, int]]) -> None:
        """One of them cannot be written, and must not keep the others from it."""
        for one in due:
            try:
                counts = {id(one[0]): funnel.NOT_COUNTED}
                self._written([one], db.run(query_log.write, Batch([one], counts)))
            except Exception as error:
                if db.is_away(error):
                    with self._lock:
                        self._due.append(one[0])
                else:
                    log.get().error("offers.query_lost", ae_title=one[0].asked.source.ae_title, exc_info=error)

    def _written(self, due: list[tuple[Run, int]], made: dict[int, int]) -> None:
        with self._lock:
            for run, times in due:
                run.pk, run.written, run.offered = made.get(id(run), run.pk), times, times
                if run.times > times and self._runs.get(run.asked.source) is not run:
                    self._due.append(run)  # it came again while it was written, and then another took its place

    def _forget_silent(self) -> None:
        """Nothing is added to a run after the longest gap."""
        if not self._runs:
            return
        newest = max(run.last_at for run in self._runs.values())
        for source, run in list(self._runs.items()):
            if newest - run.last_at >= GAP_MAX:
                self._end(run)
                del self._runs[source]

    def _counts(self, run: Run) -> funnel.Counts:
        """What its keys remove now, or did a moment ago."""
        asked = run.asked
        before = self._counted.get(asked.source)
        if before and (asked.at - before[0]).total_seconds() < COUNTED_SECONDS:
            return before[1]
        recent = [at for at, _ in self._counted.values() if (asked.at - at).total_seconds() < FLUSH_SECONDS]
        if asked.plan is None or asked.view is None or asked.directory is None or len(recent) >= COUNTED_MAX:
            return before[1] if before else funnel.NOT_COUNTED
        if len(self._counted) >= self._max:
            self._counted.clear()
        counts = funnel.count(asked.plan, asked.view, asked.directory)
        self._counted[asked.source] = (asked.at, counts)
        return counts

    def forget(self) -> None:
        """Ask the table again which rows there are."""
        with self._lock:
            self._recorded, self._told = {}, set()
            self._runs, self._due, self._firsts, self._counted = {}, [], {}, {}

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
