"""What each device was shown (detectors D3, D9, D10 live on it), and what its character set kept from it.

The first time that a device is shown an item is on record before its query is answered to the end, so that no crash
lets an exam look as if its item had been made up. How often it was shown again is written a little later."""

import datetime as dt
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from broker import db, log
from broker.config import Settings
from broker.model.orders import OfferedItem, ScheduledStep
from broker.mwl import items

FLUSH_SECONDS = 0.5
Key = tuple[str, int, int]  # AE title, step, version


@dataclass(frozen=True)
class Loss:
    """lost: kinds (dicom/variants.py). withheld: why the device is not offered the item, empty = it is."""

    step_pk: int
    version: int
    lost: frozenset[str]
    withheld: str


class Recorder:
    """Collects offers and writes them together. Bounded: when it is full, whoever offers writes first."""

    def __init__(self, settings: Settings) -> None:
        self._pending: dict[Key, tuple[dt.datetime, dt.datetime, int]] = {}
        self._recorded: set[Key] = set()  # have their row
        self._told: set[tuple[str, Loss]] = set()
        self._max = settings.limits.offer_queue_max
        self._lock, self._writing, self._stopping = threading.Lock(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.flush()

    def note(self, ae_title: str, shown: Sequence[tuple[int, int]], at: dt.datetime) -> None:
        """shown: (step, version)."""
        with self._lock:
            for step_pk, version in shown:
                first, _, times = self._pending.get((ae_title, step_pk, version), (at, at, 0))
                self._pending[ae_title, step_pk, version] = (first, at, times + 1)
            urgent = len(self._pending) >= self._max or not self._pending.keys() <= self._recorded
        if urgent:
            self._try_to_flush()

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
                db.run(items.ask_about_characters, ae_title, withheld, now=at)
            except Exception:  # the device gets its worklist all the same, and the next query tries again
                log.get().exception("offers.characters")
                with self._lock:
                    self._told -= {(ae_title, loss) for loss in new}

    def flush(self) -> None:
        with self._writing:
            with self._lock:
                batch, self._pending = self._pending, {}
            if not batch:
                return
            try:
                db.run(_write, batch)
            except Exception:
                with self._lock:
                    self._pending = {**batch, **self._pending}
                raise
            with self._lock:
                if len(self._recorded) >= self._max:
                    self._recorded = set()
                self._recorded |= batch.keys()

    def forget(self) -> None:
        """Ask the table again which rows there are."""
        with self._lock:
            self._recorded, self._told = set(), set()

    def _try_to_flush(self) -> None:
        """A device gets its worklist even while nothing can be written."""
        try:
            self.flush()
        except Exception:  # kept, and written at the next turn
            log.get().exception("offers.write")

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self._try_to_flush()


def _write(session: Session, batch: dict[Key, tuple[dt.datetime, dt.datetime, int]]) -> None:
    steps = {step_pk for _, step_pk, _ in batch}
    alive = set(session.exec(select(ScheduledStep.pk).where(col(ScheduledStep.pk).in_(steps))).all())
    known = {
        (row.ae_title, row.step_pk, row.version): row
        for row in session.exec(select(OfferedItem).where(col(OfferedItem.step_pk).in_(steps)))
    }
    for (ae_title, step_pk, version), (first, last, times) in sorted(batch.items()):
        row = known.get((ae_title, step_pk, version))
        if row is not None:
            row.last_at, row.times = max(row.last_at, last), row.times + times
        elif step_pk in alive:
            row = OfferedItem(
                ae_title=ae_title, step_pk=step_pk, version=version, first_at=first, last_at=last, times=times
            )
        if row is not None:
            session.add(row)


def versions_offered(session: Session, ae_titles: Sequence[str], step_pk: int) -> list[OfferedItem]:
    """What these AE titles (one device) were shown of the step, oldest first."""
    return list(
        session.exec(
            select(OfferedItem)
            .where(col(OfferedItem.ae_title).in_(ae_titles), OfferedItem.step_pk == step_pk)
            .order_by(col(OfferedItem.first_at))
        ).all()
    )
