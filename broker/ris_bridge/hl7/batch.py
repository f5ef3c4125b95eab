"""Batches (conformance.md 5.8): [FHS] {[BHS] {message} [BTS]} [FTS], in a frame of MLLP or a file. Each message is
taken by itself; one answer holds what each was told, and at its end what is wrong with the batch."""

import datetime as dt
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from broker import ids
from broker.errors import BrokerError, InvalidValue, MissingField
from broker.ris_bridge.hl7 import ack, charset, message
from broker.ris_bridge.hl7.message import Header

BEGIN = re.compile(rb"(FHS|BHS|MSH|BTS|FTS)(?=[!-/:-@\[-`{-~]|[\r\n]|\Z)")
TRAILERS = {"FHS": "FTS", "BHS": "BTS"}
VERSION = "2.5"  # of an answer about a batch in which no message says one


@dataclass(frozen=True)
class Envelope:
    """FHS or BHS as it came. messages: raw, each with its line ends. problem: what is wrong with its trailer. Around
    messages that stand without one `head` is empty."""

    head: bytes
    messages: tuple[bytes, ...]
    problem: BrokerError | None = None


@dataclass(frozen=True)
class Batch:
    """file: FHS, without messages of its own."""

    file: Envelope
    parts: tuple[Envelope, ...]

    @property
    def messages(self) -> list[bytes]:
        return [one for part in self.parts for one in part.messages]

    @property
    def problems(self) -> list[BrokerError]:
        return [one.problem for one in (*self.parts, self.file) if one.problem]


def begins(raw: bytes) -> bool:
    """Whether it is a batch, and no message by itself."""
    found = BEGIN.match(raw.removeprefix(charset.MARK).lstrip())
    return found is not None and found[1] in (b"FHS", b"BHS")


def split(raw: bytes, messages_max: int) -> Batch:
    """Also of a file with one message, or with several one after the other. What a trailer says that is not so is a
    problem of the batch: its messages are messages all the same.

    Raises InvalidValue where there are more messages than that, or something stands before the first segment."""
    raw = raw.removeprefix(charset.MARK)
    file, head, messages, parts = Envelope(b"", ()), b"", list[bytes](), list[Envelope]()
    missing = {name: MissingField(f"{name}^1", "the batch does not end with it") for name in TRAILERS.values()}
    total = batches = 0

    def close(problem: BrokerError | None) -> None:
        nonlocal head
        if head or messages:
            parts.append(Envelope(head, tuple(messages), problem if head else None))
        head = b""
        messages.clear()

    for name, piece in _pieces(raw):
        if name == "MSH":
            total += 1
            if total > messages_max:
                raise InvalidValue("message", f"the batch has more than {messages_max} messages", err="100")
            messages.append(piece)
        elif name == "FHS":
            close(missing["BTS"])
            file = Envelope(piece, (), missing["FTS"])
        elif name == "BHS":
            close(missing["BTS"])
            head = piece
            batches += 1
        elif name == "BTS":
            close(_miscounted("BTS", piece, len(messages)))
        else:
            close(missing["BTS"])
            file = replace(file, problem=_miscounted("FTS", piece, batches))
    close(missing["BTS"])
    return Batch(file, tuple(parts))


def _pieces(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Each envelope segment alone, each message whole."""
    lines = re.finditer(rb"[^\r]*(?:\r\n?|\Z)" if b"\r" in raw else rb"[^\n]*(?:\n|\Z)", raw)
    name, start = "", 0
    for line in lines:
        found = BEGIN.match(line[0])
        if found is None:
            if not name and line[0].strip():
                raise InvalidValue("message", "begins with something else than FHS, BHS or MSH", err="100")
            continue
        if name:
            yield name, raw[start : line.start()]
        name, start = found[1].decode(), line.start()
    if name:
        yield name, raw[start:]


def _miscounted(name: str, piece: bytes, count: int) -> BrokerError | None:
    line = piece.strip()
    said = line.split(line[3:4])[1].strip() if len(line) > 3 else b""
    if not said or (said.isdigit() and len(said) < 10 and int(said) == count):
        return None
    return InvalidValue(f"{name}^1^1", f"is not the number of what the batch holds, which is {count}", err="100")


# The answer


def answer(batch: Batch, answers: Sequence[bytes], *, now: dt.datetime, default_set: str) -> bytes:
    """One batch like the one that came. answers: of each message, in their order; one may hold several messages, or
    none. Where a trailer is wrong, the last message of its batch says so about the batch's own control ID."""
    left = iter(answers)
    bodies = []
    for part in batch.parts:
        told = [one for _ in part.messages for one in next(left).split(ack.BETWEEN) if one]
        bodies.append(_enclosed(part, told, now, default_set, "BHS"))
    if not batch.file.head:
        return b"".join(bodies)
    if batch.file.problem:
        last = replace(batch.file, problem=None)
        bodies.append(_enclosed(last, [_about(batch.file, now, default_set)], now, default_set, "BHS"))
    return _wrapped("FHS", batch.file, bodies, len(bodies), now, default_set)


def _enclosed(part: Envelope, told: list[bytes], now: dt.datetime, default_set: str, name: str) -> bytes:
    if part.problem:
        told = [*told, _about(part, now, default_set)]
    return _wrapped(name, part, told, len(told), now, default_set) if part.head else b"".join(told)


def _about(part: Envelope, now: dt.datetime, default_set: str) -> bytes:
    return ack.build(_as_message(part, default_set), part.problem, now=now)


def refusal(raw: bytes, error: BrokerError, *, now: dt.datetime, default_set: str) -> bytes:
    """The answer to a batch of which no message was looked at."""
    line = message.segment_lines(raw.removeprefix(charset.MARK).lstrip()[: message.HEADER_BYTES_MAX])[0]
    name = line[:3].decode()
    return _enclosed(Envelope(line, (), error), [], now, default_set, name)


def _as_message(part: Envelope, default_set: str) -> Header:
    """FHS and BHS have the fields of MSH up to the time; 11 is their control ID."""
    head = message.header(b"MSH" + part.head[3:], default_set)
    version = next((message.header(one, default_set)[12] for one in part.messages), "") or VERSION
    put = {9: "", 10: head[11], 11: "P", 12: version, **dict.fromkeys(range(13, 21), "")}
    texts, raw = [*head.fields, *[""] * 21][:21], [*head.raw, *[b""] * 21][:21]
    raw[10] = raw[11]
    for number, text in put.items():
        texts[number] = text
        raw[number] = raw[number] if number == 10 else text.encode("latin_1", "replace")
    return Header(head.delimiters, tuple(texts), tuple(raw))


def _wrapped(name: str, part: Envelope, inside: list[bytes], count: int, now: dt.datetime, default_set: str) -> bytes:
    head = message.header(b"MSH" + part.head[3:], default_set)
    field = head.delimiters[0].encode()
    raw = [*head.raw, *[b""] * 13]
    stamp, own = now.strftime("%Y%m%d%H%M%S%z").encode(), ids.control_id().encode()
    fields = [name.encode(), raw[2], raw[5], raw[6], raw[3], raw[4], stamp, b"", b"", b"", own, raw[11]]
    first = field.join(fields).rstrip(field) + b"\r"
    last = TRAILERS[name].encode() + field + str(count).encode() + b"\r"
    return first + b"".join(inside) + last
