"""Verbs on orders by hand, and on patients that were merged."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from broker import clock, config, db, log
from broker.commands.common import (
    ACTOR,
    GROUPS,
    ROWS_MAX,
    AsJson,
    ConfigFile,
    Key,
    fail,
    opened,
    print_json,
    read_text,
    show,
)
from broker.mwl import merge_log, merges
from broker.ris_bridge import http_road, rest_road


@GROUPS["order"].command("place")
def order_place(file: Annotated[str, typer.Argument(help="JSON as POST /api/v1/orders takes it; - for standard input")],
                config_file: ConfigFile = None) -> None:  # fmt: skip
    """Place an order by hand."""
    settings = opened(config_file)
    text = sys.stdin.read() if file == "-" else read_text(Path(file))
    order = _ask("POST", rest_road.ORDERS, text, settings)
    print(f"order {order['order_id']}, accession number {order['accession_number']}")


@GROUPS["order"].command("cancel")
def order_cancel(order_id: Key, reason: str = "", config_file: ConfigFile = None) -> None:
    """Cancel what has not begun."""
    settings = opened(config_file)
    order = _ask("POST", f"{rest_road.ORDERS}/{order_id}/cancel", json.dumps({"reason": reason}), settings)
    print(f"order {order_id}, accession number {order['accession_number']}: what had not begun is cancelled")


@GROUPS["order"].command("reinstate")
def order_reinstate(order_id: Key, reason: Annotated[str, typer.Option(help="for the audit trail")],
                    sps_id: Annotated[str, typer.Option("--step", help="SPS ID; empty: all its steps")] = "",
                    procedure_id: Annotated[str, typer.Option("--id", help="Requested Procedure ID; empty: any")] = "",
                    config_file: ConfigFile = None) -> None:  # fmt: skip
    """Put back on the worklist what was cancelled, has expired or was not shown."""
    settings = opened(config_file)
    named = {"sps_id": sps_id, "id": procedure_id}
    said = {"reason": reason, **{name: value for name, value in named.items() if value}}
    order = _ask("POST", f"{rest_road.ORDERS}/{order_id}/reinstate", json.dumps(said), settings)
    print(f"order {order_id}, accession number {order['accession_number']}: back on the worklist")


@GROUPS["order"].command("show")
def order_show(order_id: Key, config_file: ConfigFile = None) -> None:
    """The status document of an order."""
    opened(config_file)
    document, _ = db.read(rest_road.document, order_id)
    print_json(json.loads(document))


def _ask(method: str, path: str, body: str, settings: config.Settings) -> dict[str, Any]:
    """By the road of the API, so that the journal has it."""
    log.configure("error")  # that it is refused is said in a sentence
    request = http_road.Request(method, path, body.encode())
    answer = rest_road.take(request, sender=ACTOR, peer="", key="", settings=settings)
    reply = http_road.reply_of(answer.raw)
    said: dict[str, Any] = json.loads(reply.body)
    if reply.status >= 400:
        faults = [f"{one['field']}: {one['problem']}" for one in said.get("errors", ())]
        fail("; ".join(faults) or (f"{said['place']}: {said['detail']}" if said["place"] else said["detail"]))
    return said


@GROUPS["patient"].command("merges")
def patient_merges(limit: Annotated[int, typer.Option(min=1, max=ROWS_MAX)] = 50, as_json: AsJson = False,
                   config_file: ConfigFile = None) -> None:  # fmt: skip
    """Merges, moves and changes of identifier, newest first."""
    opened(config_file)
    rows, _ = db.read(merge_log.listing, limit)
    names = ("id", "happened_at", "event", "prior", "current", "orders", "studies", "undone_at")
    shown = [{**row, **{name: "^".join(row[name].values()) for name in ("prior", "current")}} for row in rows]
    show(rows if as_json else [{name: row[name] for name in names} for row in shown], as_json)


@GROUPS["patient"].command("undo")
def patient_undo(merge_id: Key, reason: Annotated[str, typer.Option(help="for the audit trail")],
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """Take a merge back: all is whose it was before."""
    opened(config_file)
    db.run(merges.undo, merge_id, now=clock.now(), actor=ACTOR, reason=reason)
    print(f"merge {merge_id} is taken back")
