"""C-STORE (PS3.4 B): bytes to staging, staging to a row, then 0000."""

from collections.abc import Iterable
from contextlib import suppress

from broker import clock, log
from broker.archive.ingest import Registered
from broker.archive.intake import InDoubt, accept
from broker.archive.staging import Staged, Staging, StagingSink
from broker.config import Settings
from broker.dicom.service import C_STORE_RQ, Command, Offer, Peer, Registry, Request, Response
from broker.dicom.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES
from broker.errors import BrokerError, Unreadable


class StorageService:
    right = "store"

    def __init__(self, settings: Settings, staging: Staging) -> None:
        self._settings, self._staging = settings, staging

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
        """Whoever is refused sends again, so the file goes; but not while it may have a row, or get one yet: what of it
        is true, the recovery at the next start finds out."""
        try:
            with self._staging.no_room():
                return accept(self._settings, self._staging, staged, now=clock.now())
        except InDoubt:
            raise
        except BrokerError:
            self._staging.remove(staged.key)
            raise
        except Exception:  # a bug of ours, which must not cost the exposure
            log.get().exception("instance.failed")
            failed = Unreadable("data set", "cannot be filed, see the broker's log")
            with suppress(OSError):
                self._staging.refuse(self._staging.path(staged.key), failed)
            raise failed from None


def register(registry: Registry, settings: Settings, staging: Staging) -> None:
    """Every storage class that the tables know, and any private one: received bytes are kept as they are (level 2)."""
    offer = Offer(StorageService(settings, staging), TRANSFER_SYNTAXES, frozenset({C_STORE_RQ}), is_storage=True)
    for sop_class in STORAGE_CLASSES:
        registry.add(sop_class, offer)
    registry.any_storage = offer
