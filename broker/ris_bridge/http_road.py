"""An HTTP request on its way through the inbox: what the journal keeps of it, what it asks for, what it is told.

REST and FHIR share it. The journal's raw bytes are the request line, the headers that change what it does, an empty
line and the body byte for byte; its answer is the status line, headers and body that were sent. So a row can be
replayed, and a repeated Idempotency-Key gets the same bytes again."""

import datetime as dt
import hashlib
import http
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic_core
from sqlmodel import Session

from broker import ids
from broker.config import Settings, Site
from broker.errors import BrokerError, InvalidValue, Unreadable, WrongState
from broker.model.messages import Message
from broker.model.orders import ImagingOrder
from broker.mwl import identity
from broker.mwl.commands import (
    Command,
    Identifier,
    Missing,
    OrderCommand,
    PatientCommand,
    PersonCommand,
    Policies,
    ProcedureCommand,
    StepCommand,
    VisitCommand,
)
from broker.ris_bridge import inbox, json_faults
from broker.ris_bridge.effects import Asked, Done, Told
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX, Answer, Read, Received, Road
from broker.ris_bridge.turns import Keys

KEPT = ("if-match", "if-none-exist")  # headers that change what a request does
KEY = re.compile(r"[!-~]{1,255}")
KEY_REUSED = "MSH^1^10"  # where the inbox says that a control id was used for other content
RETRY_SECONDS = 5
CHANGE = "send a change (XO)"  # what services advise, in the words of HL7
KEYS_MAX = 200  # of one request
PLACE_CHARACTERS_MAX = 200  # of a refusal: a name that is none of ours may have any length
BLANKS = "".join(char for char in map(chr, range(0x3001)) if unicodedata.category(char) == "Zs")
# For a class of a pattern: control, direction and zero-width characters (Cc without tabs and line ends, Cf, Zl, Zp),
# which nobody sees, and by which two identifiers that look alike would be two. Gaiji and a kanji's own form are text.
NO_TEXT = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U00013438\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
ONE_LINE = rf"{NO_TEXT}\t\n\r"


@dataclass(frozen=True)
class Request:
    """headers: those of KEPT, by their name in small letters."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def raw(self) -> bytes:
        kept = [f"{name}: {self.headers[name]}" for name in KEPT if name in self.headers]
        return "\r\n".join([f"{self.method} {self.path}", *kept]).encode() + b"\r\n\r\n" + self.body


def request_of(raw: bytes) -> Request:
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    method, _, path = line.partition(" ")
    return Request(method, path, body, dict(one.split(": ", 1) for one in headers))


@dataclass(frozen=True)
class Reply:
    status: int
    media: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def raw(self) -> bytes:
        line = f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}"
        headers = {"Content-Type": self.media, **self.headers}
        return "\r\n".join([line, *(f"{name}: {headers[name]}" for name in headers), "", self.body]).encode()


def reply_of(raw: bytes) -> Reply:
    head, _, body = raw.decode().partition("\r\n\r\n")
    line, *said = head.split("\r\n")
    headers = dict(one.split(": ", 1) for one in said)
    return Reply(int(line.split(" ")[1]), headers.pop("Content-Type"), body, headers)


# Into the inbox


def take(request: Request, protocol: str, road: Road, *, sender: str, peer: str, key: str, kind: str,
         settings: Settings) -> Answer:  # fmt: skip
    """The answer, already durable. key: Idempotency-Key, empty = none. kind: what the journal calls the request.

    Raises InvalidValue for a key that is none; database trouble as the inbox does."""
    if key and not KEY.fullmatch(key):
        raise InvalidValue("Idempotency-Key", "must be 1 to 255 visible ASCII characters")
    raw = request.raw()
    return inbox.take(
        Received(
            raw=raw, protocol=protocol, peer=peer, settings=settings, sender=sender[:KEY_CHARACTERS_MAX],
            control_id=key or ids.control_id(), digest=hashlib.sha256(raw).hexdigest(), type=kind,
        ),
        road,
    )  # fmt: skip


def again(row: Message, road: Road, settings: Settings) -> tuple[Received, Road]:
    """A journalled request, to be looked at once more."""
    return (
        Received(
            raw=row.raw, protocol=row.protocol, peer=row.peer, settings=settings, sender=row.sender,
            control_id=row.control_id, digest=row.sha256, type=row.type, time=row.message_time,
        ),
        road,
    )  # fmt: skip


# What it asks for


def read(
    received: Received,
    build: Callable[[], Asked],
    said: Iterable[tuple[str, str]],
    refusal: Callable[[BrokerError], Reply],
    change: str,
) -> Read:
    """said: what a request that is refused can still be found by. change: how an order is changed by this road."""
    keys = _bounded([("control", received.control_id), *said])
    asked: Asked | BrokerError
    try:
        asked = build()
        keys |= _bounded(_keys(asked.commands))
    except BrokerError as error:
        asked = error

    def commands() -> list[Any]:
        if isinstance(asked, BrokerError):
            raise asked
        return [asked]

    def answer(refused: BrokerError | None, done: Sequence[Done]) -> bytes:
        if refused:
            return refusal(_in_words(refused, change)).raw()
        (one,) = done
        assert isinstance(one, Told)
        return one.answer

    return Read(keys=keys, commands=commands, answer=answer, actor=received.sender)


def _in_words(error: BrokerError, change: str) -> BrokerError:
    if CHANGE not in error.text:
        return error
    return type(error)(error.place, error.text.replace(CHANGE, change), err=error.err)


def _bounded(keys: Iterable[tuple[str, str]]) -> Keys:
    """No database holds NUL, so nothing is found by it."""
    found = ((kind, value[:KEY_CHARACTERS_MAX]) for kind, value in keys if value and "\0" not in value)
    return frozenset(itertools.islice(dict.fromkeys(found), KEYS_MAX))


def _keys(commands: Iterable[Command]) -> Iterator[tuple[str, str]]:
    for command in commands:
        if isinstance(command, OrderCommand):
            yield "accession", command.accession_number
            for procedure in command.procedures:
                yield "study", procedure.study_instance_uid
                yield from _numbers(procedure)
                for step in procedure.steps:
                    yield from _numbers(step)
        if isinstance(command, VisitCommand) and command.order:
            yield "accession", command.order.accession_number
        if isinstance(command, OrderCommand | PatientCommand | VisitCommand) and command.patient:
            yield from (("patient", one.value) for one in command.patient.identifiers)


def _numbers(one: ProcedureCommand | StepCommand) -> Iterator[tuple[str, str]]:
    yield "placer", one.placer_number
    yield "filler", one.filler_number


def policies(site: Site) -> Policies:
    """What is to be rejected was refused before."""

    def policy(name: str) -> Missing:
        usual: Missing = getattr(Policies(), name)
        chosen = getattr(site, f"missing_{name}")
        return chosen if chosen in ("generate", "derive") else usual

    return Policies(
        accession_number=policy("accession_number"),
        requested_procedure_id=policy("requested_procedure_id"),
        sps_id=policy("sps_id"),
        study_instance_uid=policy("study_instance_uid"),
    )


# What is known of an order that a request names by its key


@dataclass(frozen=True)
class Known:
    accession_number: str
    accession_issuer: str
    patient: Identifier

    def command(self, control: str, **said: object) -> OrderCommand:
        """About this order."""
        return OrderCommand(
            control=control,  # type: ignore[arg-type]
            accession_number=self.accession_number,
            accession_issuer=self.accession_issuer,
            patient=self.person,
            **said,  # type: ignore[arg-type]
        )

    @property
    def person(self) -> PersonCommand:
        return PersonCommand((self.patient,))


def known(session: Session, order_pk: int, before: dt.datetime | None = None) -> Known | None:
    """before: when the request came, where it is looked at once more: it cannot have named what was made since.

    Raises WrongState for an order whose patient has lost every identifier."""
    order = session.get(ImagingOrder, order_pk)
    if order is None or (before and order.created_at > before):
        return None
    leading = identity.leading(session, order.patient_pk)
    if leading is None:
        raise WrongState("order", "its patient has no identifier any more: a person must say whose order it is")
    return Known(order.accession_number, order.accession_issuer, leading)


# Refusals


def place(error: BrokerError) -> tuple[str, str]:
    """Where, and what is wrong there, as a client over HTTP knows it."""
    if error.place == KEY_REUSED:
        return "Idempotency-Key", "this key was used for another request"
    return error.place, error.text


def http_status(error: BrokerError) -> int:
    return 422 if error.place == KEY_REUSED else error.wire.http


def retry(status_code: int) -> dict[str, str]:
    return {"Retry-After": str(RETRY_SECONDS)} if status_code == http.HTTPStatus.SERVICE_UNAVAILABLE else {}


def text(body: bytes) -> str:
    """Raises Unreadable: JSON is UTF-8 (RFC 8259 8.1)."""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("body", "is no UTF-8") from None


def json_of(text: str, place: str) -> Any:
    """Raises Unreadable, which says the line and the column; so also for half a character (a lone surrogate)."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Unreadable(place, f"the body is no JSON: {error}") from None


def refuse_twice(text: str, place: str) -> None:
    """A name that one object of this JSON says twice: the last would count, and nobody could know which was meant."""

    def check(pairs: Sequence[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            if json_faults.PLAIN_NAME.fullmatch(name):
                raise InvalidValue(name, "stands twice in one object")
            raise InvalidValue(place, "holds a name that stands twice in one object")

    json.loads(text, object_pairs_hook=check, parse_int=float)


def nul(found: Any, in_budget: Callable[[], None] = lambda: None) -> tuple[str | int, ...] | None:
    """Where a text or a name holds NUL, which no database takes as text."""
    in_budget()
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if isinstance(name, str) and "\0" in name:
            return ()
        if isinstance(value, str):
            if "\0" in value:
                return (name,)
        elif isinstance(value, dict | list) and (below := nul(value, in_budget)) is not None:
            return (name, *below)
    return None
