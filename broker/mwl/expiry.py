"""What nobody did, and nobody spoke of any more, leaves the worklist by itself (conformance.md 1.8).

Never what has begun: the device says when that ends. Nor what is on hold: no device is shown it, so it is in nobody's
way, and whoever holds it says what becomes of it. A person brings back what has expired."""

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, func, or_
from sqlmodel import Session, col, select

from broker import clock, db, log
from broker.config import Settings, Worklist
from broker.dicom import habits
from broker.dicom.habits import Habits
from broker.model.orders import ImagingOrder, ScheduledStation, ScheduledStep
from broker.model.site import Node
from broker.mwl import order_finding as finding
from broker.mwl import steps
from broker.states import STEP, can

ACTOR = "broker"
HERE = ("ARRIVED", "READY")  # who came and was not begun with
FAILED_SECONDS_BETWEEN = 3600  # between two tries of a step that could not expire

# The rule


@dataclass(frozen=True)
class Facts:
    """start: scheduled. heard_at: when the last message about the order was taken. status_at: since when the step is
    in its state; a person may have brought it there."""

    status: str
    start: dt.datetime | None
    heard_at: dt.datetime | None
    status_at: dt.datetime | None


@dataclass(frozen=True)
class Term:
    """Days. idle: of who is HERE."""

    expire: float
    idle: float


@dataclass(frozen=True)
class Verdict:
    at: dt.datetime
    reason: str


def decide(facts: Facts, term: Term) -> Verdict | None:
    """When it expires unless something happens, and why. None: never."""
    moments = (
        ("its scheduled start", facts.start),
        ("the last message about its order", facts.heard_at),
        ("its last change of state", facts.status_at),
    )
    since = max(((at, what) for what, at in moments if at is not None), default=None)
    if since is None or not can(STEP, facts.status, "expire"):
        return None
    days = min(term.expire, term.idle) if facts.status in HERE else term.expire
    return Verdict(since[0] + dt.timedelta(days=days), f"{days:g} days since {since[1]}")


@dataclass(frozen=True)
class Terms:
    """Of the devices by what the titles in orders stand for; of the site where a device has none of its own."""

    site: Term
    nodes: Mapping[str, Term]
    directory: habits.Directory

    def of(self, titles: Sequence[str]) -> Term:
        """The longest of all devices that may do it."""
        devices = {device for title in titles for device in self.directory.devices(title) or ("",)}
        terms = [self.nodes.get(device, self.site) for device in devices] or [self.site]
        return Term(max(one.expire for one in terms), max(one.idle for one in terms))

    @property
    def shortest(self) -> Term:
        terms = (self.site, *self.nodes.values())
        return Term(min(one.expire for one in terms), min(one.idle for one in terms))


def terms_of(said: Worklist, nodes: Mapping[str, Habits]) -> Terms:
    """nodes: by AE title."""
    site = Term(said.expire_days, said.idle_days)
    own = {
        title: Term(
            site.expire if one.expire_days is None else one.expire_days,
            site.idle if one.idle_days is None else one.idle_days,
        )
        for title, one in nodes.items()
    }
    return Terms(site, own, habits.directory(nodes))


# What is due


@dataclass(frozen=True)
class Due:
    step_pk: int
    order_pk: int
    accession_number: str
    sps_id: str
    status: str
    station_ae_titles: tuple[str, ...]
    at: dt.datetime
    reason: str


def due(session: Session, settings: Settings, now: dt.datetime, limit: int) -> list[Due]:
    """At most `limit` steps that expire until `now`, which may lie ahead: if nothing happens until then."""
    found: list[Due] = []
    after: int | None = 0
    while after is not None and len(found) < limit:
        page, after = _page(session, settings, now, settings.limits.list_items_max, after)
        found += page
    return found[:limit]


def _page(
    session: Session, settings: Settings, now: dt.datetime, limit: int, after: int
) -> tuple[list[Due], int | None]:
    """Of the next `limit` steps by key that may be due, those that are; and where to go on, None at the end."""
    terms = _terms(session, settings)
    rows = session.exec(_candidates(settings, terms.shortest, now, limit, after)).all()
    titles = _titles(session, [step.key for step, _ in rows])
    found = []
    for step, order in rows:
        own = titles.get(step.key, [])
        verdict = decide(_facts(step, order, settings), terms.of(own))
        if verdict and verdict.at <= now:
            found.append(
                Due(step.key, order.key, order.accession_number, step.sps_id, step.status, tuple(own), verdict.at,
                    verdict.reason)
            )  # fmt: skip
    return found, rows[-1][0].key if len(rows) == limit else None


def _terms(session: Session, settings: Settings) -> Terms:
    rows = session.exec(select(Node)).all()
    return terms_of(settings.worklist, {row.ae_title: habits.of(row) for row in rows})


def _candidates(settings: Settings, shortest: Term, now: dt.datetime, limit: int, after: int) -> Any:
    """As far as columns know: no step is due whose term is over at none of them."""
    kinds = []
    here = min(shortest.expire, shortest.idle)
    for statuses, days in ((("SCHEDULED",), shortest.expire), (HERE, here)):
        before = now - dt.timedelta(days=days)
        kinds.append(
            and_(
                col(ScheduledStep.status).in_(statuses),
                col(ScheduledStep.start_date) <= clock.local(before, settings.site.timezone)[0],
                func.coalesce(ScheduledStep.status_at, before) <= before,
                func.coalesce(ImagingOrder.last_event_at, before) <= before,
                col(ImagingOrder.updated_at) <= before,
            )
        )
    return (
        select(ScheduledStep, ImagingOrder)
        .join(ImagingOrder, col(ImagingOrder.pk) == col(ScheduledStep.order_pk))
        .where(col(ScheduledStep.pk) > after, or_(*kinds))
        .order_by(col(ScheduledStep.pk))
        .limit(limit)
    )


def _facts(step: ScheduledStep, order: ImagingOrder, settings: Settings) -> Facts:
    start = clock.aware(step.start_date, step.start_time, settings.site.timezone) if step.start_date else None
    heard = max(filter(None, (order.last_event_at, order.updated_at)))
    return Facts(step.status, start, heard, step.status_at)


def _titles(session: Session, step_pks: Sequence[int]) -> dict[int, list[str]]:
    query = select(ScheduledStation.step_pk, ScheduledStation.ae_title).where(
        col(ScheduledStation.step_pk).in_(step_pks)
    )
    found: dict[int, list[str]] = {}
    for step_pk, title in session.exec(query.order_by(col(ScheduledStation.pk))):
        found.setdefault(step_pk, []).append(title)
    return found


# The job

_after = 0  # where the last pass of this process ended: what is not due for long must not keep others from it
_failed: dict[int, float] = {}  # step -> monotonic time before which it is not tried again


def work(settings: Settings) -> int:
    """One pass; how many steps expired. Each in a transaction of its own: one that fails stops no other. Where the
    database is away the pass is over, and the next goes on there."""
    global _after
    now, limit = clock.now(), settings.limits.list_items_max
    found, after = db.read(_page, settings, now, limit, _after)
    _after = after or 0
    for step_pk in [one for one, until in _failed.items() if until <= time.monotonic()]:
        del _failed[step_pk]
    moved = 0
    for one in found:
        if one.step_pk in _failed:
            continue
        try:
            moved += db.run(expire, one.step_pk, settings, now=now)
        except Exception as error:
            if db.is_away(error):  # the same works later, for it and for all behind it
                _after = one.step_pk  # where it is one row that is locked for long, it keeps no other from its turn
                raise
            _failed[one.step_pk] = time.monotonic() + FAILED_SECONDS_BETWEEN
            log.get().exception("expiry.failed", step=one.step_pk)
    return moved


def expire(session: Session, step_pk: int, settings: Settings, *, now: dt.datetime) -> bool:
    """Looks again behind the locks: a message, a device or a person may have been quicker."""
    finding.locked(session, db.get(session, ScheduledStep, step_pk).order_pk)
    step = db.lock(session, ScheduledStep, step_pk)
    order = db.get(session, ImagingOrder, step.order_pk)
    titles = _titles(session, [step_pk]).get(step_pk, [])
    verdict = decide(_facts(step, order, settings), _terms(session, settings).of(titles))
    if verdict is None or verdict.at > now:
        return False
    steps.move_step(session, step, "expire", now=now, actor=ACTOR, cause=verdict.reason)
    return True
