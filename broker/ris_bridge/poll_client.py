"""One question to an HTTP RIS: what has come since this cursor? Nothing is trusted but the certificate."""

import contextlib
import datetime as dt
import email.utils
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from broker import __version__, clock
from broker.config import Limits
from broker.errors import BrokerError
from broker.ris_bridge import intakes

CURSOR_CHARACTERS_MAX = 2_048
SECRET_BYTES_MAX = 4_096
BLANKS = re.compile(r"[ \t\r\n]*")


class NoAnswer(BrokerError):
    """Asked later. wait: seconds, where the other side says so."""

    title = "gives no answer that can be used"

    def __init__(self, text: str, wait: float = 0) -> None:
        super().__init__("", text)
        self.wait = wait


@dataclass(frozen=True)
class Item:
    """raw: its text as it stood in the answer. value: what that is."""

    raw: str
    value: Any


@dataclass(frozen=True)
class Page:
    """next: the cursor from which to go on; None: as before."""

    items: tuple[Item, ...] = ()
    next: str | None = None


def ask(url: str, cursor: str, secret_file: str, limits: Limits) -> Page:
    """Raises NoAnswer, whose text holds nothing of what was answered."""
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": f"ris-broker/{__version__}"}
    if secret_file and not intakes.keeps_secrets(url):
        raise NoAnswer("its url is not https: the token is not sent")
    if secret_file:
        headers["Authorization"] = f"Bearer {_secret(secret_file)}"
    try:
        asked = httpx.URL(url).copy_merge_params({"cursor": cursor} if cursor else {})
        with (
            _Line(limits.poll_seconds_max) as line,
            httpx.Client(
                verify=ssl.create_default_context(), trust_env=False, follow_redirects=False,
                timeout=limits.poll_seconds_max,
            ) as client,
            client.stream("GET", asked, headers=headers, extensions={"trace": line.trace}) as response,
        ):  # fmt: skip
            _check(response, limits)
            body = b"" if response.status_code in (204, 304) else _body(response, limits)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise NoAnswer(f"cannot be asked: {type(error).__name__}") from None
    return page(body, limits) if body else Page()


def page(body: bytes, limits: Limits) -> Page:
    """`{"items": […], "next": "…"}`, each item with its own text."""
    try:
        text = body.decode("utf-8-sig")
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise NoAnswer("its answer is no JSON in UTF-8") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("items"), list):
        raise NoAnswer('its answer is not {"items": [...], "next": "..."}')
    if len(tree["items"]) > limits.poll_items_max:
        raise NoAnswer(f"its answer has more than {limits.poll_items_max} items")
    following = tree.get("next")
    if following is not None and (not isinstance(following, str) or len(following) > CURSOR_CHARACTERS_MAX):
        raise NoAnswer(f"its cursor is no text of at most {CURSOR_CHARACTERS_MAX} characters")
    if following and re.search("[\x00-\x1f\x7f\ud800-\udfff]", following):
        raise NoAnswer("its cursor holds what is no character")
    return Page(tuple(_items(text)), following or None)


def _items(text: str) -> Iterator[Item]:
    """Of what is JSON of that form: the last `items`, as a reader of JSON takes it."""
    decoder, at, found = json.JSONDecoder(), _after(text, 0, "{"), list[Item]()
    while text[at] != "}":
        name, at = decoder.raw_decode(text, at)
        at = _after(text, at, ":")
        if name == "items" and text[at] == "[":
            found, at = [], _after(text, at, "[")
            while text[at] != "]":
                value, end = decoder.raw_decode(text, at)
                found.append(Item(text[at:end], value))
                at = _after(text, end, ",")
            at += 1
        else:
            _, at = decoder.raw_decode(text, at)
        at = _after(text, at, ",")
    yield from found


def _after(text: str, at: int, sign: str) -> int:
    """Where it goes on after blanks, after the sign where it stands there, and after blanks again."""
    at = _blanks(text, at)
    return _blanks(text, at + 1) if text.startswith(sign, at) else at


def _blanks(text: str, at: int) -> int:
    found = BLANKS.match(text, at)
    assert found is not None
    return found.end()


def _secret(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            secret = opened.read(SECRET_BYTES_MAX + 1).strip()
    except OSError as error:
        raise NoAnswer(f"secret_file cannot be read: {error.strerror}") from None
    if not re.fullmatch(rb"[!-~]{1,%d}" % SECRET_BYTES_MAX, secret):
        raise NoAnswer("secret_file must hold one line of visible ASCII characters")
    return secret.decode("ascii")


def _check(response: httpx.Response, limits: Limits) -> None:
    code = response.status_code
    if 300 <= code < 400 and code != 304:
        raise NoAnswer(f"answers with a redirect ({code}), which is not followed: set the url to where it leads")
    if code not in (200, 204, 304):
        wait = _retry_after(response.headers.get("Retry-After", ""), limits)
        raise NoAnswer(f"answers with status {code}", wait)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise NoAnswer("answers in a compressed form, which was not asked for")


def _retry_after(text: str, limits: Limits) -> float:
    """Seconds, from seconds or a date (RFC 9110 10.2.3)."""
    seconds = 0.0
    if re.fullmatch(r"\d{1,9}", text.strip()):
        seconds = float(text)
    elif text:
        with contextlib.suppress(ValueError):
            at = email.utils.parsedate_to_datetime(text)
            seconds = ((at if at.tzinfo else at.replace(tzinfo=dt.UTC)) - clock.now()).total_seconds()
    return min(max(0.0, seconds), limits.poll_retry_after_seconds_max)


def _body(response: httpx.Response, limits: Limits) -> bytes:
    parts, size = [], 0
    for part in response.iter_raw():
        size += len(part)
        if size > limits.poll_body_bytes_max:
            raise NoAnswer(f"its answer has more than {limits.poll_body_bytes_max} bytes")
        parts.append(part)
    return b"".join(parts)


# One question has its time, however slowly the other side says one byte after the other


class _Line:
    """The connection of one question, cut when its time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._sockets, self._is_over = seconds, list[socket.socket](), threading.Event()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Line":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._is_over.is_set():  # what was cut may look whole where its length was not told
            raise NoAnswer(f"its answer took more than {self._seconds:g} seconds") from None

    def trace(self, event: str, said: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(said["return_value"].get_extra_info("socket"))
            if intakes.is_link_local(self._sockets[-1].getpeername()[0]):  # whatever name led there
                raise NoAnswer("its url leads to a link-local address")
            if self._is_over.is_set():
                self._cut()

    def _cut(self) -> None:
        self._is_over.set()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)
