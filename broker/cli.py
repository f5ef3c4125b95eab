"""The command line. Errors are one line on stderr that says what and how to mend it: status 1, or 2 for usage."""

from typing import Annotated

import typer
from sqlalchemy.exc import SQLAlchemyError

from broker import __version__, clock, config, db, schema, site
from broker.commands.common import ACTOR, GROUPS, AsJson, ConfigFile, app, fail, opened, show, split
from broker.errors import BrokerError, ConfigError


def main() -> None:
    try:
        app()
    except BrokerError as error:
        fail(str(error))
    except SQLAlchemyError as error:
        fail(
            f"database: {type(getattr(error, 'orig', None) or error).__name__}; is BROKER_DATABASE_URL right, is it up?"
        )
    except KeyboardInterrupt:
        fail("interrupted")


@app.command("serve")
def serve_(roles: Annotated[str, typer.Option(help="web,dicom,hl7,jobs")] = "web,dicom,hl7,jobs",
           config_file: ConfigFile = None) -> None:  # fmt: skip
    """Run the broker."""
    from broker import serve  # what only the server needs is loaded for it alone: other verbs answer at once

    wanted = split("--roles", roles)
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
    opened(config_file, is_new=True)
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


@GROUPS["config"].command("show")
def config_show(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Effective settings with their source; secrets masked."""
    rows = config.show(config.load(config_file), config.sources(config_file))
    show([dict(zip(("setting", "value", "source"), row, strict=True)) for row in rows], as_json)


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
    opened(config_file)
    print("settings, data folder and database are in order")
