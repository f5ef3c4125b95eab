"""Orders over REST (contract.md 4): every write goes through the inbox, as a message does."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from broker import db
from broker.ris_bridge import rest_road
from broker.web import intake
from broker.web.auth import Principal, needs
from broker.web.fields import Number
from broker.web.intake import Key, body

RIS = Annotated[Principal, Depends(needs("ris"))]
Body = Annotated[bytes, Depends(body)]
MEDIA = {"application/json": "application/json"}
router = APIRouter(prefix=rest_road.ORDERS)
BODY: dict[str, Any] = {"openapi_extra": intake.BODY}


def _take(request: Request, body: bytes, who: Principal, key: str) -> Response:
    return intake.take(rest_road.take, request, body, who, key, MEDIA)


@router.post("", status_code=201, **BODY)
def place(request: Request, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    """Place an order: 201; the same again: 200, and nothing changes; other content: 409."""
    return _take(request, body, who, idempotency_key)


@router.get("/{order_id}", dependencies=[Depends(needs("ris", "ehr", "qc"))])
def one(request: Request, order_id: Number) -> Response:
    """The status document. ETag: of the order, for If-Match."""
    document, etag = db.read(rest_road.document, order_id)
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    return Response(document, media_type="application/json", headers={"ETag": etag})


@router.patch("/{order_id}", **BODY)
def change(request: Request, order_id: Number, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    """Any part of an order: what is absent stays, null deletes. If-Match is honoured."""
    return _take(request, body, who, idempotency_key)


def act(request: Request, order_id: Number, body: Body, who: RIS, idempotency_key: Key = "") -> Response:
    return _take(request, body, who, idempotency_key)


for _name, _does in {
    "cancel": 'What has not begun is cancelled: {"reason"}.',
    "arrive": 'The patient is here: {"at"}.',
    "hold": 'Off the worklist until it is released: {"reason"}.',
    "release": "Back on the worklist.",
    "no-show": "The patient did not come.",
    "reinstate": 'Back on the worklist, what was cancelled, has expired or was not shown: {"reason", "sps_id", "id"}.',
}.items():
    router.post(f"/{{order_id}}/{_name}", name=_name, description=_does)(act)
