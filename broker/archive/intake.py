"""From a staged file to its row: what C-STORE and the recovery at start have in common."""

import datetime as dt
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

from broker import db, log
from broker.archive import ingest
from broker.archive.digest import Comparison, Digest, canonical_digest
from broker.archive.ingest import Registered
from broker.archive.staging import Staged, Staging
from broker.archive.store import Store, make_store
from broker.config import Limits, Settings
from broker.errors import BrokerError, NoRoom, UnknownKey
from broker.model.images import Instance

COMPARISONS_MAX = 4  # each finds that one more object with this UID came in between


def accept(
    settings: Settings, staging: Staging, staged: Staged, *, now: dt.datetime, adopted: bool = False
) -> Registered:
    """The row for a staged object; the copy of what is known already is removed, once its row is certain."""
    comparison = None
    for _ in range(COMPARISONS_MAX):
        registered = db.run(ingest.register, staged, now=now, comparison=comparison, adopted=adopted)
        if not registered.compare:
            if registered.duplicate:
                staging.remove(staged.key)
            return registered
        comparison = _compare(settings, staging, staged, registered.compare)
    staging.remove(staged.key)
    raise NoRoom("(0008,0018)", "several objects with this UID come at once: send again later")


def _compare(settings: Settings, staging: Staging, staged: Staged, known: Sequence[Instance]) -> Comparison:
    """Reads the files, so outside of any transaction."""
    store, limits = make_store(settings), settings.limits
    with staging.path(staged.key).open("rb") as file:
        own = canonical_digest(file, staged.transfer_syntax, limits)
    others: dict[int, Digest | None] = {}
    same = set()
    for one in known:
        if one.canonical_digest:
            others[one.key] = Digest(*one.canonical_digest.split(":"))
        else:
            others[one.key] = _digest(partial(_open_received, staging, store, one), one, limits)
        rendition = _digest(partial(store.open, one.rendition_key), one, limits) if one.rendition_key else None
        if own in (others[one.key], rendition):
            same.add(one.key)
    return Comparison(own, others, frozenset(same))


def _open_received(staging: Staging, store: Store, instance: Instance) -> BinaryIO:
    if instance.store_key:
        return store.open(instance.store_key)
    if instance.staged_node == staging.node:
        return staging.path(instance.staged_key).open("rb")
    raise UnknownKey(f"instance {instance.key}", "is in the staging of another node")


def _digest(open_file: Callable[[], BinaryIO], instance: Instance, limits: Limits) -> Digest | None:
    try:
        with open_file() as file:
            return canonical_digest(file, instance.transfer_syntax_uid, limits)
    except (OSError, BrokerError) as error:
        log.get().warning("instance.not_compared", instance=instance.key, error=type(error).__name__)
        return None
