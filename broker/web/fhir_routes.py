"""FHIR R4 (conformance.md 6): orders in by the inbox, reads of what they became. Every error is an OperationOutcome."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.datastructures import Headers, MutableHeaders

from broker import db
from broker.errors import InvalidValue
from broker.ris_bridge.fhir import resources, road
from broker.ris_bridge.fhir.resources import CAPABILITIES, MEDIA, Kind, Resource
from broker.web import errors, intake
from broker.web.auth import Principal, needs, open_to_all
from broker.web.intake import Key, body

RIS = Annotated[Principal, Depends(needs("ris"))]
READERS = [Depends(needs("ris", "ehr", "qc"))]
Body = Annotated[bytes, Depends(body)]
TYPES = {"application/fhir+json": MEDIA, "application/json": MEDIA}
router = APIRouter(prefix=road.BASE)
BODY: dict[str, Any] = {"openapi_extra": intake.BODY}


def _take(request: Request, body: bytes, who: Principal, key: str) -> Response:
    return intake.take(road.take, request, body, who, key, TYPES)


@router.get("/metadata", dependencies=[Depends(open_to_all)])
def metadata(request: Request) -> Response:
    """What there is."""
    return _answer(resources.capabilities(request.app.state.settings))


@router.post("", **BODY)
def transaction(request: Request, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    """A transaction of ServiceRequest, Patient, Appointment and Task: all or nothing."""
    return _take(request, body, who, idempotency_key)


@router.post("/ServiceRequest", status_code=201, **BODY)
def create(request: Request, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    """Place an order with one requested procedure. If-None-Exist is honoured."""
    return _take(request, body, who, idempotency_key)


@router.put("/ServiceRequest/{key}", **BODY)
def update(request: Request, key: str, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    """What is absent stays as it is. If-Match is honoured."""
    return _take(request, body, who, idempotency_key)


@router.get("/{kind}/{key}", dependencies=READERS)
def read(request: Request, kind: Kind, key: str) -> Response:
    """One resource."""
    found = db.read(resources.read, kind, key, request.app.state.settings)
    if resources.etag(found) in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": resources.etag(found)})
    return _answer(found, {"ETag": resources.etag(found)})


@router.get("/{kind}", dependencies=READERS)
def search(request: Request, kind: Kind) -> Response:
    """By identifier, of those that say so in /fhir/metadata."""
    known = CAPABILITIES[kind][1]
    query = request.query_params
    ignored = sorted({name for name in query if name not in known})
    if ignored and "handling=strict" in request.headers.get("prefer", ""):
        raise InvalidValue(ignored[0], "is no parameter of this search")
    if "identifier" not in known or not query.get("identifier"):
        raise InvalidValue(kind, "is searched by identifier" if known else "has no search; read it by its id")
    found = db.read(resources.search, kind, query["identifier"], request.app.state.settings)
    url = str(request.url.replace(query=""))
    return _answer(resources.searchset(found, url, ignored))


def _answer(resource: Resource, headers: dict[str, str] | None = None) -> Response:
    return Response(resources.text(resource), 200, headers, MEDIA)


class Outcomes:
    """ASGI middleware, the outermost: what a limit, the guard or a route below /fhir says as application/problem+json
    is said as an OperationOutcome."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not is_fhir(scope["path"]):
            await self.app(scope, receive, send)
            return
        begun: Any = None
        problem = b""

        async def told(message: Any) -> None:
            nonlocal begun, problem
            if message["type"] == "http.response.start":
                begun = message
            if not _is_problem(begun):
                await send(message)
            elif message["type"] == "http.response.body":
                problem += message.get("body", b"")
                if not message.get("more_body"):
                    await _say(begun, problem, send)

        try:
            await self.app(scope, receive, told)
        except Exception as error:
            if begun is not None:
                raise
            await errors.answer(error)(scope, receive, told)


def _is_problem(begun: Any) -> bool:
    return Headers(raw=begun["headers"]).get("content-type") == "application/problem+json"


async def _say(begun: Any, problem: bytes, send: Any) -> None:
    said = json.loads(problem)
    words = ": ".join(filter(None, (said["title"], said["detail"])))
    body = resources.text(resources.outcome(begun["status"], words, said.get("place", ""))).encode()
    headers = MutableHeaders(raw=list(begun["headers"]))
    headers["content-type"], headers["content-length"] = MEDIA, str(len(body))
    await send({**begun, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})


def is_fhir(path: str) -> bool:
    return path == road.BASE or path.startswith(f"{road.BASE}/")
