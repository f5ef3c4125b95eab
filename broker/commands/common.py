"""What the verbs share: the groups they stand in, how they open the broker, how they show what they found."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from broker import config, db, log, schema
from broker.archive import status
from broker.errors import ConfigError, InvalidValue
from broker.ris_bridge.hl7 import view
from broker.site_toml import members

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
KEY_MAX, ROWS_MAX = 2**63 - 1, 1_000_000  # that a database can have; that are told at once
Key = Annotated[int, typer.Argument(min=1, max=KEY_MAX)]
ACTOR = "command line"


Command = Callable[..., None]


def with_options(options: Mapping[str, tuple[Any, Any]]) -> Callable[[Command], Command]:
    """A command that has these options too, and gets them as one, `said`. options: name -> annotation, default."""

    def with_these(command: Command) -> Command:
        @functools.wraps(command)
        def called(**given: Any) -> None:
            said = {name: given.pop(name) for name in options}
            command(said=said, **given)

        own = inspect.signature(command).parameters
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = {
            **{name: own[name].replace(kind=keyword) for name in own if name != "said"},
            **{
                name: inspect.Parameter(name, keyword, default=default, annotation=annotation)
                for name, (annotation, default) in options.items()
            },
        }
        called.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
        called.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        return called

    return with_these


def fail(text: str) -> None:
    print(f"broker: {text}", file=sys.stderr)
    sys.exit(1)


def opened(config_file: Path | None = None, *, is_new: bool = False) -> config.Settings:
    """Settings and an open database at the newest schema. is_new: it is made where there is none."""
    settings = config.load(config_file)
    log.configure(settings.log_level)
    file = Path(settings.database.removeprefix("sqlite:///"))
    if not is_new and settings.database.startswith("sqlite") and not file.exists():
        raise ConfigError(str(file), "there is no broker here: run broker init, or set BROKER_DATA_DIR to its folder")
    db.open_engine(settings.database, pool=4)
    schema.prepare()
    status.configure(settings)
    db.on_finish(status.publish)
    return settings


def show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("none")
        return
    names = list(rows[0])
    texts = [[cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[n]) for row in texts)) for n, name in enumerate(names)]
    for row in [names, *texts]:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def show_some(rows: Iterable[Any], names: Sequence[str], as_json: bool) -> None:
    """Of each row of the database, these."""
    show([{name: getattr(row, name) for name in names} for row in rows], as_json)


def print_json(found: Any) -> None:
    print(view.visible_json(json.dumps(found, ensure_ascii=False, default=str, indent=1)))


def split(place: str, text: str) -> list[str]:
    """place: that is told where a member is empty."""
    try:
        return members(text)
    except ValueError as error:
        raise InvalidValue(place, str(error)) from None


def only_said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def cell(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return view.visible(text).replace("\n", "\\x0a")


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None
