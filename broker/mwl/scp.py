"""C-FIND on the Modality Worklist (PS3.4 K): translates, decides nothing."""

from collections.abc import Iterable, Iterator
from zoneinfo import ZoneInfo

from broker import clock, db, log
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.service import C_CANCEL_RQ, C_FIND_RQ, Offer, Request, Response
from broker.dicom.verification import UNCOMPRESSED
from broker.errors import TooMany, Unreadable
from broker.mwl import worklist
from broker.mwl.offered import Loss, Recorder

MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
MATCH, MATCH_WITH_UNSUPPORTED_KEYS, DONE, CANCELLED = 0xFF00, 0xFF01, 0x0000, 0xFE00
OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0xA700, 0xC001


class WorklistService:
    right = "worklist"

    def __init__(self, settings: Settings, recorder: Recorder) -> None:
        self.settings, self.recorder = settings, recorder
        self.zone = ZoneInfo(settings.site.timezone)

    def handle(self, request: Request) -> Iterable[Response]:
        try:
            query = tree.read(request.dataset, request.transfer_syntax, self.settings.limits, any_charset=True)
        except Unreadable as error:
            return (Response(CANNOT_UNDERSTAND, comment=str(error)),)
        if not worklist.is_readable(query):
            log.get().warning("worklist.unknown_character_set", ae_title=request.peer.ae_title)
        supported = worklist.check(query)
        try:
            found = db.read(worklist.search, query, self.settings.limits)
        except TooMany as error:
            return (Response(OUT_OF_RESOURCES, comment=str(error)),)
        return self._answers(request, query, found, MATCH if supported else MATCH_WITH_UNSUPPORTED_KEYS)

    def _answers(
        self, request: Request, query: tree.Tree, found: list[worklist.Found], status: int
    ) -> Iterator[Response]:
        wanted, now = worklist.shape(query), clock.now()
        setting = self._character_set(request, query)
        asked = worklist.TIMEZONE in query or self.settings.dicom.issue_timezone
        zone = self.zone if asked else None
        shown: list[tuple[int, int]] = []
        losses: list[Loss] = []
        last = DONE
        try:
            for one in found:
                if request.cancelled():
                    last = CANCELLED
                    break
                made = worklist.answer(one.dataset, one.status, wanted, request.transfer_syntax, setting, zone)
                if made.lost or made.withheld:
                    losses.append(Loss(one.step_pk, one.version, made.lost, made.withheld))
                if not made.withheld:
                    shown.append((one.step_pk, one.version))
                    yield Response(status, made.dataset)
        finally:  # also where the device hangs up in between
            self.recorder.note(request.peer.ae_title, shown, now)
            self.recorder.tell(request.peer.ae_title, losses, now)
        yield Response(last)

    def _character_set(self, request: Request, query: tree.Tree) -> str:
        node = request.peer.node
        setting = (node.character_set if node else "") or self.settings.worklist_character_set
        if setting == "REQUEST":
            declared = query.get(tree.CHARSET, ("CS", "ASCII"))[1]
            setting = declared if isinstance(declared, str) and worklist.can_answer_in(declared) else "ISO_IR 192"
        return setting


def extended(asked: bytes) -> bytes:
    """SOP class extended negotiation (PS3.4 K.5.1): as many bytes as were asked, three or four; neither fuzzy matching
    nor time zone adjustment is done."""
    return b"\x01\x01\x00\x00"[: max(3, min(4, len(asked)))]


def offers(settings: Settings, recorder: Recorder) -> Iterable[tuple[str, Offer]]:
    yield (
        MODALITY_WORKLIST_FIND,
        Offer(
            WorklistService(settings, recorder), UNCOMPRESSED, frozenset({C_FIND_RQ, C_CANCEL_RQ}), extended=extended
        ),
    )
