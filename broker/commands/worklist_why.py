"""Verbs on what is missing on a device's list, and on the list as it was."""

from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from broker import clock, db
from broker.commands.common import GROUPS, AsJson, ConfigFile, cell, opened, print_json
from broker.config import Settings
from broker.errors import InvalidValue
from broker.mwl import history, why_reads
from broker.mwl.why_facts import Asked, check_title


@GROUPS["worklist"].command("why")
def worklist_why(accession: Annotated[str, typer.Option(help="accession number")],
                 ae: Annotated[str, typer.Option(help="AE title of the device")],
                 issuer: Annotated[str | None, typer.Option(help="of the accession number; '' is none")] = None,
                 step: Annotated[str, typer.Option(help="SPS ID; empty: all steps")] = "",
                 as_json: AsJson = False, config_file: ConfigFile = None) -> None:  # fmt: skip
    """Why an exam is not on a device's list: the first thing in the way, and all that stands behind it."""
    if not accession.strip():
        raise InvalidValue("--accession", "is empty: say the accession number")
    check_title("--ae", ae)
    settings = opened(config_file)
    asked = Asked(accession, ae, issuer, step)
    found = db.read(why_reads.explain, asked, settings, now=clock.now())
    print_json(found) if as_json else print("\n".join(map(cell, _lines(found))))


def _lines(found: dict[str, Any]) -> list[str]:
    page = []
    for item in found["items"]:
        if item["sps_id"] is not None:
            page.append(f"order {item['order_id']}, step {item['sps_id']} ({item['state']}) on {found['ae_title']}")
        for one in item["causes"]:
            page.append(f"  {'!' if one['in_the_way'] else '-'} {one['says']}  [{one['code']}]")
            if one["mend"]:
                page.append(f"      {one['mend']}")
    return page


def show_as_it_was(ae: str, at: str, settings: Settings, as_json: bool) -> None:
    """broker worklist list --at."""
    if not ae:
        raise InvalidValue("--at", "needs --ae: it is of one device")
    now, zone = clock.now(), settings.site.timezone
    moment = history.moment("--at", at, zone, now)
    if moment > now:
        raise InvalidValue("--at", history.AHEAD)
    found = db.read(history.shown_at, ae, moment, settings, now)
    print_json(found) if as_json else print("\n".join(map(cell, history.lines(found, ZoneInfo(zone)))))
