"""Who asks: a bearer token and its role. Deny by default; every route declares what it needs."""

import contextlib
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, select

from broker import clock, db
from broker.model.site import ApiToken
from broker.site import token_digest

PRINCIPAL = "broker.principal"  # key in the ASGI scope
LOOPBACK = ("127.0.0.1", "::1", "testclient")
USED_SECONDS_BETWEEN = 60
USED_SECONDS_MAX = 0.5  # that a request waits for this note: it is read also while nobody can write


class Unauthorised(Exception):
    """401: no token, or one that is not known here."""


class Forbidden(Exception):
    """403: a known token without the role."""


@dataclass(frozen=True)
class Principal:
    """name: of the token. is_person: False for every token."""

    name: str
    role: str
    is_person: bool = False


def bearer(authorization: str) -> str:
    """The token of an Authorization header."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorised
    return token.strip()


def authenticate(token: str) -> Principal:
    row = db.read(_find, token_digest(token))
    if row is None:
        raise Unauthorised
    now = clock.now()
    if row.last_used_at is None or now - row.last_used_at > dt.timedelta(seconds=USED_SECONDS_BETWEEN):
        with contextlib.suppress(SQLAlchemyError), db.within(USED_SECONDS_MAX):
            db.run(_used, row.key, now)
    return Principal(row.name, row.role)


def principal(request: Request, authorization: Annotated[str, Header()] = "") -> Principal:
    """A dependency: any token. The guard has asked already where it stands before the route."""
    known = request.scope.get(PRINCIPAL)
    return known if isinstance(known, Principal) else authenticate(bearer(authorization))


def needs(*roles: str) -> Callable[..., Principal]:
    """A dependency: one of these roles. `admin` may do everything."""

    def check(who: Annotated[Principal, Depends(principal)]) -> Principal:
        if who.role != "admin" and who.role not in roles:
            raise Forbidden
        return who

    return check


def open_to_all() -> None:
    """A dependency that says: no login here (health, version)."""


def here_or_token(request: Request, authorization: Annotated[str, Header()] = "") -> None:
    """The status page: a person at this computer, or a token."""
    if request.client is None or request.client.host not in LOOPBACK:
        authenticate(bearer(authorization))


def _find(session: Session, digest: str) -> ApiToken | None:
    query = select(ApiToken).where(ApiToken.digest == digest, ApiToken.disabled == False)  # noqa: E712  SQL, not Python
    return session.exec(query).first()


def _used(session: Session, pk: int, now: dt.datetime) -> None:
    row = db.lock(session, ApiToken, pk)
    row.last_used_at = now
    session.add(row)
