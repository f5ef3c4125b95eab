"""Every error as application/problem+json (RFC 9457), without patient data and without a traceback."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from broker import log
from broker.errors import BrokerError
from broker.web.auth import Forbidden, Unauthorised

RETRY_SECONDS = 5


def problem(
    status: int, title: str, detail: str = "", headers: dict[str, str] | None = None, **more: Any
) -> JSONResponse:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    app.add_exception_handler(BrokerError, _broker)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Unauthorised, _unauthorised)
    app.add_exception_handler(Forbidden, _forbidden)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(Exception, _bug)


def _broker(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BrokerError)
    return problem(error.wire.http, error.title, error.text, place=error.place)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """The field and what is wrong with it; never the value, which may be the patient's."""
    assert isinstance(error, RequestValidationError)
    fields = [{"field": ".".join(map(str, one["loc"][1:])), "problem": one["msg"]} for one in error.errors()]
    return problem(422, "not acceptable", "; ".join(f"{f['field']}: {f['problem']}" for f in fields), errors=fields)


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def _unauthorised(_request: Request, _error: Exception) -> JSONResponse:
    return problem(
        401, "a token is needed", "send Authorization: Bearer …; broker token create makes one",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


def _forbidden(_request: Request, _error: Exception) -> JSONResponse:
    return problem(403, "this token's role may not do that")


def _database(_request: Request, error: Exception) -> JSONResponse:
    log.get().error("http.database", kind=type(error).__name__)
    return problem(503, "the database is away", "try again", headers={"Retry-After": str(RETRY_SECONDS)})


def _bug(_request: Request, error: Exception) -> JSONResponse:
    log.get().error("http.failed", kind=type(error).__name__)
    return problem(500, "internal error", "see the broker's log")
