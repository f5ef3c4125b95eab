"""Verbs on what devices see."""

import datetime as dt
import sys
from dataclasses import asdict
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from broker import clock, db
from broker.commands.common import GROUPS, AsJson, ConfigFile, cell, opened, print_json, show
from broker.commands.worklist_why import show_as_it_was
from broker.config import Settings
from broker.errors import InvalidValue
from broker.mwl import as_shown, exceptions, expiry, listed
from broker.mwl.listed import Filters
from broker.mwl.why_facts import check_title
from broker.ris_bridge import upstream

At = Annotated[str | None, typer.Option("--at", help="as it was at that time: 09:42, 2025-12-01T09:42")]
LISTED = {"step_pk": "step_id", "order_pk": "order_id", "status": "state"}
AsShown = Annotated[bool, typer.Option("--as-shown", help="as that device shows it, and where the record differs")]


@GROUPS["worklist"].command("list")
def worklist_list(ae: Annotated[str, typer.Option(help="AE title; empty: all")] = "", shown: AsShown = False,
                  at: At = None, as_json: AsJson = False, config_file: ConfigFile = None) -> None:  # fmt: skip
    """What a device finds now; --as-shown tells how it is shown that, and what its characters keep from it."""
    if ae:
        check_title("--ae", ae)
    settings = opened(config_file)
    if at is not None:
        if shown:
            raise InvalidValue("--as-shown", "goes without --at: that is as it was shown then")
        show_as_it_was(ae, at, settings, as_json)
        return
    if shown:
        if not ae:
            raise InvalidValue("--as-shown", "needs --ae: each device shows it in its own way")
        items = as_shown.listing(listed.device(ae), settings, clock.now())
        print_json(items) if as_json else print("\n".join(map(cell, as_shown.lines(items))))
        return
    filters = Filters(step_pks=_of(ae, settings) if ae else None)
    rows, following = db.read(
        listed.listing, filters, settings.worklist, settings.limits.list_items_max, now=clock.now()
    )
    rows = db.read(upstream.marked, rows)
    show(rows if as_json else [{**row, "patient": row["patient"]["id"]} for row in rows], as_json)
    if following:
        print(f"only the first {len(rows)} are told (limits.list_items_max)", file=sys.stderr)


def _of(ae_title: str, settings: Settings) -> tuple[int, ...]:
    db.read(listed.check_title, ae_title)
    return tuple(one.step_pk for one in listed.of_device(ae_title, Filters(), settings, clock.now()))


@GROUPS["worklist"].command("expiring")
def worklist_expiring(days: Annotated[float, typer.Option(min=0, max=3650, help="from now on")] = 1,
                      as_json: AsJson = False, config_file: ConfigFile = None) -> None:  # fmt: skip
    """What leaves the worklist by itself if nothing happens until then."""
    settings = opened(config_file)
    until = clock.now() + dt.timedelta(days=days)
    found = db.read(expiry.due, settings, until, settings.limits.list_items_max)
    rows = [_due(one) for one in found]
    zone = ZoneInfo(settings.site.timezone)
    for row, one in zip(rows, found, strict=True):
        row["at"] = clock.iso(one.at) if as_json else f"{one.at.astimezone(zone):%Y-%m-%d %H:%M:%S}"
    show(rows, as_json)
    if len(found) == settings.limits.list_items_max:
        print(f"only the first {len(found)} are told (limits.list_items_max)", file=sys.stderr)


def _due(one: expiry.Due) -> dict[str, Any]:
    """By the names that the list has."""
    said = {**asdict(one), "station_ae_titles": list(one.station_ae_titles)}
    return {LISTED.get(name, name): value for name, value in said.items()}


@GROUPS["worklist"].command("exceptions")
def worklist_exceptions(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """What is on no worklist, or not on that of one device: what is missing, and how to mend it."""
    settings = opened(config_file)
    rows, following = db.read(exceptions.listing, settings.limits.list_items_max)
    names = ("order_id", "accession_number", "sps_id", "says", "mend")
    shown = [{**{name: row[name] for name in names}, "fields": _fields(row)} for row in rows]
    show(rows if as_json else shown, as_json)
    if following:
        print(f"only those of the first {settings.limits.list_items_max} cases are told", file=sys.stderr)


def _fields(row: dict[str, Any]) -> list[str]:
    """Where each of what is missing may be said."""
    return [f"{one['rest'] or '–'} | {one['hl7']}" for one in row["missing"]]
