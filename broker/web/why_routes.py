"""Why an exam is not on a device's list, and the list as it was (contract.md 4)."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request

from broker import clock, db
from broker.errors import InvalidValue, MissingField
from broker.mwl import history, why_reads
from broker.mwl.why_facts import Asked, check_title
from broker.ris_bridge import json_faults, rest_road
from broker.web.auth import needs
from broker.web.fields import NO_TEXT

TEXT_CHARACTERS_MAX = 64
router = APIRouter(prefix=rest_road.STEPS)
# Parameter -> whether it must be said.
WHY: Mapping[str, bool] = {"accession_number": True, "ae": True, "issuer": False, "sps_id": False}
AT: Mapping[str, bool] = {"ae": True, "time": True}
MAY_BE_EMPTY = {"issuer"}  # of an order without one


def _said(request: Request, known: Mapping[str, bool]) -> dict[str, str]:
    """Raises InvalidValue or MissingField with the parameter; its value is not repeated."""
    said: dict[str, str] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            place = name if json_faults.PLAIN_NAME.fullmatch(name) else "query"
            raise InvalidValue(place, f"is not known here; what can be said is {', '.join(known)}")
        if name in said:
            raise InvalidValue(name, "is said twice")
        if not text.strip() and name not in MAY_BE_EMPTY:
            raise InvalidValue(name, "is empty: leave it out, or say what is meant")
        if len(text) > TEXT_CHARACTERS_MAX or NO_TEXT.search(text):
            raise InvalidValue(name, f"must be text of at most {TEXT_CHARACTERS_MAX} characters")
        said[name] = text
    for name, must in known.items():
        if must and name not in said:
            raise MissingField(name, "must be said")
    check_title("ae", said["ae"])
    return said


@router.get("/why", dependencies=[Depends(needs("ris", "qc"))])
def why(request: Request) -> dict[str, Any]:
    """Step by step the first thing in the way of an exam to that device's list, and what stands behind it."""
    said = _said(request, WHY)
    asked = Asked(said["accession_number"], said["ae"], said.get("issuer"), said.get("sps_id", ""))
    return db.read(why_reads.explain, asked, request.app.state.settings, now=clock.now())


@router.get("/at", dependencies=[Depends(needs("ris", "qc"))])
def at(request: Request) -> dict[str, Any]:
    """What that device had been shown at that time."""
    said, settings, now = _said(request, AT), request.app.state.settings, clock.now()
    moment = history.moment("time", said["time"], settings.site.timezone, now)
    return db.read(history.shown_at, said["ae"], moment, settings, now)
