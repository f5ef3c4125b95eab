"""Other providers' worklists: asked by C-FIND, several at once, and what is new in them through the inbox.

`next_at` of a provider is schedule and lease in one, as of an intake (intakes.py). One that fails is asked again after
its usual time; after some failures in a row its breaker opens, and each further one doubles the wait: the one question
at its end closes it, or not. Meanwhile its entries are served as they were, and told as stale."""

import datetime as dt
import math
import shlex
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.datadict import tag_for_keyword
from sqlmodel import Session, col, delete, func, or_, select, update

from broker import clock, db, log
from broker.config import Limits, Settings
from broker.dicom import find_client, tree
from broker.dicom.find_client import Answers, Bounds, Provider
from broker.dicom.tree import Tree
from broker.errors import BrokerError, UnknownKey
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.upstream import Upstream, UpstreamEntry
from broker.mwl import items, keys, matching
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.scp import MODALITY_WORKLIST_FIND
from broker.ris_bridge import effects, inbox, upstream_item, upstream_road
from broker.ris_bridge.effects import Cause, Done
from broker.ris_bridge.intakes import ERROR_CHARACTERS_MAX
from broker.ris_bridge.upstream_effect import find_source

DOUBLINGS_MAX = 16
AT_ONCE = 500  # rows in one statement
WAIT_MAX = dt.timedelta(days=2)  # longer than any pause: who is to wait longer was told so by a clock that was wrong
MISSING_MAX = 5  # at once, or half of what is listed: more are not believed to be gone
BROKEN = "its answer could not be taken in; the broker's log says why"
FEW = "lists suddenly few: broker upstream now {} --gone takes it"
NEW, CHANGED, UNCHANGED, REFUSED, OVER = "new", "changed", "unchanged", "refused", "over"
GONE, LATER = "gone", "later"


def work(settings: Settings) -> None:
    """One pass over the providers that are due. Who has more weight is asked later: its word is the newer one then."""
    turns = []
    due = db.read(_due, settings.limits.upstream_parallel_max, now=clock.now())
    for source in sorted(due, key=lambda one: -one.priority):
        turn = db.run(_claim, source, now=clock.now(), seconds=_lease(settings.limits))
        if turn is not None:
            turns.append(turn)
    _ask(turns, settings, settings.limits.upstream_pass_seconds_max)


def ask_now(name: str, settings: Settings, *, takes_gone: bool = False) -> dict[str, Any]:
    """Ask that provider although it is not its time: how it is when all is taken. takes_gone: all that it lists no more
    counts as gone, however much it is. Raises UnknownKey."""
    turn = db.run(_claim, db.read(the, name), now=clock.now(), seconds=_lease(settings.limits), at_once=True)
    assert turn is not None
    _ask([turn], settings, math.inf, takes_gone)
    return db.read(lambda session: _shown(session, the(session, name), settings.limits, clock.now()))


def the(session: Session, name: str) -> Upstream:
    source = find_source(session, name)
    if source is None:
        raise UnknownKey(f"upstream {name}", "is not known here; broker upstream list shows those that are")
    return source


# Whose turn it is


@dataclass
class Turn:
    """at: when it was taken, which is how old the answer is. until: of the lease; `next_at` while nobody else has taken
    it."""

    source: Upstream
    at: dt.datetime
    until: dt.datetime


def _lease(limits: Limits) -> float:
    return max(limits.lease_seconds, 2 * limits.upstream_seconds_max)


def _due(session: Session, most: int, *, now: dt.datetime) -> Sequence[Upstream]:
    """The one that waits longest first."""
    query = select(Upstream).where(_is_due(now), col(Upstream.enabled).is_(True))
    return session.exec(query.order_by(col(Upstream.next_at), col(Upstream.pk)).limit(most)).all()


def _is_due(now: dt.datetime) -> Any:
    at = col(Upstream.next_at)
    return or_(at.is_(None), at <= now, at > now + WAIT_MAX)


def _claim(
    session: Session, source: Upstream, *, now: dt.datetime, seconds: float, at_once: bool = False
) -> Turn | None:
    """None where somebody else was faster. at_once: whatever the schedule says; who is asking it then gives it up."""
    due = or_(_is_due(now), at_once)
    until = now + dt.timedelta(seconds=seconds)
    won = session.exec(update(Upstream).where(col(Upstream.pk) == source.key, due).values(next_at=until))
    return Turn(source, now, until) if won.rowcount == 1 else None


def _hold(session: Session, turn: Turn, until: dt.datetime, **values: Any) -> bool:
    """Hold on to it, or give it back until then. False where it is another's by now, or its provider was changed or
    removed: nothing is written then."""
    mine = update(Upstream).where(col(Upstream.pk) == turn.source.key, col(Upstream.next_at) == turn.until)
    return session.exec(mine.values(next_at=until, **values)).rowcount == 1


def _renew(turn: Turn, limits: Limits) -> bool:
    until = clock.now() + dt.timedelta(seconds=_lease(limits))
    is_held = db.run(_hold, turn, until)
    if is_held:
        turn.until = until
    return is_held


def _ask(turns: Sequence[Turn], settings: Settings, seconds: float, takes_gone: bool = False) -> None:
    """seconds: to take in all answers; each has its share, so that none waits for another's to end."""
    if not turns:
        return
    with ThreadPoolExecutor(min(len(turns), settings.limits.upstream_parallel_max), "upstream") as pool:
        asked: dict[Future[Answers], Turn] = {pool.submit(_answers, turn, settings): turn for turn in turns}
        for answer in as_completed(asked):
            try:
                _take_in(asked[answer], answer.result(), settings, seconds / len(turns), takes_gone)
            except Exception as error:  # one provider must not cost the others theirs
                if db.is_away(error):
                    raise
                log.get().exception("upstream.broken", upstream=asked[answer].source.name)
                _finish(asked[answer], Listing(error=BROKEN), {}, settings)


def _answers(turn: Turn, settings: Settings) -> Answers:
    return question(turn.source, settings, turn.at).ask()


# The question


@dataclass(frozen=True)
class Question:
    """identifier: its bytes. asked: the same as a tree."""

    provider: Provider
    identifier: bytes
    asked: Tree
    bounds: Bounds

    def ask(self) -> Answers:
        return find_client.ask(self.provider, MODALITY_WORKLIST_FIND, self.identifier, self.bounds)


def question(source: Upstream, settings: Settings, now: dt.datetime) -> Question:
    limits = settings.limits
    identifier, asked = upstream_item.question(upstream_road.reads_of(source, settings), _keys(source, settings, now))
    calling = source.calling_ae_title or settings.dicom.ae_title
    bounds = Bounds(limits.upstream_seconds_max, limits.upstream_matches_max, limits.upstream_bytes_max, limits)
    return Question(Provider(source.host, source.port, source.ae_title, calling), identifier, asked, bounds)


def _keys(source: Upstream, settings: Settings, now: dt.datetime) -> Tree:
    """Those with a value."""
    today = now.astimezone(ZoneInfo(settings.site.timezone)).date()
    step: Tree = {}
    item: Tree = {}
    first, last = (
        None if days < 0 else today + sign * dt.timedelta(days=days)
        for days, sign in ((source.days_before, -1), (source.days_after, 1))
    )
    if first is not None or last is not None:
        bounds = "-".join("" if day is None else day.strftime("%Y%m%d") for day in (first, last))
        step[matching.START_DATE] = ("DA", bounds)
    said = {"Modality": source.modality, "ScheduledStationAETitle": source.station_ae_title, **source.keys}
    for keyword, value in said.items():
        tag = tag_for_keyword(keyword)
        if tag is not None and value:
            (step if tag in keys.STEP_RETURNED else item)[tag] = (tree.vr_of(tag), value)
    return {**item, STEP_SEQUENCE: ("SQ", [step])}


# The answers


@dataclass(frozen=True)
class Heard:
    """One entry of an answer. raw: see upstream_item.joined. over: it has begun or ended there. canceled: by being
    cancelled, which counts as not listed any more. unreadable: it is no data set."""

    identity: str
    raw: bytes
    digest: str
    over: bool = False
    canceled: bool = False
    unreadable: bool = False


@dataclass
class Listing:
    """One answer, entry by entry. beside: how many were not asked for. error: why it is not all. doubt: why what it
    lacks is not believed to be gone. is_cut: there was no time for all of it."""

    entries: list[Heard] = field(default_factory=list)
    beside: int = 0
    error: str = ""
    doubt: str = ""
    is_cut: bool = False

    @property
    def listed(self) -> set[str]:
        return {one.identity for one in self.entries if not one.canceled}

    @property
    def is_complete(self) -> bool:
        is_whole = not self.error and not self.doubt and not self.is_cut
        return is_whole and not any(one.unreadable for one in self.entries)


def listing_of(answers: Answers, source: Upstream, asked: Tree, settings: Settings) -> Listing:
    """What is said twice of one step is one entry, in whatever order it came."""
    reads = upstream_road.reads_of(source, settings)
    found = Listing(error=answers.error)
    parts: dict[str, set[bytes]] = {}
    over: dict[str, bool] = {}  # whether all of it is cancelled
    unreadable: set[str] = set()
    for raw in answers.identifiers:
        try:
            item = upstream_item.read(raw, reads)
            if not upstream_item.is_asked_for(item, asked):
                found.beside += 1
                continue
        except BrokerError:
            unreadable.add(identity := upstream_road.identity_of(raw, reads))
        else:
            identity = upstream_road.identity_of(raw, reads)
            status = upstream_item.status_of(item)
            if status in (*upstream_item.OVER, *upstream_item.CANCELED):
                over[identity] = over.get(identity, True) and status in upstream_item.CANCELED
                continue
        parts.setdefault(identity, set()).add(raw)
    for identity, raws in parts.items():
        raw = upstream_item.joined(sorted(raws))
        said = upstream_road.digest(raw, reads)
        found.entries.append(Heard(identity, raw, said, unreadable=identity in unreadable))
    found.entries += [
        Heard(identity, b"", "", over=True, canceled=over[identity]) for identity in sorted(over.keys() - parts.keys())
    ]
    return found


def _take_in(turn: Turn, answers: Answers, settings: Settings, seconds: float, takes_gone: bool = False) -> None:
    """Also of an answer that is not complete what it has: that counts for nothing that it lacks. What there is no time
    for is new again, or gone, at the next question; one entry is always taken."""
    source, limits = turn.source, settings.limits
    asked = question(source, settings, turn.at).asked
    found = listing_of(answers, source, asked, settings)
    known = db.read(_known, source.key)
    if not takes_gone:
        found.doubt = _doubt(found, known, source, asked, settings)
    gone = _missing(found, known) if takes_gone else gone_of(found, known, source)
    counts = Counter({"answers": len(answers.identifiers), "beside": found.beside,
                      "unreadable": sum(one.unreadable for one in found.entries)})  # fmt: skip
    todo = [(outcome_of(one, known.get(one.identity)), one) for one in kept_of(found, limits)]
    todo += [(GONE, Heard(identity, b"", "")) for identity in gone]
    until = time.monotonic() + seconds
    for outcome, one in todo:
        if outcome in (NEW, CHANGED, GONE):
            if found.is_cut:
                outcome = LATER
            elif not _renew(turn, limits):
                return
            elif outcome == GONE:
                _cancel(turn, known[one.identity], asked, settings)
            elif _say(turn, one.raw, one.identity, settings, digest=one.digest).state != "APPLIED":
                outcome = REFUSED
            found.is_cut = time.monotonic() >= until
        counts[outcome] += 1
    found.is_cut = counts[LATER] > 0
    # Last: who dies before that says it again.
    if db.run(_settle, turn, found, known, gone[: counts[GONE]], limits):
        _finish(turn, found, {**counts, GONE: counts[GONE]}, settings)


def kept_of(found: Listing, limits: Limits) -> list[Heard]:
    """Of what cannot be read only some: it is kept for a person to look at, not because it says anything."""
    unreadable = [one for one in found.entries if one.unreadable]
    return [one for one in found.entries if not one.unreadable] + unreadable[: limits.upstream_unreadable_max]


def outcome_of(one: Heard, known: UpstreamEntry | None) -> str:
    if one.over:
        return OVER
    if known is None:
        return NEW
    if known.digest == one.digest and known.gone_at is None:
        return UNCHANGED if not known.refusal else REFUSED
    return CHANGED


def _known(session: Session, source_pk: int) -> dict[str, UpstreamEntry]:
    rows = session.exec(select(UpstreamEntry).where(UpstreamEntry.upstream_pk == source_pk))
    return {row.identity: row for row in rows}


def _say(
    turn: Turn, raw: bytes, identity: str, settings: Settings, *, digest: str = "", kind: str = upstream_road.LISTED
) -> Message:
    """Through the inbox. What is refused is said again when it has changed; until then a person may replay it."""
    received = upstream_road.received(turn.source, raw, identity, turn.at, settings, kind)
    answer = inbox.take(received, upstream_road.ROAD)
    row = db.read(lambda session: session.get_one(Message, answer.message_pk))
    if row.state != "APPLIED" and kind == upstream_road.LISTED:
        db.run(_refuse, turn.source.key, identity, digest, row, now=turn.at)
    return row


def _refuse(
    session: Session, source_pk: int, identity: str, digest: str, message: Message, *, now: dt.datetime
) -> None:
    db.insert_new(session, UpstreamEntry, {"upstream_pk": source_pk, "identity": identity, "last_at": now})
    where = f" at {message.error_place}" if message.error_place else ""
    refusal = f"{message.error_code}{where}: {message.error_text} (message {message.key} of the journal)"
    values = {"digest": digest, "message_pk": message.key, "refusal": refusal[:ERROR_CHARACTERS_MAX], "last_at": now}
    session.exec(
        update(UpstreamEntry)
        .where(col(UpstreamEntry.upstream_pk) == source_pk, col(UpstreamEntry.identity) == identity)
        .values(**values, gone_at=None)
    )


def gone_of(found: Listing, known: Mapping[str, UpstreamEntry], source: Upstream) -> list[str]:
    """What counts as gone from this answer on."""
    return [one for one in _missing(found, known) if known[one].missed + 1 >= source.gone_after]


def _missing(found: Listing, known: Mapping[str, UpstreamEntry]) -> list[str]:
    """An answer that is not complete lacks nothing."""
    listed, asked = found.listed, known if found.is_complete else {}
    return [identity for identity, row in asked.items() if identity not in listed and row.gone_at is None]


def _doubt(
    found: Listing, known: Mapping[str, UpstreamEntry], source: Upstream, asked: Tree, settings: Settings
) -> str:
    """A provider that has lost its list answers as one that has done its work. What is not asked for any more, such as
    yesterday's, is not missing."""
    missing = _missing(found, known) if source.gone == "cancel" else []
    seen = len(found.listed & known.keys())
    if not are_few(len(missing), seen):
        return ""
    still = sum(_still_asked_for(source, known[one], asked, settings) is not None for one in missing)
    return FEW.format(shlex.quote(source.name)) if are_few(still, seen) else ""


def are_few(missing: int, seen: int) -> bool:
    return missing > max(MISSING_MAX, (missing + seen) / 2)


def _settle(
    session: Session, turn: Turn, found: Listing, known: Mapping[str, UpstreamEntry], gone: Sequence[str],
    limits: Limits,
) -> bool:  # fmt: skip
    """Who was listed, and who was not. As _hold."""
    if not _hold(session, turn, turn.until):
        return False
    seen = [known[one].key for one in sorted(found.listed & known.keys())]
    missing = [known[one].key for one in _missing(found, known)]
    over = [known[one].key for one in gone]
    for pks, values in (
        (seen, {"last_at": turn.at, "missed": 0}),
        (missing, {"missed": UpstreamEntry.missed + 1}),
        (over, {"gone_at": turn.at}),
    ):
        for part in _parts(pks):
            session.exec(update(UpstreamEntry).where(col(UpstreamEntry.pk).in_(part)).values(**values))
    old = turn.at - dt.timedelta(seconds=limits.upstream_keep_seconds)
    # An answer that is not complete lacks nothing, so that nothing of it ever counts as gone.
    living = select(ScheduledStep.pk).where(col(ScheduledStep.status).in_(items.LIVE))
    is_over = or_(
        col(UpstreamEntry.gone_at).is_not(None),
        col(UpstreamEntry.step_pk).is_(None),
        col(UpstreamEntry.step_pk).not_in(living),
    )
    session.exec(
        delete(UpstreamEntry).where(
            col(UpstreamEntry.upstream_pk) == turn.source.key, col(UpstreamEntry.last_at) < old, is_over
        )
    )
    return True


def _parts(pks: Sequence[int]) -> list[Sequence[int]]:
    return [pks[at : at + AT_ONCE] for at in range(0, len(pks), AT_ONCE)]


def _cancel(turn: Turn, row: UpstreamEntry, asked: Tree, settings: Settings) -> None:
    source = turn.source
    raw = _still_asked_for(source, row, asked, settings) if source.gone == "cancel" else None
    if raw is not None:
        _say(turn, raw, row.identity, settings, kind=upstream_road.GONE)


def _still_asked_for(source: Upstream, row: UpstreamEntry, asked: Tree, settings: Settings) -> bytes | None:
    """As it was listed. None: another day, another modality is not gone; what was refused never was here."""
    if row.message_pk is None or row.refusal:
        return None
    raw = db.read(lambda session: session.get_one(Message, row.message_pk).raw)
    try:
        item = upstream_item.read(upstream_item.parted(raw)[0], upstream_road.reads_of(source, settings))
        return raw if upstream_item.is_asked_for(item, asked, but=()) else None
    except BrokerError:
        return None


def _finish(turn: Turn, found: Listing, counts: dict[str, int], settings: Settings) -> None:
    source, now = turn.source, turn.at
    failures = source.failures + 1 if found.error else 0
    values: dict[str, Any] = {
        "failures": failures, "tried_at": now, "counts": counts,
        "last_error": (found.error or found.doubt)[:ERROR_CHARACTERS_MAX],
        "stale_since": (source.stale_since or now) if found.error else None,
        **({} if found.error else {"answered_at": now}),
    }  # fmt: skip
    wait = 0 if found.is_cut else pause(failures, source.every_seconds, settings.limits)
    db.run(_hold, turn, clock.now() + dt.timedelta(seconds=wait), **values)
    if found.error:
        log.get().warning("upstream.failed", upstream=source.name, error=found.error, failures=failures)
    elif found.doubt:
        log.get().warning("upstream.few", upstream=source.name, **counts)
    elif any(counts.get(what) for what in (NEW, CHANGED, GONE)):
        log.get().info("upstream.asked", upstream=source.name, **counts)


def pause(failures: int, every_seconds: float, limits: Limits) -> float:
    """Until the next question."""
    doublings = failures - limits.upstream_failures_max + 1
    if doublings <= 0:
        return every_seconds
    longer = every_seconds * 2.0 ** min(doublings, DOUBLINGS_MAX)
    return max(every_seconds, min(longer, limits.upstream_retry_seconds_max))


# What would be


class _Undone(Exception):
    """Takes back what was tried; `done`: what it came to."""

    def __init__(self, done: Done) -> None:
        self.done = done


def attempt(name: str, settings: Settings) -> dict[str, Any]:
    """Ask now, and tell of each entry what would become of it. Nothing is changed. Raises UnknownKey."""
    source, now = db.read(the, name), clock.now()
    asked = question(source, settings, now)
    answers = asked.ask()
    found = listing_of(answers, source, asked.asked, settings)
    known = db.read(_known, source.key)
    entries = [_tried(source, one, known.get(one.identity), now, settings) for one in found.entries]
    counts: dict[str, int] = {"answers": len(answers.identifiers), "beside": found.beside}
    for one in entries:
        counts[one["outcome"]] = counts.get(one["outcome"], 0) + 1
    missing = [known[one] for one in _missing(found, known)]
    found.doubt = _doubt(found, known, source, asked.asked, settings)
    error = found.error or found.doubt
    return {"name": name, "complete": found.is_complete, "error": error, "counts": counts, "entries": entries,
            "missing_orders": sorted({row.order_pk for row in missing if row.order_pk})}  # fmt: skip


def _tried(
    source: Upstream, one: Heard, known: UpstreamEntry | None, now: dt.datetime, settings: Settings
) -> dict[str, Any]:
    outcome, why, shown = outcome_of(one, known), known.refusal if known else "", dict[str, Any]()
    order_pk = known.order_pk if known else None
    if one.raw:
        try:
            received = upstream_road.received(source, one.raw, one.identity, now, settings)
            command, _ = upstream_road.said(received)
            shown = _names(command.entry)
            if outcome in (NEW, CHANGED):
                done = _rehearsed(command, Cause(now, received.sender, settings.site, settings.limits, 0))
                why, order_pk = done.words.partition("; ")[2], done.order_pk
        except BrokerError as error:
            outcome, why = REFUSED, f"{error.err} {error}"
    elif one.over:
        why = "is cancelled there" if one.canceled else "has begun or ended there"
    if order_pk is not None and db.read(lambda session: session.get(ImagingOrder, order_pk)) is None:
        order_pk = None  # it would be made
    names = ("accession_number", "requested_procedure_id", "sps_id", "modality", "start_date", "start_time")
    return {"outcome": outcome, **{name: shown.get(name, "") for name in names}, "order_id": order_pk, "why": why}


def _names(entry: upstream_item.Entry) -> dict[str, Any]:
    step = entry.step
    return {
        "accession_number": entry.command.accession_number, "sps_id": step.sps_id, "modality": step.modality or "",
        "requested_procedure_id": entry.procedure.requested_procedure_id, "start_date": step.start_date or "",
        "start_time": step.start_time or "",
    }  # fmt: skip


def _rehearsed(command: Any, cause: Cause) -> Done:
    def rehearse(session: Session) -> None:
        done = effects.carry_out(session, command, cause)
        session.flush()
        raise _Undone(done)

    try:
        db.run(rehearse)
    except _Undone as undone:
        return undone.done
    raise AssertionError("unreachable")


# What is shown


def rows(session: Session, limits: Limits, now: dt.datetime) -> list[dict[str, Any]]:
    found = session.exec(select(Upstream).order_by(col(Upstream.priority), col(Upstream.name))).all()
    return [_shown(session, source, limits, now) for source in found]


def _shown(session: Session, source: Upstream, limits: Limits, now: dt.datetime) -> dict[str, Any]:
    """breaker: closed, open (it waits longer), half-open (the next question decides); off: it is not asked."""
    mine = select(func.count()).select_from(UpstreamEntry).where(UpstreamEntry.upstream_pk == source.key)
    living = mine.where(col(UpstreamEntry.gone_at).is_(None))
    times = ("next_at", "tried_at", "answered_at", "stale_since")
    return {
        **source.model_dump(exclude={"pk", "created_at", "updated_at", *times}),
        "breaker": breaker(source, limits, now),
        "entries": session.exec(living).one(),
        "refused": session.exec(living.where(UpstreamEntry.refusal != "")).one(),
        **{name: at and clock.iso(at) for name in times for at in [getattr(source, name)]},
    }


def breaker(source: Upstream, limits: Limits, now: dt.datetime) -> str:
    if not source.enabled:
        return "off"
    if source.failures < limits.upstream_failures_max:
        return "closed"
    return "open" if source.next_at is not None and source.next_at > now else "half-open"


def stale_since(session: Session) -> dict[str, dt.datetime]:
    """By name, the providers that are away, or are not asked any more; since when."""
    return {source.name: at for source in session.exec(select(Upstream)) if (at := _stale(source)) is not None}


def _stale(source: Upstream) -> dt.datetime | None:
    return source.stale_since or (None if source.enabled else source.answered_at)


def stale_steps(session: Session, step_pks: Collection[int]) -> dict[int, dt.datetime]:
    """Those of these steps that are known from lists all of which are away, and since when the last of them is."""
    found: dict[int, list[dt.datetime | None]] = {}
    for part in _parts(list(step_pks)):
        query = select(UpstreamEntry.step_pk, Upstream).where(UpstreamEntry.upstream_pk == Upstream.pk)
        living = query.where(col(UpstreamEntry.step_pk).in_(part), col(UpstreamEntry.gone_at).is_(None))
        for step_pk, source in session.exec(living):
            found.setdefault(step_pk or 0, []).append(_stale(source))
    return {pk: max(filter(None, times)) for pk, times in found.items() if all(times)}


def marked(session: Session, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a list with `step_id`, each with `stale_since`: None where somebody still stands by it."""
    stale = stale_steps(session, [row["step_id"] for row in rows])
    return [
        {**row, "stale_since": clock.iso(stale[row["step_id"]]) if row["step_id"] in stale else None} for row in rows
    ]
