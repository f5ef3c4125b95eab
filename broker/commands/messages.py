"""Verbs on the journal: what came in, and what became of it."""

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from broker import clock, config, db
from broker.commands.common import (
    ACTOR,
    GROUPS,
    KEY_MAX,
    ROWS_MAX,
    AsJson,
    Command,
    ConfigFile,
    Key,
    cell,
    opened,
    print_json,
    show,
    with_options,
)
from broker.ris_bridge import journal, replay
from broker.ris_bridge.crashes import CRASHES
from broker.ris_bridge.hl7 import view
from broker.states import MESSAGE, states_of

MESSAGE_STATES = sorted(states_of(MESSAGE))
TIME_HELP = "2025-12-01, 2025-12-01T09:30, …+09:00; 09:30 is today's"
FILTER_HELP = {
    "number": "a number or ID of any kind", "type": "ORM^O01, or ORM for all its events",
    "state": ", ".join(MESSAGE_STATES), "since": TIME_HELP, "until": TIME_HELP,
}  # fmt: skip
CLOCK_TIME = re.compile(r"\d\d:\d\d(:\d\d)?")
After = Annotated[int, typer.Option(min=0, max=KEY_MAX, help="go on after this message")]
LANGUAGES = ("ja", "en")


def _filtered(**usual: str) -> Callable[[Command], Command]:
    """A command that has every filter of the journal as an option. usual: their values where they are not empty."""
    return with_options(
        {
            name: (
                Annotated[str, typer.Option(help=FILTER_HELP.get(name), rich_help_panel="Which")],
                usual.get(name, ""),
            )
            for name in journal.FILTERS
        }
    )


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
    said: dict[str, str], after: After = 0, limit: Annotated[int, typer.Option(min=1, max=ROWS_MAX)] = 50,
    as_json: AsJson = False, config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """The journal, newest first."""
    settings, wanted = _wanted(config_file, said)
    rows, _ = _listed(wanted, settings, limit, after)
    names = ("id", "received_at", "type", "sender", "state", "age_seconds", "error_code", "error_place", "became")
    show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json)


@GROUPS["message"].command("exceptions")
def message_exceptions(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """What was refused and waits for a person, counted by kind."""
    settings = opened(config_file)
    found = db.read(journal.exceptions, now=clock.now(), looked_at=settings.limits.journal_rows_max)
    if not as_json:
        print(f"refused: {found['refused']}")
    show(found["kinds"], as_json)


@GROUPS["message"].command("show")
def message_show(
    message_id: Key,
    language: Annotated[str, typer.Option(help="of the names of fields: ja, en; else the site's")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="Nothing but the bytes as they came.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """One message: what became of it, its fields by name, its answer."""
    if language and language not in LANGUAGES:
        raise typer.BadParameter(f"no such language: {language}; languages are {', '.join(LANGUAGES)}")
    settings = opened(config_file)
    if raw:
        sys.stdout.buffer.write(db.read(journal.get, message_id).raw)
        return
    row = db.read(
        journal.message, message_id, settings=settings, language=language or settings.site.language, now=clock.now()
    )
    if as_json:
        print_json(row)
        return
    shown = {name: value for name, value in row.items() if not name.startswith(("raw", "answer_", "keys"))}
    shown |= {"keys": ", ".join(f"{key['kind']} {key['value']}" for key in row["keys"]), "sent": row["answer_sent"]}
    for name, value in shown.items():
        if name != "answer":
            print(f"{name}: {cell(value)}")
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
    message_id: Annotated[
        int | None, typer.Argument(min=1, max=KEY_MAX, help="Without it: all that are found, the oldest first.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is found, by kind.")] = False,
    after: After = 0,
    limit: Annotated[int, typer.Option(min=1, max=ROWS_MAX, help="at most so many")] = 1000,
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
    show(rows if as_json else [{name: row[name] for name in names} for row in rows], as_json)
    if following is not None and not as_json:
        print(f"{limit} were looked at, and there may be more: --after {following}")


@GROUPS["message"].command("dismiss")
def message_dismiss(
    message_id: Key, reason: Annotated[str, typer.Option(help="why nothing more is needed")],
    config_file: ConfigFile = None,
) -> None:  # fmt: skip
    """Take a refused message off the list of those that wait for a person."""
    opened(config_file)
    db.run(replay.dismiss, message_id, reason=reason, actor=ACTOR, now=clock.now())
    print(f"message {message_id} is dismissed")


def _wanted(config_file: Path | None, said: dict[str, str]) -> tuple[config.Settings, journal.Wanted]:
    if said["state"] and said["state"] not in MESSAGE_STATES:
        raise typer.BadParameter(f"no such state: {said['state']}; states are {', '.join(MESSAGE_STATES)}")
    settings = opened(config_file)
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
        print_json({"found": len(rows), "more": following is not None, "kinds": kinds})
        return
    print(f"found: {len(rows)}{', and there may be more: --limit' if following is not None else ''}")
    show(kinds, as_json)
