"""Why an exam is not on a device's list, and the list as it was (contract.md 4)."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from broker import clock, db
from broker.mwl import history, why_reads
from broker.mwl.why_facts import Asked
from broker.ris_bridge import rest_road
from broker.web import query
from broker.web.auth import needs
from broker.web.query import Reader

router = APIRouter(prefix=rest_road.STEPS)
READERS = [Depends(needs("ris", "qc"))]
WHY: Mapping[str, Reader] = {
    "accession_number": query.text, "ae": query.title, "issuer": query.text_or_empty, "sps_id": query.text,
}  # fmt: skip
AT: Mapping[str, Reader] = {"ae": query.title, "time": query.text}
WHY_MUST, AT_MUST = ("accession_number", "ae"), ("ae", "time")


@router.get("/why", dependencies=READERS, openapi_extra=query.documented(WHY, WHY_MUST))
def why(request: Request) -> dict[str, Any]:
    """Step by step the first thing in the way of an exam to that device's list, and what stands behind it."""
    said = query.said(request, WHY, WHY_MUST)
    asked = Asked(said["accession_number"], said["ae"], said.get("issuer"), said.get("sps_id", ""))
    return db.read(why_reads.explain, asked, request.app.state.settings, now=clock.now())


@router.get("/at", dependencies=READERS, openapi_extra=query.documented(AT, AT_MUST))
def at(request: Request) -> dict[str, Any]:
    """What that device had been shown at that time."""
    said, settings, now = query.said(request, AT, AT_MUST), request.app.state.settings, clock.now()
    moment = history.moment("time", said["time"], settings.site.timezone, now)
    return db.read(history.shown_at, said["ae"], moment, settings, now)
