"""The command line. Errors are one line on stderr that says what and how to mend it: status 1, or 2 for usage."""

import contextlib
import dataclasses
import functools
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from sqlalchemy.exc import SQLAlchemyError

from broker import __version__, clock, config, db, log, schema, site
from broker.archive import status
from broker.errors import BrokerError, ConfigError
from broker.mwl import merge_log, merges, worklist
from broker.ris_bridge import http_road, journal, replay, rest_road
from broker.ris_bridge.crashes import CRASHES
from broker.ris_bridge.hl7 import view
from broker.ris_bridge.mapping import profile as mapping
from broker.ris_bridge.mapping import store, trial
from broker.states import MESSAGE, states_of

app = typer.Typer(
    help="The link between RIS, devices and archive.", no_args_is_help=True, pretty_exceptions_enable=False
)
GROUPS = {
    name: typer.Typer(help=help_, no_args_is_help=True)
    for name, help_ in {
        "db": "The database.", "token": "Tokens of machines.", "node": "Remote application entities (devices).",
        "sender": "HL7 senders.", "intake": "Folders and systems that orders are fetched from.",
        "site": "The whole site as one TOML file.", "order": "Orders by hand.",
        "patient": "Patients that were merged.", "worklist": "What devices see.", "message": "The journal.",
        "mapping": "Mapping profiles: which field says what.", "config": "Settings.",
    }.items()
}  # fmt: skip
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings file (default: broker.toml, if there).")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Said = Annotated[str | None, typer.Option()]  # None: not said, and it stays as it is
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
        _print_json(rows)
        return
    if not rows:
        print("none")
        return
    names = list(rows[0])
    texts = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[n]) for row in texts)) for n, name in enumerate(names)]
    for row in [names, *texts]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show_some(rows: Iterable[Any], names: Sequence[str], as_json: bool) -> None:
    """Of each row of the database, these."""
    _show([{name: getattr(row, name) for name in names} for row in rows], as_json)


def _print_json(found: Any) -> None:
    print(view.visible_json(json.dumps(found, ensure_ascii=False, default=str, indent=1)))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _cell(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return view.visible(text).replace("\n", "\\x0a")


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
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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
    _show_some(db.read(site.tokens), ("name", "role", "disabled", "last_used_at"), as_json)


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
        _show_some(rows, ("ae_title", "address", "called", "reason", "times", "last_at"), as_json)
        return
    names = (
        "ae_title", "host", "port", "any_address", "device", "kind", "station_names", "modality", "rights",
        "character_set",
    )  # fmt: skip
    _show_some(db.read(site.nodes), names, as_json)


@GROUPS["node"].command("remove")
def node_remove(ae_title: str, config_file: ConfigFile = None) -> None:
    """Forget a device."""
    _open(config_file)
    db.run(site.remove_node, ae_title, now=clock.now(), actor=ACTOR)


@GROUPS["sender"].command("add")
def sender_add(name: str, application: str = "", facility: str = "", address: str = "",
               messages: Annotated[str, typer.Option(help="allowed types, such as ORM,ADT^A08; empty: all")] = "",
               character_set: str = "",
               tls_subject: Annotated[str, typer.Option(help="a name in its client certificate")] = "",
               mapping: Annotated[str, typer.Option(help="the profile that reads its messages")] = "",
               on_trouble: Annotated[str, typer.Option(help="close or AE, when a message cannot be taken now")] = "",
               order_responses: Annotated[bool, typer.Option("--order-responses", help="ORR, ORI, ORG.")] = False,
               config_file: ConfigFile = None) -> None:  # fmt: skip
    """Register an HL7 sender."""
    _open(config_file)
    fields = {"application": application, "facility": facility, "address": address, "character_set": character_set,
              "messages": _list(messages), "tls_subject": tls_subject, "mapping": mapping, "on_trouble": on_trouble,
              "order_responses": order_responses}  # fmt: skip
    print(db.run(site.add_sender, name, now=clock.now(), actor=ACTOR, **fields))


@GROUPS["sender"].command("change")
def sender_change(
    name: str, application: Said = None, facility: Said = None, address: Said = None,
    messages: Annotated[str | None, typer.Option(help="allowed types, such as ORM,ADT^A08; empty: all")] = None,
    character_set: Said = None,
    tls_subject: Annotated[str | None, typer.Option(help="a name in its client certificate")] = None,
    mapping: Annotated[str | None, typer.Option(help="the profile that reads its messages")] = None,
    on_trouble: Annotated[str | None, typer.Option(help="close or AE, when a message cannot be taken now")] = None,
    order_responses: Annotated[
        bool | None, typer.Option("--order-responses/--no-order-responses", help="ORR, ORI, ORG.")
    ] = None,
    config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """Change what is named of a sender; the rest stays. '' takes a value away."""
    _open(config_file)
    fields = {"application": application, "facility": facility, "address": address, "character_set": character_set,
              "messages": None if messages is None else _list(messages), "tls_subject": tls_subject,
              "mapping": mapping, "on_trouble": on_trouble, "order_responses": order_responses}  # fmt: skip
    print(db.run(site.change_sender, name, now=clock.now(), actor=ACTOR, **_said(fields)))


@GROUPS["sender"].command("list")
def sender_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Registered senders."""
    _open(config_file)
    names = ("name", "application", "facility", "address", "tls_subject", "messages", "character_set", "mapping",
             "on_trouble", "order_responses")  # fmt: skip
    _show_some(db.read(site.senders), names, as_json)


@GROUPS["sender"].command("remove")
def sender_remove(name: str, config_file: ConfigFile = None) -> None:
    """Forget a sender."""
    _open(config_file)
    db.run(site.remove_sender, name, now=clock.now(), actor=ACTOR)


@GROUPS["intake"].command("add")
def intake_add(
    name: str,
    kind: Annotated[str, typer.Option(help="folder (watched), poll (an HTTP system that is asked)")],
    path: Annotated[str, typer.Option(help="of the folder")] = "",
    url: Annotated[str, typer.Option(help="of the system")] = "",
    secret_file: Annotated[str, typer.Option(help="a file with the bearer token for it")] = "",
    format_: Annotated[str, typer.Option("--format", help="of the files: hl7, csv")] = "",
    mapping: str = "",
    character_set: Annotated[str, typer.Option(help="in place of MSH-18; of CSV, where it is not UTF-8")] = "",
    every_seconds: float = 10,
    config_file: ConfigFile = None,
) -> None:
    """Register a folder or a system that orders are fetched from."""
    _open(config_file)
    fields = {"kind": kind, "path": path, "url": url, "secret_file": secret_file, "mapping": mapping,
              "format": format_ or ("json" if kind == "poll" else "hl7"), "character_set": character_set,
              "every_seconds": every_seconds}  # fmt: skip
    print(db.run(site.add_intake, name, now=clock.now(), actor=ACTOR, **fields))


@GROUPS["intake"].command("change")
def intake_change(
    name: str,
    path: Annotated[str | None, typer.Option(help="of the folder")] = None,
    url: Annotated[str | None, typer.Option(help="of the system; it is asked from the beginning")] = None,
    secret_file: Annotated[str | None, typer.Option(help="a file with the bearer token for it")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="of the files: hl7, csv")] = None,
    mapping: Said = None,
    character_set: Annotated[str | None, typer.Option(help="in place of MSH-18; of CSV, where it is not UTF-8")] = None,
    every_seconds: Annotated[float | None, typer.Option()] = None,
    config_file: ConfigFile = None,
) -> None:
    """Change what is named of an intake; the rest stays. '' takes a value away."""
    _open(config_file)
    fields = {"path": path, "url": url, "secret_file": secret_file, "format": format_, "mapping": mapping,
              "character_set": character_set, "every_seconds": every_seconds}  # fmt: skip
    print(db.run(site.change_intake, name, now=clock.now(), actor=ACTOR, **_said(fields)))


@GROUPS["intake"].command("list")
def intake_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Where orders are fetched, when next, and what was wrong the last time."""
    _open(config_file)
    names = ("name", "kind", "path", "url", "format", "mapping", "character_set", "every_seconds", "next_at", "cursor",
             "last_error")  # fmt: skip
    rows = [{name: getattr(row, name) for name in names} for row in db.read(site.intakes)]
    _show([{**row, "url": config.masked(row["url"])} for row in rows], as_json)


@GROUPS["intake"].command("remove")
def intake_remove(name: str, config_file: ConfigFile = None) -> None:
    """Fetch nothing from there any more."""
    _open(config_file)
    db.run(site.remove_intake, name, now=clock.now(), actor=ACTOR)


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
    order = _ask("POST", rest_road.ORDERS, text, settings)
    print(f"order {order['order_id']}, accession number {order['accession_number']}")


@GROUPS["order"].command("cancel")
def order_cancel(order_id: int, reason: str = "", config_file: ConfigFile = None) -> None:
    """Cancel what has not begun."""
    settings = _open(config_file)
    order = _ask("POST", f"{rest_road.ORDERS}/{order_id}/cancel", json.dumps({"reason": reason}), settings)
    print(f"order {order_id}, accession number {order['accession_number']}: what had not begun is cancelled")


@GROUPS["order"].command("show")
def order_show(order_id: int, config_file: ConfigFile = None) -> None:
    """The status document of an order."""
    _open(config_file)
    document, _ = db.read(rest_road.document, order_id)
    _print_json(json.loads(document))


def _ask(method: str, path: str, body: str, settings: config.Settings) -> dict[str, Any]:
    """By the road of the API, so that the journal has it."""
    request = http_road.Request(method, path, body.encode())
    answer = rest_road.take(request, sender=ACTOR, peer="", key="", settings=settings)
    reply = http_road.reply_of(answer.raw)
    said: dict[str, Any] = json.loads(reply.body)
    if reply.status >= 400:
        _fail(f"{said['place']}: {said['detail']}" if said["place"] else said["detail"])
    return said


@GROUPS["patient"].command("merges")
def patient_merges(limit: Annotated[int, typer.Option(min=1)] = 50, as_json: AsJson = False,
                   config_file: ConfigFile = None) -> None:  # fmt: skip
    """Merges, moves and changes of identifier, newest first."""
    _open(config_file)
    rows, _ = db.read(merge_log.listing, limit)
    names = ("id", "happened_at", "event", "prior", "current", "orders", "studies", "undone_at")
    shown = [{**row, **{name: "^".join(row[name].values()) for name in ("prior", "current")}} for row in rows]
    _show(rows if as_json else [{name: row[name] for name in names} for row in shown], as_json)


@GROUPS["patient"].command("undo")
def patient_undo(merge_id: int, reason: Annotated[str, typer.Option(help="for the audit trail")],
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """Take a merge back: all is whose it was before."""
    _open(config_file)
    db.run(merges.undo, merge_id, now=clock.now(), actor=ACTOR, reason=reason)
    print(f"merge {merge_id} is taken back")


@GROUPS["worklist"].command("list")
def worklist_list(ae: Annotated[str, typer.Option(help="AE title; empty: all")] = "", as_json: AsJson = False,
                  config_file: ConfigFile = None) -> None:  # fmt: skip
    """What a device gets now."""
    settings = _open(config_file)
    rows = db.read(worklist.listing, ae or None, settings.limits.list_items_max)
    _show(rows if as_json else [{**row, "patient": row["patient"]["id"]} for row in rows], as_json)


TIME_HELP = "2025-12-01, 2025-12-01T09:30, …+09:00; 09:30 is today's"
FILTER_HELP = {
    "number": "a number or ID of any kind", "type": "ORM^O01, or ORM for all its events",
    "state": ", ".join(MESSAGE_STATES), "since": TIME_HELP, "until": TIME_HELP,
}  # fmt: skip
CLOCK_TIME = re.compile(r"\d\d:\d\d(:\d\d)?")
After = Annotated[int, typer.Option(min=0, help="go on after this message")]
LANGUAGES = ("ja", "en")


def _filtered(**usual: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has every filter of the journal as an option, and gets them as one, `said`. usual: their values
    where they are not empty."""

    def with_filters(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def filtered(**given: Any) -> None:
            said = {name: given.pop(name) for name in journal.FILTERS}
            command(said=said, **given)

        own = inspect.signature(command).parameters
        options = {
            name: inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=usual.get(name, ""),
                annotation=Annotated[str, typer.Option(help=FILTER_HELP.get(name), rich_help_panel="Which")],
            )
            for name in journal.FILTERS
        }  # fmt: skip
        parameters = {**{name: own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in own}, **options}
        del parameters["said"]
        filtered.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        filtered.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        return filtered

    return with_filters


def _pages(
    page: Callable[[int, int], dict[str, Any]], limit: int, after: int
) -> tuple[list[dict[str, Any]], int | None]:
    """Of pages that go on until `next` is null. page: (limit, after). Returns after which one to go on."""
    rows: list[dict[str, Any]] = []
    following: int | None = after
    while following is not None and len(rows) < limit:
        found = page(limit - len(rows), following)
        rows, following = rows + found["items"], found["next"]
    return rows, following


def _listed(
    wanted: journal.Wanted, settings: config.Settings, limit: int, after: int, *, oldest_first: bool = False
) -> tuple[list[dict[str, Any]], int | None]:
    now, looked_at = clock.now(), settings.limits.journal_rows_max
    return _pages(
        lambda limit, after: db.read(
            journal.messages, wanted, now=now, limit=limit, looked_at=looked_at, after=after, oldest_first=oldest_first
        ),
        limit, after,
    )  # fmt: skip


@GROUPS["message"].command("list")
@_filtered()
def message_list(
    said: dict[str, str], after: After = 0, limit: Annotated[int, typer.Option(min=1)] = 50, as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """The journal, newest first."""
    settings, wanted = _wanted(config_file, said)
    rows, _ = _listed(wanted, settings, limit, after)
    names = ("id", "received_at", "type", "sender", "state", "age_seconds", "error_code", "error_place", "became")
    _show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json)


@GROUPS["message"].command("exceptions")
def message_exceptions(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """What was refused and waits for a person, counted by kind."""
    settings = _open(config_file)
    found = db.read(journal.exceptions, now=clock.now(), looked_at=settings.limits.journal_rows_max)
    if not as_json:
        print(f"refused: {found['refused']}")
    _show(found["kinds"], as_json)


@GROUPS["message"].command("show")
def message_show(
    message_id: int,
    language: Annotated[str, typer.Option(help="of the names of fields: ja, en; else the site's")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Nothing but the bytes as they came.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """One message: what became of it, its fields by name, its answer."""
    if language and language not in LANGUAGES:
        raise typer.BadParameter(f"no such language: {language}; languages are {', '.join(LANGUAGES)}")
    settings = _open(config_file)
    if raw:
        sys.stdout.buffer.write(db.read(journal.get, message_id).raw)
        return
    row = db.read(
        journal.message, message_id, settings=settings, language=language or settings.site.language, now=clock.now()
    )
    if as_json:
        _print_json(row)
        return
    shown = {name: value for name, value in row.items() if not name.startswith(("raw", "answer_", "keys"))}
    shown |= {"keys": ", ".join(f"{key['kind']} {key['value']}" for key in row["keys"]), "sent": row["answer_sent"]}
    for name, value in shown.items():
        if name != "answer":
            print(f"{name}: {_cell(value)}")
    for part in ("raw", "answer"):
        print(f"\n{part}:")
        if not row[f"{part}_segments"]:
            print(view.visible(row[part].replace("\r", "\n")))
        for line in view.lines(row[f"{part}_segments"]):
            print(line)
        if row[f"{part}_segments_left"]:
            print(f"and {row[f'{part}_segments_left']} segments more")


@GROUPS["message"].command("replay")
@_filtered(state="REJECTED")
def message_replay(
    said: dict[str, str],
    message_id: Annotated[int | None, typer.Argument(help="Without it: all that are found, the oldest first.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is found, by kind.")] = False,
    after: After = 0,
    limit: Annotated[int, typer.Option(min=1, help="at most so many")] = 1000,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Look at refused messages again, by what is known now. What was applied is not applied twice."""
    if dry_run and message_id is not None:
        raise typer.BadParameter("--dry-run counts what the filters find; broker message show tells of one message")
    settings, wanted = _wanted(config_file, said)
    if dry_run:
        _count(*_listed(wanted, settings, limit, after, oldest_first=True), as_json)
        return
    with contextlib.ExitStack() as stack:
        stack.callback(CRASHES.open(settings.data_dir, settings.limits.message_deaths_max))
        if message_id is not None:
            rows, following = [replay.replay(message_id, settings, actor=ACTOR)], None
        else:
            rows, following = _pages(
                lambda limit, after: replay.replay_many(
                    wanted, settings, actor=ACTOR, limit=min(limit, settings.limits.list_items_max), after=after
                ),
                limit, after,
            )  # fmt: skip
    names = ("id", "type", "outcome", "error_code", "error_place", "error_text", "became")
    _show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json)
    if following is not None and not as_json:
        print(f"{limit} were looked at, and there may be more: --after {following}")


@GROUPS["message"].command("dismiss")
def message_dismiss(
    message_id: int, reason: Annotated[str, typer.Option(help="why nothing more is needed")],
    config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """Take a refused message off the list of those that wait for a person."""
    _open(config_file)
    db.run(replay.dismiss, message_id, reason=reason, actor=ACTOR, now=clock.now())
    print(f"message {message_id} is dismissed")


def _wanted(config_file: Path | None, said: dict[str, str]) -> tuple[config.Settings, journal.Wanted]:
    if said["state"] and said["state"] not in MESSAGE_STATES:
        raise typer.BadParameter(f"no such state: {said['state']}; states are {', '.join(MESSAGE_STATES)}")
    settings = _open(config_file)
    zone = settings.site.timezone
    today = clock.now().astimezone(ZoneInfo(zone)).date()
    times = {name: f"{today}T{said[name]}" for name in journal.TIMES if CLOCK_TIME.fullmatch(said[name])}
    return settings, journal.wanted({**said, **times}, zone)


def _count(rows: Sequence[dict[str, Any]], following: int | None, as_json: bool) -> None:
    """following: of a search that was not at its end."""
    names = ("sender", "type", "error_code", "error_place")
    counts = Counter(tuple(row[name] for name in names) for row in rows)
    kinds = [{**dict(zip(names, kind, strict=True)), "count": count} for kind, count in counts.most_common()]
    if as_json:
        _print_json({"found": len(rows), "more": following is not None, "kinds": kinds})
        return
    print(f"found: {len(rows)}{', and there may be more: --limit' if following is not None else ''}")
    _show(kinds, as_json)


ProfileFile = Annotated[Path, typer.Argument(help="the profile, a TOML file")]


@GROUPS["mapping"].command("check")
def mapping_check(file: ProfileFile, config_file: ConfigFile = None) -> None:
    """Every fault of a profile, with its line."""
    settings = _open(config_file)
    text = _read(file)
    fields_max = settings.limits.mllp_fields_max
    profile, problems = db.read(lambda session: mapping.look(text, store.find(session), fields_max=fields_max))
    below = profile.chain if profile else ()
    for problem in problems:
        where = f"{problem.profile}, " if problem.profile in below else ""
        print(f"{file}: {where}line {problem.line}: {'warning: ' if problem.warning else ''}{problem.text}")
    if profile is None:
        _fail(f"{file}: not in order")
    else:
        print(f"{profile.name}: in order")


@GROUPS["mapping"].command("try")
def mapping_try(
    file: ProfileFile,
    message: Annotated[str, typer.Option(help="a file with one message, or its number in the journal")],
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """What the profile makes of a message: each value with its source, and what of the message is not used."""
    settings = _open(config_file)
    text = _read(file)
    profile = db.read(lambda session: mapping.parse(text, store.find(session)))
    if message.isascii() and message.isdigit():
        msg = db.read(trial.message_of, int(message), settings)
    else:
        msg = trial.read_message(_read_bytes(Path(message)), settings)
    tried = trial.try_message(msg, profile, settings.site)
    if as_json:
        _print_json(dataclasses.asdict(tried))
        return
    for line in trial.lines(tried):
        print(view.visible(line))


@GROUPS["mapping"].command("diff")
def mapping_diff(
    file: ProfileFile,
    last: Annotated[int, typer.Option(min=1, help="so many of the last messages")] = 100,
    sender: Annotated[str, typer.Option(help="of this one alone: the name of its entry, or 'MSH-3|MSH-4'")] = "",
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """What the last messages would become with this profile, against now. Nothing is stored."""
    settings = _open(config_file)
    text = _read(file)
    profile = db.read(lambda session: mapping.parse(text, store.find(session)))
    found = db.read(trial.diff, profile, min(last, settings.limits.list_items_max), settings, sender=sender)
    if as_json:
        _print_json(dataclasses.asdict(found))
        return
    for one in found.differences:
        print(f"message {one.message_pk} {one.type}: {one.outcome}")
        for line in one.lines:
            print(f"  {view.visible(line)}")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.counts.items()))
    print(f"looked at {found.looked_at}: {counts or 'none'}")
    if not sender and not db.read(store.users, profile.name):
        print(f"no sender or intake names {profile.name} yet, so these are messages of all: --sender takes one's")


@GROUPS["mapping"].command("put")
def mapping_put(file: ProfileFile, config_file: ConfigFile = None) -> None:
    """Take it into use, as a new version. The broker reads the next message with it."""
    _open(config_file)
    name, version, outcome = db.run(store.put, _read(file), now=clock.now(), actor=ACTOR)
    print(f"{name} v{version}: {outcome}")
    if not db.read(store.users, name):
        print(f"no sender or intake names {name} yet: broker sender change NAME --mapping {name}")


@GROUPS["mapping"].command("list")
def mapping_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """The site's profiles with their versions, and those that are shipped."""
    _open(config_file)
    own = [{"name": row.name, "version": row.version, "in_use": row.active, "made_by": row.made_by,
            "made_at": clock.iso(row.created_at)} for row in db.read(store.rows)]  # fmt: skip
    shipped = [{"name": name, "version": "shipped", "in_use": True, "made_by": "", "made_at": ""}
               for name in mapping.shipped_names()]  # fmt: skip
    _show([*own, *shipped], as_json)


@GROUPS["mapping"].command("show")
def mapping_show(name: str, version: Annotated[int | None, typer.Option(min=1)] = None,
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """The text of a profile, as it is in use or of that version."""
    _open(config_file)
    print(db.read(store.text_of, name, version), end="")


@GROUPS["mapping"].command("rollback")
def mapping_rollback(name: str, to: Annotated[int | None, typer.Option(min=1, help="else the one before")] = None,
                     config_file: ConfigFile = None) -> None:  # fmt: skip
    """Take an earlier version into use again."""
    _open(config_file)
    print(f"{name} v{db.run(store.rollback, name, to, now=clock.now(), actor=ACTOR)} is in use")


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
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = settings.data_dir / ".write-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError("data_dir", f"cannot be written: {error.strerror}; set BROKER_DATA_DIR") from None
    _open(config_file)
    print("settings, data folder and database are in order")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
