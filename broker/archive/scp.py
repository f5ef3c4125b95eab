"""C-STORE (PS3.4 B): bytes to staging, staging to a row, then 0000."""

from collections.abc import Iterable

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from broker import clock, db, log
from broker.archive import ingest
from broker.archive.ingest import Registered
from broker.archive.intake import accept
from broker.archive.staging import Staged, Staging, StagingSink
from broker.config import Settings
from broker.dicom.service import C_STORE_RQ, Command, Offer, Peer, Registry, Request, Response
from broker.dicom.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES
from broker.errors import DatabaseAway, Unreadable


class StorageService:
    right = "store"

    def __init__(self, settings: Settings, staging: Staging) -> None:
        self._settings, self._staging = settings, staging
        self._doubtful: set[str] = set()  # staged files of which the database did not say whether they got a row

    def open(self, peer: Peer, command: Command, transfer_syntax: str) -> StagingSink:
        return self._staging.open_sink(peer, command, transfer_syntax)

    def handle(self, request: Request) -> Iterable[Response]:
        sink = request.sink
        if sink is None:
            raise Unreadable("data set", "a C-STORE has one")
        sink.finish()  # raises where the object was refused on its way in
        assert isinstance(sink, StagingSink)
        assert sink.staged is not None
        self._register(sink.staged)
        yield Response(0x0000)

    def _register(self, staged: Staged) -> Registered:
        try:
            registered = accept(self._settings, self._staging, staged, now=clock.now())
        except (DBAPIError, PoolTimeout) as error:
            # The commit may have been the last thing that worked, so the file stays until the database can be asked.
            self._doubtful.add(staged.key)
            log.get().error("instance.no_database", kind=type(error).__name__)
            raise DatabaseAway("database") from None
        self._settle_doubts()
        return registered

    def _settle_doubts(self) -> None:
        """Remove the files that got no row: their senders were refused and send again."""
        doubtful = set(self._doubtful)
        if not doubtful:
            return
        for key in doubtful - db.read(ingest.with_row, doubtful):
            self._staging.remove(key)
        self._doubtful -= doubtful


def register(registry: Registry, settings: Settings, staging: Staging) -> None:
    """Every storage class that the tables know, and any private one: received bytes are kept as they are (level 2)."""
    offer = Offer(StorageService(settings, staging), TRANSFER_SYNTAXES, frozenset({C_STORE_RQ}), is_storage=True)
    for sop_class in STORAGE_CLASSES:
        registry.add(sop_class, offer)
    registry.any_storage = offer
