"""Logs: one JSON object per line on stderr, an event name and keys. Never patient data (architecture.md 12.8)."""

import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import structlog

FRAMES_MAX = 8


def _where_it_failed(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Type and frames of an exception. Not its text: a library's message may quote the value, that is the patient."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exc_info()[1]
    if given and error is not None:
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
        event["error"] = type(error).__name__
        event["at"] = [f"{frame.filename.rpartition('broker/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return event


PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _where_it_failed,
    structlog.processors.JSONRenderer(ensure_ascii=True),  # CR, LF, ESC and bidi leave as escapes (security V22)
]


class _OfLibrary(logging.Formatter):
    """A library's record as one of ours: what it always says, without the values that it says it of."""

    def format(self, record: logging.LogRecord) -> str:
        event: Any = {"event": str(record.msg).partition("\n")[0], "logger": record.name, "exc_info": record.exc_info}
        for processor in PROCESSORS:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


_libraries: logging.Handler | None = None


def configure(level: str = "info", *, stream: Any = None) -> None:
    global _libraries
    structlog.configure(
        processors=PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if _libraries is not None:
        root.removeHandler(_libraries)
    _libraries = logging.StreamHandler(stream or sys.stderr)
    _libraries.setFormatter(_OfLibrary())
    root.addHandler(_libraries)
    root.setLevel(logging.WARNING)
    # The libraries' own loggers write identifiers (conformance.md 7.1).
    for name in ("pynetdicom", "pydicom", "apscheduler", "sqlalchemy", "uvicorn.access", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def get() -> Any:
    return structlog.get_logger()
