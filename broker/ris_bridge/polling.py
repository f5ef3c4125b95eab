"""An HTTP RIS that is asked: `GET url?cursor=…` gives `{"items": […], "next": "…"}`. An item is an order as
poll_orders.py reads it, `{"hl7": "text"}` or `{"hl7_base64": "…"}`.

Each goes through the inbox like one that was sent to us, and what the inbox refuses is in the journal. The cursor moves
only when a whole page is durable: after a failure the same page comes again, and the inbox knows what it took of it."""

import base64
import binascii
import datetime as dt
import hashlib
import re
import time
from collections.abc import Callable

from broker import clock, db, log
from broker.config import Settings
from broker.errors import BrokerError, InvalidValue, NoRoom
from broker.model.site import Intake
from broker.ris_bridge import http_road, inbox, intakes, poll_client, rest_road
from broker.ris_bridge.hl7 import batch, charset, message, road
from broker.ris_bridge.intakes import Turn
from broker.ris_bridge.poll_client import Item, NoAnswer

# How the text of an item may have to be written, so that MSH-18 says what it is.
CODECS = ("ascii", "iso2022_jp", "iso2022_jp_ext", "utf_8", "cp932", "euc_jp", "gb18030", "euc_kr", "big5", "latin_1")
EUC_OF = {char: euc for euc, char in charset.VENDOR_CHARACTERS.items() if not char.isascii()}
VENDOR_ROWS: dict[str, Callable[[bytes], bytes]] = {
    "iso2022_jp": lambda euc: b"\x1b$B" + bytes(byte & 0x7F for byte in euc) + b"\x1b(B",
    "euc_jp": lambda euc: euc,
}
DOUBLINGS_MAX = 16
_failures: dict[int, int] = {}  # intake -> how often it failed since it last did not


def work(settings: Settings) -> None:
    """One pass over the systems that are due to be asked."""
    until = time.monotonic() + settings.limits.intake_pass_seconds_max
    for intake in db.read(intakes.due, "poll", now=clock.now()):
        if time.monotonic() >= until:
            return
        turn = db.run(intakes.claim, intake, now=clock.now(), seconds=settings.limits.lease_seconds)
        if turn is not None:
            _ask(turn, settings, until)


def _ask(turn: Turn, settings: Settings, until: float) -> None:
    """Page after page, as long as there are more and there is time."""
    limits, held, cursor = settings.limits, turn, turn.intake.cursor
    intake, rest, error = turn.intake, turn.intake.every_seconds, ""
    try:
        while True:
            page = poll_client.ask(intake.url, cursor, intake.secret_file, limits)
            for item in page.items:
                error = _trouble_with(item, cursor, intake, settings) or error
            if page.next is None or page.next == cursor:
                break
            cursor = page.next
            kept = db.run(intakes.keep, held, until=_in(limits.lease_seconds), cursor=cursor)
            if kept is None:  # it took too long, and another process has it
                return
            held = kept
            if not page.items:
                break
            if time.monotonic() >= until:
                rest = 0.0
                break
        _failures.pop(intake.key, None)
    except (NoAnswer, NoRoom) as trouble:
        failed = _failures[intake.key] = min(_failures.get(intake.key, 0) + 1, DOUBLINGS_MAX)
        rest = max(min(rest * 2**failed, limits.poll_retry_seconds_max), getattr(trouble, "wait", 0.0))
        error = trouble.text
        log.get().warning("intake.poll", intake=intake.name, error=error)
    db.run(intakes.keep, held, until=_in(rest), error=error)


def _in(seconds: float) -> dt.datetime:
    return clock.now() + dt.timedelta(seconds=seconds)


# One item


def _trouble_with(item: Item, cursor: str, intake: Intake, settings: Settings) -> str:
    """What the intake is to tell of it. Only our own trouble holds the cursor (security V14)."""
    try:
        _take(item, intake, settings, cursor)
    except Exception as error:
        if inbox.is_trouble(error):
            raise
        log.get().exception("intake.failed", intake=intake.name)
        return "an item could not be processed, see the broker's log"
    return ""


def _take(item: Item, intake: Intake, settings: Settings, cursor: str = "") -> None:
    """Whatever is no HL7 says how an order is, or is refused as that: so all of it is in the journal."""
    try:
        raw = _hl7(item, intake, settings)
        messages = batch.split(raw, settings.limits.mllp_batch_messages_max).messages if raw else []
        for one in messages:
            received = road.received(one, intakes.peer(intake), settings)
            inbox.take(received, road.road_of(intakes.sender(intake)))
        if messages:
            return
    except NoRoom:
        raise
    except BrokerError:
        log.get().warning("intake.item_unreadable", intake=intake.name)
    body, said = item.raw.encode("utf-8", "surrogatepass"), intakes.peer(intake)
    # The same page again is the same; the same words later on, behind others, are said anew.
    key = hashlib.sha256(cursor.encode() + b"\n" + body).hexdigest()
    rest_road.take(http_road.Request("PUT", rest_road.ORDERS, body), sender=said, peer=said, key=key, settings=settings)


def _hl7(item: Item, intake: Intake, settings: Settings) -> bytes:
    """Empty: it is none. Raises InvalidValue for what cannot be one."""
    said = item.value if isinstance(item.value, dict) else {}
    if set(said) == {"hl7_base64"} and isinstance(said["hl7_base64"], str):
        try:
            return base64.b64decode(said["hl7_base64"], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidValue("hl7_base64", "is not Base64") from None
    if set(said) == {"hl7"} and isinstance(said["hl7"], str):
        return _written(said["hl7"], intake, settings)
    return b""


def _written(text: str, intake: Intake, settings: Settings) -> bytes:
    """As a sender would have written it who does as MSH-18 says; in UTF-8 where that is not possible, and then it is
    refused with the reason."""
    if re.search("[\ud800-\udfff]", text):
        raise InvalidValue("hl7", "holds half a character")
    plain, default = text.encode(), settings.hl7.character_set
    try:
        declared = intake.character_set or message.header(plain, default)[18]
    except BrokerError:
        return plain
    for codec in CODECS:
        try:
            raw = _encoded(text, codec)
            if charset.decode(raw, declared, default)[0] == text:
                return raw
        except (UnicodeError, BrokerError):
            continue
    return plain


def _encoded(text: str, codec: str) -> bytes:
    """In JIS and EUC with the rows of Windows senders, which Python does not write."""
    if codec not in VENDOR_ROWS:
        return text.encode(codec)
    parts = re.split(f"([{''.join(map(re.escape, EUC_OF))}])", text)
    return b"".join(VENDOR_ROWS[codec](EUC_OF[part]) if n % 2 else part.encode(codec) for n, part in enumerate(parts))
