"""Verbs on what the site looks like: senders, intakes, tokens, and the whole as one file."""

from pathlib import Path
from typing import Annotated

import typer

from broker import clock, config, db, site
from broker.commands.common import ACTOR, GROUPS, AsJson, ConfigFile, Said, only_said, opened, show, show_some, split

MESSAGES = "sender messages"


@GROUPS["token"].command("create")
def token_create(name: Annotated[str, typer.Option()], role: Annotated[str, typer.Option(help="ris, ehr, qc, admin")],
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """Make a token; it is printed once."""
    opened(config_file)
    print(db.run(site.create_token, name, role, now=clock.now(), actor=ACTOR))


@GROUPS["token"].command("list")
def token_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Names and roles."""
    opened(config_file)
    show_some(db.read(site.tokens), ("name", "role", "disabled", "last_used_at"), as_json)


@GROUPS["token"].command("disable")
def token_disable(name: str, config_file: ConfigFile = None) -> None:
    """Make a token useless."""
    opened(config_file)
    db.run(site.disable_token, name, now=clock.now(), actor=ACTOR)


@GROUPS["sender"].command("add")
def sender_add(name: str, application: str = "", facility: str = "", address: str = "",
               messages: Annotated[str, typer.Option(help="allowed types, such as ORM,ADT^A08; empty: all")] = "",
               character_set: str = "",
               tls_subject: Annotated[str, typer.Option(help="a name in its client certificate")] = "",
               mapping: Annotated[str, typer.Option(help="the profile that reads its messages")] = "",
               on_trouble: Annotated[str, typer.Option(help="close or AE, when a message cannot be taken now")] = "",
               order_responses: Annotated[bool, typer.Option("--order-responses", help="ORR, ORI, ORG.")] = False,
               label: Annotated[str, typer.Option(help="the worklist on which its orders stand")] = "",
               config_file: ConfigFile = None) -> None:  # fmt: skip
    """Register an HL7 sender."""
    opened(config_file)
    fields = {"application": application, "facility": facility, "address": address, "character_set": character_set,
              "messages": split(MESSAGES, messages), "tls_subject": tls_subject, "mapping": mapping,
              "on_trouble": on_trouble, "order_responses": order_responses, "label": label}  # fmt: skip
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
    label: Annotated[str | None, typer.Option(help="the worklist on which its orders stand")] = None,
    config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """Change what is named of a sender; the rest stays. '' takes a value away."""
    opened(config_file)
    fields = {"application": application, "facility": facility, "address": address, "character_set": character_set,
              "messages": None if messages is None else split(MESSAGES, messages), "tls_subject": tls_subject,
              "mapping": mapping, "on_trouble": on_trouble, "order_responses": order_responses,
              "label": label}  # fmt: skip
    print(db.run(site.change_sender, name, now=clock.now(), actor=ACTOR, **only_said(fields)))


@GROUPS["sender"].command("list")
def sender_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Registered senders."""
    opened(config_file)
    names = ("name", "application", "facility", "address", "tls_subject", "messages", "character_set", "mapping",
             "on_trouble", "order_responses", "label")  # fmt: skip
    show_some(db.read(site.senders), names, as_json)


@GROUPS["sender"].command("remove")
def sender_remove(name: str, config_file: ConfigFile = None) -> None:
    """Forget a sender."""
    opened(config_file)
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
    opened(config_file)
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
    opened(config_file)
    fields = {"path": path, "url": url, "secret_file": secret_file, "format": format_, "mapping": mapping,
              "character_set": character_set, "every_seconds": every_seconds}  # fmt: skip
    print(db.run(site.change_intake, name, now=clock.now(), actor=ACTOR, **only_said(fields)))


@GROUPS["intake"].command("list")
def intake_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Where orders are fetched, when next, and what was wrong the last time."""
    opened(config_file)
    names = ("name", "kind", "path", "url", "format", "mapping", "character_set", "every_seconds", "next_at", "cursor",
             "last_error")  # fmt: skip
    rows = [{name: getattr(row, name) for name in names} for row in db.read(site.intakes)]
    show([{**row, "url": config.masked(row["url"])} for row in rows], as_json)


@GROUPS["intake"].command("remove")
def intake_remove(name: str, config_file: ConfigFile = None) -> None:
    """Fetch nothing from there any more."""
    opened(config_file)
    db.run(site.remove_intake, name, now=clock.now(), actor=ACTOR)


@GROUPS["site"].command("export")
def site_export(config_file: ConfigFile = None) -> None:
    """Print the site file; secrets masked."""
    opened(config_file)
    print(db.read(site.export), end="")


@GROUPS["site"].command("import")
def site_import(file: Path, config_file: ConfigFile = None) -> None:
    """Apply a site file; the same file again changes nothing."""
    opened(config_file)
    entries = site.read_file(file)
    for what, outcome in db.run(site.apply, entries, now=clock.now(), actor=ACTOR):
        print(f"{what}: {outcome}")
