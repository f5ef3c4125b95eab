"""The command line. Errors are one line on stderr that says what and how to mend it: status 1, or 2 for usage."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.exc import SQLAlchemyError

from broker import __version__, clock, config, db, log, schema, site
from broker.archive import status
from broker.errors import BrokerError, ConfigError
from broker.mwl import orders, worklist
from broker.ris_bridge import journal, rest_orders
from broker.states import MESSAGE, states_of

app = typer.Typer(
    help="The link between RIS, devices and archive.", no_args_is_help=True, pretty_exceptions_enable=False
)
GROUPS = {
    name: typer.Typer(help=help_, no_args_is_help=True)
    for name, help_ in {
        "db": "The database.", "token": "Tokens of machines.", "node": "Remote application entities (devices).",
        "sender": "HL7 senders.", "site": "The whole site as one TOML file.", "order": "Orders by hand.",
        "worklist": "What devices see.", "message": "The journal.", "config": "Settings.",
    }.items()
}  # fmt: skip
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings file (default: broker.toml, if there).")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
ACTOR = "command line"
MESSAGE_STATES = sorted(states_of(MESSAGE))


def main() -> None:
    try:
        app()
    except BrokerError as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(
            f"database: {type(getattr(error, 'orig', None) or error).__name__}; is BROKER_DATABASE_URL right, is it up?"
        )
    except KeyboardInterrupt:
        _fail("interrupted")


def _fail(text: str) -> None:
    print(f"broker: {text}", file=sys.stderr)
    sys.exit(1)


def _open(config_file: Path | None = None) -> config.Settings:
    """Settings and an open database at the newest schema."""
    settings = config.load(config_file)
    log.configure(settings.log_level)
    db.open_engine(settings.database, pool=4)
    schema.prepare()
    status.configure(settings)
    db.on_finish(status.publish)
    return settings


def _show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, default=str, indent=1))
        return
    if not rows:
        print("none")
        return
    names = list(rows[0])
    texts = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[n]) for row in texts)) for n, name in enumerate(names)]
    for row in [names, *texts]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _cell(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


@app.command("serve")
def serve_(roles: Annotated[str, typer.Option(help="web,dicom,hl7,jobs")] = "web,dicom,hl7,jobs",
           config_file: ConfigFile = None) -> None:  # fmt: skip
    """Run the broker."""
    from broker import serve  # what only the server needs is loaded for it alone: other verbs answer at once

    wanted = _list(roles)
    unknown = set(wanted) - set(serve.ROLES)
    if unknown:
        raise typer.BadParameter(f"no such role: {', '.join(sorted(unknown))}; roles are {', '.join(serve.ROLES)}")
    serve.main(config.load(config_file), wanted)


@app.command()
def demo(
    once: Annotated[bool, typer.Option(help="End by itself.")] = False,
    exams: Annotated[int | None, typer.Option(min=1, help="How many; the stories in turn.")] = None,
) -> None:
    """A live broker and simulators that walk real exams."""
    from broker.sim import demo as stories

    raise typer.Exit(stories.main(once=once, exams=exams or len(stories.STORIES)))


@app.command()
def init(config_file: ConfigFile = None) -> None:
    """Data folder, schema, an administrator's token (shown once)."""
    settings = config.load(config_file)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    _open(config_file)
    print(f"data folder {settings.data_dir.resolve()}, schema {schema.head()}")
    if any(row.role == "admin" for row in db.read(site.tokens)):
        print("an administrator's token exists already; broker token create makes another")
        return
    secret = db.run(site.create_token, "admin", "admin", now=clock.now(), actor=ACTOR)
    print(f"administrator's token, shown once: {secret}")


@app.command()
def version() -> None:
    """The version."""
    print(f"ris-broker {__version__}")


@GROUPS["db"].command("upgrade")
def db_upgrade(config_file: ConfigFile = None) -> None:
    """Bring the database to this program's schema."""
    settings = config.load(config_file)
    db.open_engine(settings.database, pool=2)
    schema.upgrade()
    print(f"schema {schema.head()}")


@GROUPS["token"].command("create")
def token_create(name: Annotated[str, typer.Option()], role: Annotated[str, typer.Option(help="ris, ehr, qc, admin")],
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """Make a token; it is printed once."""
    _open(config_file)
    print(db.run(site.create_token, name, role, now=clock.now(), actor=ACTOR))


@GROUPS["token"].command("list")
def token_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Names and roles."""
    _open(config_file)
    names = ("name", "role", "disabled", "last_used_at")
    _show([{name: getattr(row, name) for name in names} for row in db.read(site.tokens)], as_json)


@GROUPS["token"].command("disable")
def token_disable(name: str, config_file: ConfigFile = None) -> None:
    """Make a token useless."""
    _open(config_file)
    db.run(site.disable_token, name, now=clock.now(), actor=ACTOR)


@GROUPS["node"].command("add")
def node_add(
    ae_title: str,
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    rights: Annotated[str, typer.Option(help="worklist,mpps,store,commitment,query,retrieve")] = "",
    any_address: Annotated[bool, typer.Option("--any-address")] = False,
    device: Annotated[str, typer.Option(help="Titles with the same device are one machine.")] = "",
    kind: Annotated[str, typer.Option(help="modality, mobile (sends when docked again), qa, import")] = "modality",
    station_names: Annotated[str, typer.Option(help="Station Names (0008,1010), separated by commas.")] = "",
    modality: str = "",
    character_set: Annotated[str, typer.Option(help=r"such as '\ISO 2022 IR 87', ISO_IR 192, ASCII, REQUEST")] = "",
    config_file: ConfigFile = None,
) -> None:
    """Register a device."""
    _open(config_file)
    fields: dict[str, Any] = {"host": host, "port": port, "any_address": any_address, "device": device,
                              "kind": kind, "modality": modality, "character_set": character_set}  # fmt: skip
    for name, text in (("rights", rights), ("station_names", station_names)):
        if text:
            fields[name] = _list(text)
    print(db.run(site.add_node, ae_title, now=clock.now(), actor=ACTOR, **fields))


@GROUPS["node"].command("list")
def node_list(unknown: Annotated[bool, typer.Option("--unknown", help="Who knocked and was refused.")] = False,
              as_json: AsJson = False, config_file: ConfigFile = None) -> None:  # fmt: skip
    """Registered devices, or those that were refused."""
    settings = _open(config_file)
    if unknown:
        rows = db.read(site.unknown_peers, settings.limits.list_items_max)
        names: tuple[str, ...] = ("ae_title", "address", "called", "reason", "times", "last_at")
        _show([{name: getattr(row, name) for name in names} for row in rows], as_json)
        return
    names = (
        "ae_title", "host", "port", "any_address", "device", "kind", "station_names", "modality", "rights",
        "character_set",
    )  # fmt: skip
    _show([{name: getattr(row, name) for name in names} for row in db.read(site.nodes)], as_json)


@GROUPS["node"].command("remove")
def node_remove(ae_title: str, config_file: ConfigFile = None) -> None:
    """Forget a device."""
    _open(config_file)
    db.run(site.remove_node, ae_title, now=clock.now(), actor=ACTOR)


@GROUPS["sender"].command("add")
def sender_add(name: str, application: str = "", facility: str = "", address: str = "",
               messages: Annotated[str, typer.Option(help="allowed types, such as ORM,ADT^A08; empty: all")] = "",
               character_set: str = "", config_file: ConfigFile = None) -> None:  # fmt: skip
    """Register an HL7 sender."""
    _open(config_file)
    fields = {"application": application, "facility": facility, "address": address, "character_set": character_set,
              "messages": _list(messages)}  # fmt: skip
    print(db.run(site.add_sender, name, now=clock.now(), actor=ACTOR, **fields))


@GROUPS["sender"].command("list")
def sender_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Registered senders."""
    _open(config_file)
    names = ("name", "application", "facility", "address", "messages", "character_set")
    _show([{name: getattr(row, name) for name in names} for row in db.read(site.senders)], as_json)


@GROUPS["sender"].command("remove")
def sender_remove(name: str, config_file: ConfigFile = None) -> None:
    """Forget a sender."""
    _open(config_file)
    db.run(site.remove_sender, name, now=clock.now(), actor=ACTOR)


@GROUPS["site"].command("export")
def site_export(config_file: ConfigFile = None) -> None:
    """Print the site file; secrets masked."""
    _open(config_file)
    print(db.read(site.export), end="")


@GROUPS["site"].command("import")
def site_import(file: Path, config_file: ConfigFile = None) -> None:
    """Apply a site file; the same file again changes nothing."""
    _open(config_file)
    entries = site.read_file(file)
    for what, outcome in db.run(site.apply, entries, now=clock.now(), actor=ACTOR):
        print(f"{what}: {outcome}")


@GROUPS["order"].command("place")
def order_place(file: Annotated[str, typer.Argument(help="JSON as POST /api/v1/orders takes it; - for standard input")],
                config_file: ConfigFile = None) -> None:  # fmt: skip
    """Place an order by hand."""
    settings = _open(config_file)
    text = sys.stdin.read() if file == "-" else _read(Path(file))
    command = rest_orders.to_command(rest_orders.read(text), settings.site)
    order = db.run(orders.apply, command, now=clock.now(), actor=ACTOR, site=settings.site)
    print(f"order {order.key}, accession number {order.accession_number}")


@GROUPS["order"].command("cancel")
def order_cancel(order_id: int, config_file: ConfigFile = None) -> None:
    """Cancel what has not begun."""
    settings = _open(config_file)
    order = db.run(rest_orders.cancel, order_id, now=clock.now(), actor=ACTOR, site=settings.site)
    print(f"order {order.key}, accession number {order.accession_number}: what had not begun is cancelled")


@GROUPS["order"].command("show")
def order_show(order_id: int, config_file: ConfigFile = None) -> None:
    """The status document of an order."""
    _open(config_file)
    document = db.read(rest_orders.document, order_id)
    print(json.dumps(json.loads(document), ensure_ascii=False, indent=1))


@GROUPS["worklist"].command("list")
def worklist_list(ae: Annotated[str, typer.Option(help="AE title; empty: all")] = "", as_json: AsJson = False,
                  config_file: ConfigFile = None) -> None:  # fmt: skip
    """What a device gets now."""
    settings = _open(config_file)
    rows = db.read(worklist.listing, ae or None, settings.limits.list_items_max)
    _show(rows if as_json else [{**row, "patient": row["patient"]["id"]} for row in rows], as_json)


@GROUPS["message"].command("list")
def message_list(
    state: Annotated[str, typer.Option(help=", ".join(MESSAGE_STATES))] = "",
    limit: Annotated[int, typer.Option(min=1)] = 50,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """The journal, newest first."""
    if state and state not in MESSAGE_STATES:
        raise typer.BadParameter(f"no such state: {state}; states are {', '.join(MESSAGE_STATES)}")
    _open(config_file)
    rows = db.read(journal.messages, state or None, limit)
    names = ("id", "received_at", "type", "sender", "state", "error_code", "error_place", "became")
    _show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json)


@GROUPS["message"].command("show")
def message_show(message_id: int, config_file: ConfigFile = None) -> None:
    """One message with its bytes and its answer."""
    _open(config_file)
    row = db.read(journal.message, message_id)
    for name, value in row.items():
        print(f"{name}: {value}" if name not in ("raw", "answer") else f"{name}:\n{value.replace(chr(13), chr(10))}")


@GROUPS["config"].command("show")
def config_show(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Effective settings with their source; secrets masked."""
    rows = config.show(config.load(config_file), config.sources(config_file))
    _show([dict(zip(("setting", "value", "source"), row, strict=True)) for row in rows], as_json)


@GROUPS["config"].command("check")
def config_check(config_file: ConfigFile = None) -> None:
    """Read the settings, open the database, write to the data folder."""
    settings = config.load(config_file)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        probe = settings.data_dir / ".write-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError("data_dir", f"cannot be written: {error.strerror}; set BROKER_DATA_DIR") from None
    _open(config_file)
    print("settings, data folder and database are in order")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
