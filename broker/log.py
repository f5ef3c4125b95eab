"""Logs: one JSON object per line on stderr, an event name and keys. Never patient data (architecture.md 12.8)."""

import logging
import sys
from typing import Any

import structlog


def configure(level: str = "info", *, stream: Any = None) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
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
