"""Verbs on other providers' worklists, which are asked for what they list."""

from typing import Annotated, Any

import typer

from broker import clock, db, site
from broker.commands.common import (
    ACTOR,
    GROUPS,
    AsJson,
    Command,
    ConfigFile,
    app,
    cell,
    fail,
    only_said,
    opened,
    print_json,
    show,
    with_options,
)
from broker.errors import InvalidValue
from broker.ris_bridge import upstream
from broker.site_toml import UpstreamEntry

GROUPS["upstream"] = typer.Typer(help="Other worklists that are asked for what they list.", no_args_is_help=True)
app.add_typer(GROUPS["upstream"], name="upstream")

MORE: dict[str, tuple[Any, Any]] = {
    "calling_ae_title": (Annotated[str | None, typer.Option(help="our AE title there; else dicom.ae_title")], None),
    "modality": (Annotated[str | None, typer.Option(help="asked for this alone, such as CT")], None),
    "station_ae_title": (Annotated[str | None, typer.Option(help="asked for this device alone")], None),
    "days_before": (Annotated[str | None, typer.Option(help="today that are asked for; -1: no border")], None),
    "days_after": (Annotated[str | None, typer.Option(help="today that are asked for; -1: no border")], None),
    "key": (Annotated[list[str] | None, typer.Option(help="KEYWORD=VALUE, may be repeated; '' takes all away")], None),
    "every_seconds": (Annotated[str | None, typer.Option(help="between two questions")], None),
    "patient_id_issuer": (Annotated[str | None, typer.Option(help="where an entry names none")], None),
    "accession_issuer": (Annotated[str | None, typer.Option(help="where an entry names none")], None),
    "label": (Annotated[str | None, typer.Option(help="the worklist on which its orders stand")], None),
    "character_set": (Annotated[str | None, typer.Option(help="of answers that name none")], None),
    "enabled": (Annotated[bool | None, typer.Option("--enabled/--disabled", help="Whether it is asked.")], None),
    "priority": (Annotated[str | None, typer.Option(help="of two that differ the smaller number counts")], None),
    "gone": (Annotated[str | None, typer.Option(help="what is listed no more: keep, cancel")], None),
    "gone_after": (Annotated[str | None, typer.Option(help="complete answers without it")], None),
}
SHOWN = ("name", "ae_title", "host", "port", "breaker", "priority", "entries", "refused", "answered_at", "stale_since",
         "next_at", "last_error")  # fmt: skip


def _fields(said: dict[str, Any]) -> dict[str, Any]:
    """As a site file has them. Empty: as without it."""
    fields = {
        name: UpstreamEntry.model_fields[name].get_default(call_default_factory=True) if value == "" else value
        for name, value in only_said(said).items()
    }
    if "key" in fields:
        parted = [one.partition("=") for one in fields.pop("key") if one]
        if any(not equals for _, equals, _ in parted):
            raise InvalidValue("--key", "must be KEYWORD=VALUE, such as InstitutionName=NORTH")
        fields["keys"] = {name.strip(): value.strip() for name, _, value in parted}
    return fields


def _command(verb: str) -> Any:
    def register(command: Command) -> Command:
        return GROUPS["upstream"].command(verb)(with_options(MORE)(command))

    return register


@_command("add")
def upstream_add(name: str, host: Annotated[str, typer.Option()], port: Annotated[int, typer.Option()],
                 ae_title: Annotated[str, typer.Option(help="its own")], said: dict[str, Any],
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """Register a worklist that is asked."""
    opened(config_file)
    fields = {"host": host, "port": port, "ae_title": ae_title, **_fields(said)}
    print(db.run(site.add_upstream, name, now=clock.now(), actor=ACTOR, **fields))


@_command("change")
def upstream_change(name: str, said: dict[str, Any], host: Annotated[str | None, typer.Option()] = None,
                    port: Annotated[int | None, typer.Option()] = None,
                    ae_title: Annotated[str | None, typer.Option(help="its own")] = None,
                    config_file: ConfigFile = None) -> None:  # fmt: skip
    """Change what is named of it; the rest stays. '' takes a value away."""
    opened(config_file)
    fields = only_said({"host": host, "port": port, "ae_title": ae_title}) | _fields(said)
    print(db.run(site.change_upstream, name, now=clock.now(), actor=ACTOR, **fields))


@GROUPS["upstream"].command("list")
def upstream_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Worklists that are asked: when they answered last, since when they are away, and why."""
    settings = opened(config_file)
    rows = db.read(upstream.rows, settings.limits, clock.now())
    show(rows if as_json else [{name: row[name] for name in SHOWN} for row in rows], as_json)


@GROUPS["upstream"].command("remove")
def upstream_remove(name: str, config_file: ConfigFile = None) -> None:
    """Ask it no more. The orders that it listed stay."""
    opened(config_file)
    db.run(site.remove_upstream, name, now=clock.now(), actor=ACTOR)


@GROUPS["upstream"].command("try")
def upstream_try(name: str, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Ask it, and tell what would become of its entries. Nothing is changed."""
    settings = opened(config_file)
    found = upstream.attempt(name, settings)
    if as_json:
        print_json(found)
        return
    show(found["entries"], as_json=False)
    _tell(found["counts"])
    if found["missing_orders"]:
        print(f"listed no more: {cell(found['missing_orders'])} (orders)")
    if found["error"]:
        fail(f"upstream {name}: {found['error']}")


@GROUPS["upstream"].command("now")
def upstream_now(
    name: str,
    gone: Annotated[bool, typer.Option("--gone", help="Take all that it lists no more as gone, at once.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Ask it now, although it is not its time."""
    settings = opened(config_file)
    found = upstream.ask_now(name, settings, takes_gone=gone)
    _tell(found["counts"])
    if found["last_error"]:
        fail(f"upstream {name}: {found['last_error']}")


def _tell(counts: dict[str, int]) -> None:
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
