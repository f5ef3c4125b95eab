"""Status for the EHR: one document, a list, a feed (contract.md 4)."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response

from broker import db
from broker.archive import status
from broker.errors import InvalidValue
from broker.ris_bridge import rest_road
from broker.web.auth import needs
from broker.web.fields import Number, check_time
from broker.web.live import Live

router = APIRouter(prefix="/api/v1/status", dependencies=[Depends(needs("ehr", "ris", "qc"))])
FILTERS = ("patient_id", "placer_order_number", "study_instance_uid", "state", "updated_since")


@router.get("/changes")
async def changes(
    request: Request,
    since: Number = 0,
    limit: Annotated[int, Query(ge=1)] = 100,
    wait: Annotated[float, Query(ge=0)] = 0,
) -> Response:
    live: Live = request.app.state.live
    limit = min(limit, live.limits.list_items_max)
    if wait:
        await live.until(lambda: db.read(status.last_change) > since, wait)
    rows = await live.in_thread(db.read, status.changes, since, limit)
    items = ",".join(f'{{"cursor":{sequence},"document":{document}}}' for sequence, document in rows)
    return _json(f'{{"items":[{items}],"next":{rows[-1][0] if rows else since}}}')


@router.get("/{accession_number:path}")
async def one(
    request: Request,
    accession_number: str,
    issuer: str | None = None,
    wait: Annotated[float, Query(ge=0)] = 0,
    if_none_match: Annotated[str, Header()] = "",
) -> Response:
    live: Live = request.app.state.live

    def look() -> tuple[str, str]:
        document, version, order_pk = db.read(status.find, accession_number, issuer)
        return document, rest_road.status_etag(order_pk, version)

    document, etag = await live.in_thread(look)
    if wait and rest_road.is_known(etag, if_none_match):
        await live.until(lambda: not rest_road.is_known(look()[1], if_none_match), wait)
        document, etag = await live.in_thread(look)
    if rest_road.is_known(etag, if_none_match):
        return Response(status_code=304, headers={"ETag": etag})
    return _json(document, etag)


@router.get("")
def listing(request: Request, limit: Annotated[int, Query(ge=1)] = 100, after: Number = 0) -> Response:
    filters = {name: value for name, value in request.query_params.items() if name not in ("limit", "after")}
    unknown = set(filters) - set(FILTERS)
    if unknown:
        raise InvalidValue(sorted(unknown)[0], f"is no filter of this list; filters are {', '.join(FILTERS)}")
    if "updated_since" in filters:
        check_time("updated_since", filters["updated_since"])
    live: Live = request.app.state.live
    documents, following = db.read(status.listing, filters, min(limit, live.limits.list_items_max), after)
    return _json(f'{{"items":[{",".join(documents)}],"next":{following or "null"}}}')


def _json(text: str, etag: str = "") -> Response:
    headers: dict[str, Any] = {"ETag": etag} if etag else {}
    return Response(text, media_type="application/json", headers=headers)
