"""Acknowledgements (conformance.md 5.5): MSA-2 is MSH-10 of the request, exactly; never patient data."""

import datetime as dt
import re

from broker import ids
from broker.errors import BrokerError
from broker.ris_bridge.hl7 import charset
from broker.ris_bridge.hl7.message import Header

TABLE_0357 = {
    "0": "Message accepted", "100": "Segment sequence error", "101": "Required field missing", "102": "Data type error",
    "103": "Table value not found", "200": "Unsupported message type", "201": "Unsupported event code",
    "202": "Unsupported processing id", "203": "Unsupported version id", "204": "Unknown key identifier",
    "205": "Duplicate key identifier", "206": "Application record locked", "207": "Application internal error",
}  # fmt: skip


def build(request: Header, error: BrokerError | None, *, now: dt.datetime, default_set: str) -> bytes:
    """now: in the site's zone."""
    field, component, repetition = request.delimiters[0], request.delimiters[1], request.delimiters[2]
    modern = _version(request[12]) >= (2, 5)
    event = request[9].split(component)[1] if component in request[9] else ""
    kind = component.join(filter(None, ("ACK", event, "ACK" if modern and event else "")))
    code = error.wire.msa if error else "AA"
    text = _plain(str(error), request.delimiters) if error else ""
    header = ["MSH", request.delimiters[1:].replace("\0", ""), request[5], request[6], request[3], request[4],
              now.strftime("%Y%m%d%H%M%S%z"), "", kind, ids.control_id(), request[11] or "P", request[12]]  # fmt: skip
    if request[18]:
        header += ["", "", "", "", request[17], request[18]]
    lines = [field.join(header), field.join(filter(None, ("MSA", code, request[10], text)))]
    if error:
        lines.append(_err(error, text, field, component, repetition, modern))
    return charset.encode("\r".join(lines) + "\r", request[18], default_set)


def _err(error: BrokerError, text: str, field: str, component: str, repetition: str, modern: bool) -> str:
    place = error.place if re.fullmatch(r"[A-Z][A-Z0-9]{2}(\^\d+)*", error.place) else ""
    said = TABLE_0357.get(error.err, "")
    if not modern:
        return field.join(("ERR", component.join((place.replace("^", component), error.err, said)).strip(component)))
    coded = component.join((error.err, said, "HL70357"))
    return field.join(("ERR", "", place.replace("^", component), coded, "E", "", "", text, text))


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2]) or (2, 5)


def _plain(text: str, delimiters: str) -> str:
    """Our own words without the message's delimiters."""
    return "".join(" " if char in delimiters or char in "\r\n" else char for char in text)[:200]
