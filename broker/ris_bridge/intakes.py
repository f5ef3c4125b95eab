"""Where orders are fetched: which are due, and whose turn it is.

`next_at` is schedule and lease in one: whoever moves it on has the intake until then, and what he writes later counts
only while it is still his."""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlmodel import Session, col, or_, select, update

from broker.model.site import Intake, Sender

ERROR_CHARACTERS_MAX = 500


@dataclass(frozen=True)
class Turn:
    """until: of the lease; the intake's `next_at` while nobody else has taken it."""

    intake: Intake
    until: dt.datetime


def peer(intake: Intake) -> str:
    """What the journal says of where a message came from."""
    return f"{intake.kind}:{intake.name}"


def of_peer(session: Session, said: str) -> Intake | None:
    """The intake that a message of the journal came by; None: another road, or it is there no more."""
    kind, _, name = said.partition(":")
    return session.exec(select(Intake).where(Intake.kind == kind, Intake.name == name)).first()


def watched_by(session: Session, path: str, name: str) -> str | None:
    """The intake beside that one that watches the folder, however its path is written. Links are not followed: where
    they lead may change."""
    rows = session.exec(select(Intake).where(Intake.kind == "folder", Intake.name != name).order_by(col(Intake.name)))
    return next((row.name for row in rows if _folder(row.path) == _folder(path)), None)


def _folder(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def sender(intake: Intake) -> Sender:
    """Whoever may put files there, or answer there, may send: the administrator has said so."""
    return Sender(name=peer(intake), mapping=intake.mapping, character_set=intake.character_set)


def keeps_secrets(url: str) -> bool:
    """Whether nobody on the way can read what is sent there."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname == "localhost" or _is(parts.hostname or "", "is_loopback")


def is_link_local(host: str) -> bool:
    """Where the services of a cloud tell whoever asks what only this computer should know."""
    return _is(host, "is_link_local")


def _is(host: str, property: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return bool(getattr(getattr(address, "ipv4_mapped", None) or address, property))


def due(session: Session, kind: str, *, now: dt.datetime) -> Sequence[Intake]:
    """Those that nobody is at, the one that waits longest first."""
    query = (
        select(Intake).where(Intake.kind == kind).where(or_(col(Intake.next_at).is_(None), col(Intake.next_at) <= now))
    )
    return session.exec(query.order_by(col(Intake.next_at), col(Intake.pk))).all()


def claim(session: Session, intake: Intake, *, now: dt.datetime, seconds: float) -> Turn | None:
    """None where somebody else was faster."""
    until = now + dt.timedelta(seconds=seconds)
    won = session.exec(
        update(Intake)
        .where(col(Intake.pk) == intake.key, or_(col(Intake.next_at).is_(None), col(Intake.next_at) <= now))
        .values(next_at=until)
    )
    return Turn(intake, until) if won.rowcount == 1 else None


def keep(
    session: Session, turn: Turn, *, until: dt.datetime, cursor: str | None = None, error: str = ""
) -> Turn | None:
    """Hold on to it, or give it back until then. None where it is another's by now: nothing is written then."""
    values: dict[str, object] = {"next_at": until, "last_error": error[:ERROR_CHARACTERS_MAX]}
    if cursor is not None:
        values["cursor"] = cursor
    mine = update(Intake).where(col(Intake.pk) == turn.intake.key, col(Intake.next_at) == turn.until)
    return Turn(turn.intake, until) if session.exec(mine.values(**values)).rowcount == 1 else None
