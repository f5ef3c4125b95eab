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
    if event.pop("exc_info", None):
        kind, _, trace = sys.exc_info()
        frames = traceback.extract_tb(trace)[-FRAMES_MAX:]
        event["error"] = kind.__name__ if kind else ""
        event["at"] = [f"{frame.filename.rpartition('broker/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def configure(level: str = "info", *, stream: Any = None) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _where_it_failed,
            structlog.processors.JSONRenderer(
                ensure_ascii=True
            ),  # CR, LF, ESC and bidi leave as escapes (security V22)
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=stream or sys.stderr, format="%(levelname)s %(name)s %(message)s")
    # The libraries' own loggers write identifiers (conformance.md 7.1) and exception texts with values.
    for name in ("pynetdicom", "pydicom", "apscheduler", "sqlalchemy", "uvicorn.access", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def get() -> Any:
    return structlog.get_logger()
