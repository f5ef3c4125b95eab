"""C-FIND on the Modality Worklist (PS3.4 K): translates, decides nothing."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from zoneinfo import ZoneInfo

from broker import access, clock, db, log
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.habits import NO_HABITS, Directory
from broker.dicom.pdu import Gone, Violation
from broker.dicom.service import C_CANCEL_RQ, C_FIND_RQ, NodeInfo, Offer, Request, Response, refusal
from broker.dicom.tree import Tree
from broker.dicom.verification import UNCOMPRESSED
from broker.errors import BrokerError, DatabaseAway, TooMany, Unreadable
from broker.mwl import answers, keys, matching, plan, view, worklist
from broker.mwl.answers import Answer, Look
from broker.mwl.keys import Shape
from broker.mwl.offered import Asked, Loss, Recorder, Source
from broker.mwl.plan import Plan
from broker.mwl.snapshot import WAIT_SECONDS_MAX, Snapshot
from broker.mwl.view import View

MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
MATCH, MATCH_WITH_UNSUPPORTED_KEYS, DONE, CANCELLED = 0xFF00, 0xFF01, 0x0000, 0xFE00
OUT_OF_RESOURCES, CANNOT_UNDERSTAND, UNABLE_TO_PROCESS = 0xA700, 0xC001, 0xC010
UNDERSTOOD_MAX, ANSWERS_MAX = 1_024, 32_768  # kept: a device repeats its query, and most items stay as they are
LOOK_EVERY = 16  # answers, for a C-CANCEL
VIEW_SECONDS = 10  # as long a view holds: its borders in time (what began 24 hours ago, today) lag by so much
KEPT_BYTES_MAX = 16 * 1024  # of an identifier


Looks = tuple[bytes, str, tuple[str, ...] | None]  # data set, status, stations


@dataclass(frozen=True)
class Query:
    """An identifier, read once. keys: those to be matched, in the site's zone. declared: the set of its text."""

    keys: Tree
    wanted: Shape
    status: int
    fuzzy: bool
    asks_for_zone: bool
    readable: bool
    whole: Tree


@dataclass(frozen=True, eq=False)
class Kept:
    """What was worked out for a source, and holds while its view does."""

    query: Query
    what: View
    directory: Directory
    plan: Plan
    look: Look
    answers: dict[Looks, Answer]


class WorklistService:
    right = "worklist"

    def __init__(self, settings: Settings, recorder: Recorder, snapshot: Snapshot) -> None:
        self.settings, self.recorder, self.snapshot = settings, recorder, snapshot
        self.zone = ZoneInfo(settings.site.timezone)
        self._read = lru_cache(UNDERSTOOD_MAX)(self._understand)
        self._view = lru_cache(UNDERSTOOD_MAX)(self._see)
        self._kept: dict[tuple[Source, bytes], Kept] = {}
        self._answers_kept = 0

    def handle(self, request: Request) -> Iterable[Response]:
        now = clock.now()
        source = _source(request)
        try:
            kept = self._understood(source, request, now)
            found, is_live = self._find(kept)
        except Exception as error:
            response = _refused(error)
            self.recorder.note(Asked(source, now, (), response.status))
            if not isinstance(error, BrokerError):
                raise
            return (response,)
        return self._answers(request, source, kept, found, now, is_live)

    def _find(self, kept: Kept) -> tuple[list[worklist.Found], bool]:
        """And whether it is the database that answered: while it is away, the snapshot does (durability.md 1.7)."""
        asked = (kept.plan, kept.what, kept.directory)
        if not self.snapshot.is_asked_first:
            try:
                with db.within(WAIT_SECONDS_MAX):
                    found = worklist.find(*asked, fuzzy=kept.query.fuzzy)
                self.snapshot.is_over()
                return found, True
            except Exception as error:
                if not db.is_away(error):
                    raise
                self.snapshot.is_needed(error)
        return worklist.find(*asked, fuzzy=kept.query.fuzzy, on=self.snapshot.engine(kept.what.ae_title)), False

    def _understood(self, source: Source, request: Request, now: dt.datetime) -> Kept:
        """Worked out once for a source; anew where its view, the site's titles or the query are others."""
        node, is_kept = request.peer.node, source.identifier is not None
        read = self._read if is_kept else self._understand
        query = read(request.dataset, request.transfer_syntax, request.extended, _tolerates_level(node))
        if not query.readable:
            log.get().warning("worklist.unknown_character_set", ae_title=request.peer.ae_title)
        what = self._view(node, request.peer.ae_title, int(now.timestamp()) // VIEW_SECONDS)
        directory = access.directory()
        kept = self._kept.get((source, request.extended)) if is_kept else None
        if kept is None or kept.what is not what or kept.directory is not directory or kept.query is not query:
            kept = self._work_out(request, query, what, directory, kept)
            if len(self._kept) >= UNDERSTOOD_MAX:
                self._kept.clear()
            if is_kept:
                self._kept[source, request.extended] = kept
        return kept

    def _work_out(self, request: Request, query: Query, what: View, directory: Directory, before: Kept | None) -> Kept:
        if tags := matching.lenient(query.whole):
            told = [f"{tag:08X}" for tag in tags]
            log.get().info("worklist.lenient_key", ae_title=request.peer.ae_title, tags=told)
        look = answers.look_of(request.peer.node, self.settings, query.whole)
        made = before.answers if before and before.look == look and before.query is query else {}
        return Kept(query, what, directory, plan.of(query.keys, what, directory, fuzzy=query.fuzzy), look, made)

    def _understand(self, identifier: bytes, syntax: str, extended: bytes, tolerates_level: bool) -> Query:
        query = tree.read(identifier, syntax, self.settings.limits, any_charset=True)
        if tolerates_level:
            query.pop(keys.QUERY_LEVEL, None)
        status = MATCH if keys.check(query) else MATCH_WITH_UNSUPPORTED_KEYS
        zone = matching.zone_of(query)
        return Query(
            keys=matching.in_zone(query, zone, self.zone) if zone and extended[3:4] == b"\x01" else query,
            wanted=keys.shape(query),
            status=status,
            fuzzy=extended[2:3] == b"\x01",
            asks_for_zone=keys.TIMEZONE in query,
            readable=keys.is_readable(query),
            whole=query,
        )

    def _see(self, node: NodeInfo | None, ae_title: str, turn: int) -> View:
        return view.of(node, ae_title, self.settings, dt.datetime.fromtimestamp(turn * VIEW_SECONDS, dt.UTC))

    def _keep(self, kept: Kept, looks: Looks, made: Answer) -> None:
        self._answers_kept += 1
        if self._answers_kept > ANSWERS_MAX:
            self._kept.clear()
            kept.answers.clear()
            self._answers_kept = 0
        kept.answers[looks] = made

    def _answers(
        self,
        request: Request,
        source: Source,
        kept: Kept,
        found: list[worklist.Found],
        now: dt.datetime,
        is_live: bool,
    ) -> Iterator[Response]:
        shown: list[tuple[int, int, str]] = []
        losses: list[Loss] = []
        last = UNABLE_TO_PROCESS
        try:
            for n, one in enumerate(found):
                if not n % LOOK_EVERY and request.cancelled():
                    last = CANCELLED
                    break
                made = self._made(request, kept, one)
                if made.lost or made.withheld:
                    losses.append(Loss(one.step_pk, one.version, made.lost, made.withheld))
                if not made.withheld:
                    shown.append((one.step_pk, one.version, one.status))
                    yield Response(kept.query.status, made.dataset)
            else:
                last = CANCELLED if request.cancelled_at_the_end() else DONE
        except (GeneratorExit, Gone, Violation):  # the device hung up in between
            last = CANCELLED
            raise
        finally:
            told = tuple(shown[: request.sent()] if last == CANCELLED else shown)
            self.recorder.before_the_end(source.ae_title, told, now, waits=is_live)
            if is_live:
                self.recorder.tell(source.ae_title, losses, now)
            sets = kept.look.character_sets
            self.recorder.note(Asked(source, now, told, last, sets[0], kept.plan, kept.what, kept.directory))
        yield Response(last)

    def _made(self, request: Request, kept: Kept, one: worklist.Found) -> Answer:
        looks = (one.dataset, one.status, one.stations)
        made = kept.answers.get(looks)
        if made is None:
            zone = self.zone if kept.query.asks_for_zone or self.settings.dicom.issue_timezone else None
            made = answers.answer(
                one.dataset, one.status, kept.query.wanted, request.transfer_syntax, kept.look, zone, one.stations
            )
            self._keep(kept, looks, made)
        return made


def _source(request: Request) -> Source:
    """Nobody keeps an identifier that no device sends."""
    peer, identifier = request.peer, request.dataset if len(request.dataset) <= KEPT_BYTES_MAX else None
    return Source(peer.ae_title, peer.called, peer.address, identifier, request.transfer_syntax)


def _refused(error: Exception) -> Response:
    """Statuses of conformance.md 1.9 where C-FIND has others than the error's table. Of any other error the device is
    told by its association, with the same status."""
    if not isinstance(error, BrokerError):
        return Response(OUT_OF_RESOURCES if db.is_away(error) else UNABLE_TO_PROCESS)
    own = {TooMany: OUT_OF_RESOURCES, DatabaseAway: OUT_OF_RESOURCES, Unreadable: CANNOT_UNDERSTAND}
    response = refusal(error, dimse_n=False)
    return replace(response, status=own.get(type(error), response.status))


def _tolerates_level(node: NodeInfo | None) -> bool:
    return "query_level" in (node.habits if node else NO_HABITS).quirks


def extended(settings: Settings) -> Callable[[bytes], bytes]:
    """SOP class extended negotiation (PS3.4 K.5.1): as many bytes as were asked, three or four; 1 for fuzzy names and
    time zone adjustment where they were asked for and this site does them."""
    does = (True, True, settings.worklist.fuzzy_names, settings.worklist.timezone_adjustment)

    def answer(asked: bytes) -> bytes:
        wants = (1, 1, *(asked[2:4] or b"\0"))
        return bytes(want == 1 and done for want, done in zip(wants, does, strict=False))

    return answer


def offers(settings: Settings, recorder: Recorder, snapshot: Snapshot) -> Iterable[tuple[str, Offer]]:
    yield (
        MODALITY_WORKLIST_FIND,
        Offer(
            WorklistService(settings, recorder, snapshot), UNCOMPRESSED, frozenset({C_FIND_RQ, C_CANCEL_RQ}),
            extended=extended(settings),
        ),
    )  # fmt: skip
