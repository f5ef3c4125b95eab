"""Guards between processes. A row: "this one is mine until T". The data folder: "mine for as long as I live".

A claim of rows is one conditional UPDATE, so that two processes can never both win one; a dead process costs one lease.
The folder's lock is the kernel's and ends with the process, however it ends."""

import datetime as dt
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import ColumnElement, or_, update
from sqlmodel import Session, col, select

from broker.errors import ConfigError
from broker.model.images import Study

OWNER = f"{socket.gethostname()}:{os.getpid()}"


def claim_studies(
    session: Session, which: ColumnElement[bool], *, now: dt.datetime, seconds: float, limit: int
) -> list[int]:
    """Keys of at most `limit` studies for which `which` holds, now leased to this process."""
    due = (
        select(Study.pk)
        .where(which)
        .where(or_(col(Study.lease_until).is_(None), col(Study.lease_until) < now))
        .where(or_(col(Study.not_before).is_(None), col(Study.not_before) <= now))
        .order_by(col(Study.last_received_at))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = []
    for pk in session.exec(due).all():
        assert pk is not None
        won = session.exec(
            update(Study)
            .where(col(Study.pk) == pk, or_(col(Study.lease_until).is_(None), col(Study.lease_until) < now))
            .values(lease_owner=OWNER, lease_until=now + dt.timedelta(seconds=seconds))
        )
        if won.rowcount == 1:
            claimed.append(pk)
    return claimed


def release_study(session: Session, pk: int, *, not_before: dt.datetime | None = None) -> None:
    session.exec(
        update(Study)
        .where(col(Study.pk) == pk, col(Study.lease_owner) == OWNER)
        .values(lease_owner="", lease_until=None, not_before=not_before)
    )


def renew_study(session: Session, pk: int, *, now: dt.datetime, seconds: float) -> bool:
    """Hold on to a claimed study; False where it is no longer ours."""
    held = session.exec(
        update(Study)
        .where(col(Study.pk) == pk, col(Study.lease_owner) == OWNER)
        .values(lease_until=now + dt.timedelta(seconds=seconds))
    )
    return held.rowcount == 1


def hold_folder(folder: Path) -> Callable[[], None]:
    """What is received into `folder` is this process's alone, until the returned function is called. Whoever put it in
    order beside its owner would take half-received objects for those of a process that was killed.

    Raises ConfigError where another process has it."""
    file = (folder / "owner.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        taken = f"is in use by another broker ({file.read()}); stop that one, or set BROKER_DATA_DIR"
        file.close()
        why = taken if isinstance(error, BlockingIOError) else f"cannot be locked: {error.strerror}"
        raise ConfigError("data_dir", f"{folder.resolve()} {why}") from None
    file.truncate(0)
    file.write(OWNER)
    file.flush()
    return file.close
