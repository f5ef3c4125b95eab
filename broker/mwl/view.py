"""What one device may see of the worklist, whatever it asks for (conformance.md 1.8). Pure."""

import datetime as dt
from dataclasses import dataclass
from typing import TypeVar
from zoneinfo import ZoneInfo

from broker.config import Settings
from broker.dicom.habits import NO_HABITS, Directory
from broker.dicom.service import NodeInfo
from broker.dicom.tree import Tree
from broker.mwl.keys import plain

N = TypeVar("N", int, float)
WAITING = ("SCHEDULED", "ARRIVED", "READY")
FINISHED = ("COMPLETED", "DISCONTINUED")
SHOWN_AS = dict.fromkeys(FINISHED, "DEPARTED")  # the standard has no other word for what is over
OWN, MODALITY, STATION, LOCATION = "own", "modality", "ae:", "location:"


@dataclass(frozen=True)
class View:
    """sees: as in Habits; empty = what its keys ask for. waiting: statuses. started_since, finished_since: what began
    or ended before is not shown; None = none is. finished: those of the ended statuses that are shown.
    started_if_asked: the same for who asks for a status. first_day, last_day: YYYYMMDD, the days that are shown, empty
    is all. today_is_window: a key of today means those days."""

    ae_title: str
    modality: str
    sees: tuple[str, ...]
    labels: tuple[str, ...]
    waiting: tuple[str, ...]
    started_since: dt.datetime | None
    finished_since: dt.datetime | None
    finished: tuple[str, ...]
    started_if_asked: dt.datetime | None
    today: str
    first_day: str
    last_day: str
    today_is_window: bool
    matches_max: int
    looked_at_max: int

    @property
    def looks_at_location(self) -> bool:
        return any(rule.startswith(LOCATION) for rule in self.sees)

    def border(self, status: str) -> dt.datetime | None:
        """Of what has begun or ended: since when it must have done so to be shown. None: it is not shown."""
        return self.started_since if status == "STARTED" else self.finished_since if status in self.finished else None


def of(node: NodeInfo | None, ae_title: str, settings: Settings, now: dt.datetime) -> View:
    """node: None = not configured, on an open test bench."""
    habits, site = node.habits if node else NO_HABITS, settings.worklist
    hide = site.hide if habits.hide is None else habits.hide
    started = now - dt.timedelta(hours=_said(habits.started_hours, site.started_hours))
    finished = now - dt.timedelta(hours=_said(habits.finished_hours, site.finished_hours))
    today = now.astimezone(ZoneInfo(settings.site.timezone)).date()
    return View(
        ae_title=ae_title,
        modality=node.modality if node else "",
        sees=habits.sees,
        labels=tuple(sorted(habits.labels)),
        waiting=tuple(status for status in WAITING if status not in hide),
        started_since=None if "STARTED" in hide else started,
        finished_since=None if set(FINISHED) <= set(hide) else finished,
        finished=tuple(status for status in FINISHED if status not in hide),
        started_if_asked=started if habits.hide is None or "STARTED" not in habits.hide else None,
        today=f"{today:%Y%m%d}",
        first_day=_day(today, habits.days_before, -1),
        last_day=_day(today, habits.days_after, 1),
        today_is_window="today_is_window" in habits.quirks,
        matches_max=min(_said(habits.matches_max, settings.limits.worklist_matches_max),
                        settings.limits.worklist_matches_max),
        looked_at_max=settings.limits.worklist_looked_at_max,
    )  # fmt: skip


def _said(value: N | None, otherwise: N) -> N:
    return otherwise if value is None else value


def _day(today: dt.date, days: int | None, sign: int) -> str:
    return "" if days is None else f"{today + dt.timedelta(days=sign * days):%Y%m%d}"


def sees_item(view: View, step: Tree, directory: Directory) -> bool:
    """By the rules of `sees`, where the item itself must be looked at."""
    stations = plain(step, 0x00400001).split("\\")
    own = directory.means(view.ae_title)
    return any(
        (rule == OWN and not own.isdisjoint(stations))
        or (rule == MODALITY and plain(step, 0x00080060) == view.modality)
        or (rule.startswith(STATION) and not directory.means(rule.removeprefix(STATION)).isdisjoint(stations))
        or (rule.startswith(LOCATION) and plain(step, 0x00400011) == rule.removeprefix(LOCATION).strip())
        for rule in view.sees
    )
