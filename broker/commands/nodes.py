"""Verbs on devices: who they are, and what each is shown of the worklist."""

from typing import Annotated, Any

import typer

from broker import clock, db, site
from broker.commands.common import (
    ACTOR,
    GROUPS,
    AsJson,
    ConfigFile,
    only_said,
    opened,
    show,
    show_some,
    split,
    with_options,
)
from broker.dicom import habits
from broker.errors import InvalidValue
from broker.site_toml import NodeEntry

NODE = GROUPS["node"]
LISTED = (
    "ae_title", "host", "port", "any_address", "device", "kind", "station_names", "modality", "rights",
    "character_set", "profile", "sees",
)  # fmt: skip
ALL = tuple(NodeEntry.model_fields)
LISTS = {
    "rights", "station_names", "aliases", "groups", "sees", "labels", "hide", "character_sets_also", "requires",
    "quirks",
}  # fmt: skip
# Where an empty list shows everything: field -> what who writes `none` may have meant.
ALL_IF_EMPTY = {
    "sees": "a device that is to see nothing has no right to the worklist: --rights, without worklist",
    "labels": 'what has no label alone is labels = [""] in a site file',
}
WHO, WHAT, HOW = "Who it is", "What it is shown", "How it is shown"
# field -> where it stands in the help, what it says
HELP = {
    "device": (WHO, "titles with the same device are one machine"),
    "kind": (WHO, "modality, mobile (sends when docked again), qa, import"),
    "modality": (WHO, "such as CT"),
    "station_names": (WHO, "Station Names (0008,1010), separated by commas"),
    "rights": (WHO, "worklist,mpps,store,commitment,query,retrieve"),
    "mpps_strict": (WHO, "yes or no: an absent type 2 attribute is an error; else as the site has it"),
    "accession_issuer": (WHO, "where its objects name none"),
    "patient_id_issuer": (WHO, "where its objects name none"),
    "aliases": (WHAT, "further AE titles by which orders mean it"),
    "groups": (WHAT, "AE titles by which orders mean any device of a group"),
    "profile": (WHAT, "habits that are known, separated by commas: broker node profiles"),
    "sees": (WHAT, "own,modality,ae:TITLE,location:TEXT, any of which is enough; without: what its keys ask for; "
             "all: so whatever its profile says"),
    "labels": (WHAT, "worklists, by their labels; without, or all: all"),
    "hide": (WHAT, "statuses, such as STARTED,COMPLETED"),
    "started_hours": (WHAT, "that what has started stays, unless it is hidden"),
    "finished_hours": (WHAT, "the same for what is over"),
    "days_before": (WHAT, "today: what is scheduled before is not shown"),
    "days_after": (WHAT, "today: what is scheduled later is not shown"),
    "expire_days": (WHAT, "after which an item for it alone expires"),
    "idle_days": (WHAT, "the same for who arrived and was not begun with"),
    "matches_max": (HOW, "answers to one query"),
    "character_set": (HOW, r"such as '\ISO 2022 IR 87', ISO_IR 192, ASCII, REQUEST"),
    "character_sets_also": (HOW, "what may stand in for it, such as 'ISO 2022 IR 159,ISO_IR 192'"),
    "lengths": (HOW, "characters that it can take, such as RequestedProcedureDescription=16"),
    "requires": (HOW, "keywords without a value of which it drops an item, such as AccessionNumber"),
    "quirks": (HOW, ", ".join(habits.QUIRKS)),
}  # fmt: skip
TEXTS = {
    name: (Annotated[str | None, typer.Option(help=text, rich_help_panel=panel)], None)
    for name, (panel, text) in HELP.items()
}
ANY_ADDRESS = typer.Option("--any-address/--no-any-address", help="Its source address is not looked at.")


def _fields(said: dict[str, str | None]) -> dict[str, Any]:
    """As a site file has them. Empty: as without it."""
    return {name: _field(name, text) for name, text in only_said(said).items()}


def _field(name: str, text: str) -> Any:
    if not text:
        return NodeEntry.model_fields[name].get_default(call_default_factory=True)
    if name in ALL_IF_EMPTY:
        return _all_if_empty(name, split(f"node {name}", text))
    if name in LISTS:
        return [] if text == "none" else split(f"node {name}", text)
    if name == "lengths":
        return {} if text == "none" else dict(_pair(part) for part in split("node lengths", text))
    return text


def _all_if_empty(name: str, words: list[str]) -> list[str]:
    if "none" in map(str.casefold, words):
        said = f"write all for no rule of its own, which shows it everything; {ALL_IF_EMPTY[name]}"
        raise InvalidValue(f"node {name}", f"none is not clear: {said}")
    if "all" in words and len(words) > 1:
        raise InvalidValue(f"node {name}", "all stands alone: it is no rule of its own")
    return [] if words == ["all"] else words


def _pair(text: str) -> tuple[str, str]:
    keyword, equals, length = (part.strip() for part in text.partition("="))
    if not equals:
        raise InvalidValue("node lengths", "must be KEYWORD=CHARACTERS each, such as RequestedProcedureDescription=16")
    return keyword, length


@NODE.command("add")
@with_options(TEXTS)
def node_add(
    ae_title: str,
    said: dict[str, str | None],
    host: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    any_address: Annotated[bool, ANY_ADDRESS] = False,
    config_file: ConfigFile = None,
) -> None:
    """Register a device."""
    opened(config_file)
    fields = {"host": host, "port": port, "any_address": any_address, **_fields(said)}
    print(db.run(site.add_node, ae_title, now=clock.now(), actor=ACTOR, **fields))


@NODE.command("change")
@with_options(TEXTS)
def node_change(
    ae_title: str,
    said: dict[str, str | None],
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    any_address: Annotated[bool | None, ANY_ADDRESS] = None,
    config_file: ConfigFile = None,
) -> None:
    """Change what is named of a device; the rest stays.

    '' takes a value away, none is an empty list; of sees and labels that is called all."""
    opened(config_file)
    fields = only_said({"host": host, "port": port, "any_address": any_address}) | _fields(said)
    print(db.run(site.change_node, ae_title, now=clock.now(), actor=ACTOR, **fields))


@NODE.command("list")
def node_list(unknown: Annotated[bool, typer.Option("--unknown", help="Who knocked and was refused.")] = False,
              as_json: AsJson = False, config_file: ConfigFile = None) -> None:  # fmt: skip
    """Registered devices, or those that were refused."""
    settings = opened(config_file)
    if unknown:
        rows = db.read(site.unknown_peers, settings.limits.list_items_max)
        show_some(rows, ("ae_title", "address", "called", "reason", "times", "last_at"), as_json)
        return
    show_some(db.read(site.nodes), ALL if as_json else LISTED, as_json)


@NODE.command("remove")
def node_remove(ae_title: str, config_file: ConfigFile = None) -> None:
    """Forget a device."""
    opened(config_file)
    db.run(site.remove_node, ae_title, now=clock.now(), actor=ACTOR)


@NODE.command("profiles")
def node_profiles(as_json: AsJson = False) -> None:
    """Habits of devices that are known, for --profile."""
    show([{"name": name, "sentence": sentence} for name, sentence in habits.SENTENCES.items()], as_json)


@NODE.command("suggest")
def node_suggest(ae_title: str, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """What the last queries of a device say about it; broker node accept takes it."""
    settings = opened(config_file)
    proposals = db.read(site.suggestions, ae_title, settings)
    show_some(proposals, ("name", "sentence", "evidence", *(("changes",) if as_json else ())), as_json)


@NODE.command("accept")
def node_accept(
    ae_title: str,
    proposals: Annotated[list[str] | None, typer.Argument(help="Of broker node suggest; without: all.")] = None,
    config_file: ConfigFile = None,
) -> None:
    """Make a device what its queries say."""
    settings = opened(config_file)
    taken = db.run(site.accept, ae_title, proposals or [], settings, now=clock.now(), actor=ACTOR)
    print(f"accepted: {', '.join(taken)}" if taken else "nothing is proposed")
