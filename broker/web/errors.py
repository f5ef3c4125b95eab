"""Every error as application/problem+json (RFC 9457), without patient data and without a traceback."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from broker import db, log
from broker.errors import BrokerError
from broker.ris_bridge import json_faults
from broker.web.auth import Forbidden, Unauthorised

RETRY_SECONDS = 5


def problem(
    status: int, title: str, detail: str = "", headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    async def handle(_request: Request, error: Exception) -> JSONResponse:
        return answer(error)

    for kind in (*ANSWERS, Exception):
        app.add_exception_handler(kind, handle)


def answer(error: Exception) -> JSONResponse:
    for kind, say in ANSWERS.items():
        if isinstance(error, kind):
            return say(error)
    return _bug(error)


def _broker(error: Exception) -> JSONResponse:
    assert isinstance(error, BrokerError)
    return problem(error.wire.http, error.title, error.text, place=error.place)


def _invalid(error: Exception) -> JSONResponse:
    """The field and what is wrong with it; never the value, which may be the patient's."""
    assert isinstance(error, RequestValidationError)
    found = json_faults.faults(error.errors(), {})
    fields = [{"field": _field(where), "problem": words} for where, words in found]
    return problem(422, "not acceptable", "; ".join(f"{f['field']}: {f['problem']}" for f in fields), errors=fields)


def _field(where: Sequence[str | int]) -> str:
    """Without the part of the request, unless it is the body itself that is wrong: as a whole, or at that character."""
    part, *inside = where
    return str(part) if part == "body" and not isinstance(inside[:1] and inside[0], str) else ".".join(map(str, inside))


def _http(error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _unauthorised(_error: Exception) -> JSONResponse:
    return problem(
        401, "a token is needed",
        "send Authorization: Bearer … with one that is known here and not disabled; broker token create makes one",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


def _forbidden(_error: Exception) -> JSONResponse:
    return problem(403, "this token's role may not do that")


def _database(error: Exception) -> JSONResponse:
    if not db.is_away(error):
        return _bug(error)
    log.get().error("http.database", kind=type(error).__name__)
    return problem(503, "the database is away", "try again", headers={"Retry-After": str(RETRY_SECONDS)})


def _bug(error: Exception) -> JSONResponse:
    log.get().error("http.failed", exc_info=error)
    return problem(500, "internal error", "see the broker's log")


ANSWERS: dict[type[Exception], Callable[[Exception], JSONResponse]] = {
    BrokerError: _broker,
    RequestValidationError: _invalid,
    HTTPException: _http,
    Unauthorised: _unauthorised,
    Forbidden: _forbidden,
    SQLAlchemyError: _database,
}
