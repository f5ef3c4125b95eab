"""Verbs on mapping profiles."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from broker import clock, db
from broker.commands.common import (
    ACTOR,
    GROUPS,
    AsJson,
    ConfigFile,
    fail,
    opened,
    print_json,
    read_bytes,
    read_text,
    show,
)
from broker.ris_bridge.hl7 import view
from broker.ris_bridge.mapping import profile as mapping
from broker.ris_bridge.mapping import store, trial

ProfileFile = Annotated[Path, typer.Argument(help="the profile, a TOML file")]


@GROUPS["mapping"].command("check")
def mapping_check(file: ProfileFile, config_file: ConfigFile = None) -> None:
    """Every fault of a profile, with its line."""
    settings = opened(config_file)
    text = read_text(file)
    fields_max = settings.limits.mllp_fields_max
    profile, problems = db.read(lambda session: mapping.look(text, store.find(session), fields_max=fields_max))
    below = profile.chain if profile else ()
    for problem in problems:
        where = f"{problem.profile}, " if problem.profile in below else ""
        print(f"{file}: {where}line {problem.line}: {'warning: ' if problem.warning else ''}{problem.text}")
    if profile is None:
        fail(f"{file}: not in order")
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
    settings = opened(config_file)
    profile = _profile(file)
    if message.isascii() and message.isdigit():
        msg = db.read(trial.message_of, int(message), settings)
    else:
        msg = trial.read_message(read_bytes(Path(message)), settings)
    tried = trial.try_message(msg, profile, settings.site)
    if as_json:
        print_json(dataclasses.asdict(tried))
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
    settings = opened(config_file)
    profile = _profile(file)
    found = db.read(trial.diff, profile, min(last, settings.limits.list_items_max), settings, sender=sender)
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    for one in found.differences:
        print(f"message {one.message_pk} {one.type}: {one.outcome}")
        for line in one.lines:
            print(f"  {view.visible(line)}")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.counts.items()))
    print(f"looked at {found.looked_at}: {counts or 'none'}")
    if not sender and not db.read(store.users, profile.name):
        print(f"no sender or intake names {profile.name} yet, so these are messages of all: --sender takes one's")


def _profile(file: Path) -> mapping.Profile:
    text = read_text(file)
    return db.read(lambda session: mapping.parse(text, store.find(session)))


@GROUPS["mapping"].command("put")
def mapping_put(file: ProfileFile, config_file: ConfigFile = None) -> None:
    """Take it into use, as a new version. The broker reads the next message with it."""
    opened(config_file)
    name, version, outcome = db.run(store.put, read_text(file), now=clock.now(), actor=ACTOR)
    print(f"{name} v{version}: {outcome}")
    if not db.read(store.users, name):
        print(f"no sender or intake names {name} yet: broker sender change NAME --mapping {name}")


@GROUPS["mapping"].command("list")
def mapping_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """The site's profiles with their versions, and those that are shipped."""
    opened(config_file)
    own = [{"name": row.name, "version": row.version, "in_use": row.active, "made_by": row.made_by,
            "made_at": clock.iso(row.created_at)} for row in db.read(store.rows)]  # fmt: skip
    shipped = [{"name": name, "version": "shipped", "in_use": True, "made_by": "", "made_at": ""}
               for name in mapping.shipped_names()]  # fmt: skip
    show([*own, *shipped], as_json)


@GROUPS["mapping"].command("show")
def mapping_show(name: str, version: Annotated[int | None, typer.Option(min=1)] = None,
                 config_file: ConfigFile = None) -> None:  # fmt: skip
    """The text of a profile, as it is in use or of that version."""
    opened(config_file)
    print(db.read(store.text_of, name, version), end="")


@GROUPS["mapping"].command("rollback")
def mapping_rollback(name: str, to: Annotated[int | None, typer.Option(min=1, help="else the one before")] = None,
                     config_file: ConfigFile = None) -> None:  # fmt: skip
    """Take an earlier version into use again."""
    opened(config_file)
    print(f"{name} v{db.run(store.rollback, name, to, now=clock.now(), actor=ACTOR)} is in use")
