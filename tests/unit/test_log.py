"""What is written to the log, by us and by the libraries that we stand on."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from broker import log

NAME = "山田^太郎"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    kept = structlog.get_config()
    said = io.StringIO()
    log.configure(stream=said)
    yield said
    logging.getLogger().removeHandler(log._libraries)
    log._libraries = None
    structlog.configure(**kept)


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail() -> None:
    raise ValueError(f"no such patient: {NAME}")


def test_of_an_exception_its_kind_and_place_are_written_and_not_its_text(stream):
    try:
        fail()
    except ValueError as error:
        log.get().exception("it.failed")
        log.get().error("it.failed", exc_info=error)
        kept = error
    log.get().error("it.failed", exc_info=kept)
    for line in lines(stream):
        assert line["error"] == "ValueError"
        assert line["at"][-1].endswith(" fail")
    assert len(lines(stream)) == 3
    assert NAME not in stream.getvalue()
    assert "no such patient" not in stream.getvalue()


def test_a_library_writes_no_exception_text_and_no_values_either(stream):
    try:
        fail()
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
        logging.getLogger("asyncio").error(f"Task exception was never retrieved\nfuture: <{error!r}>", exc_info=error)
    logging.getLogger("some.library").warning("cannot read %r", NAME)
    first, second, third = lines(stream)
    assert first["event"] == "Exception in ASGI application"
    assert (first["logger"], first["level"], first["error"]) == ("uvicorn.error", "error", "ValueError")
    assert first["at"][-1].endswith(" fail")
    assert second["event"] == "Task exception was never retrieved"
    assert third["event"] == "cannot read %r"
    assert NAME not in json.dumps([first, second, third], ensure_ascii=False)


def test_configuring_twice_writes_each_line_once(stream):
    log.configure(stream=stream)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert len(lines(stream)) == 1
