"""Acknowledgements (conformance.md 5.5): MSA-2 is MSH-10 of the request, exactly; never patient data."""

import datetime as dt
import re

from broker import ids
from broker.errors import BrokerError
from broker.ris_bridge.hl7.message import USUAL_SIGNS, Header, Message

TABLE_0357 = {
    "0": "Message accepted", "100": "Segment sequence error", "101": "Required field missing", "102": "Data type error",
    "103": "Table value not found", "200": "Unsupported message type", "201": "Unsupported event code",
    "202": "Unsupported processing id", "203": "Unsupported version id", "204": "Unknown key identifier",
    "205": "Duplicate key identifier", "206": "Application record locked", "207": "Application internal error",
}  # fmt: skip
# What services call a place: where OMI says it, else where ORM and OMG do (conformance.md 5.4).
PLACES: dict[str, tuple[tuple[str, int], ...]] = {
    "order": (("ORC", 2),), "accession number": (("IPC", 1), ("OBR", 18)), "procedure": (("IPC", 2), ("OBR", 19)),
    "study instance uid": (("IPC", 3), ("ZDS", 1)), "step": (("IPC", 4), ("OBR", 20)),
    **dict.fromkeys(("patient", "patient.id", "patient.identifiers"), (("PID", 3),)), "patient.prior": (("MRG", 1),),
}  # fmt: skip


def build(request: Header, error: BrokerError | None, *, now: dt.datetime, msg: Message | None = None) -> bytes:
    """What comes from the request goes back byte for byte, in its character set; our own words are ASCII.

    now: in the site's zone. msg: the request, where it can be read, to find the field that a service speaks of."""
    given = [*(value.decode("latin_1") for value in request.raw), *[""] * 19]  # Latin-1: bytes in, the same bytes out
    field = request.delimiters[0]
    signs = "".join(own.strip("\0") or usual for own, usual in zip(request.delimiters[1:], USUAL_SIGNS, strict=True))
    component, subcomponent = signs[0], signs[3]
    modern = _version(request[12]) >= (2, 5)
    event = given[9].split(component)[1] if component in given[9] else ""
    kind = component.join(filter(None, ("ACK", event, "ACK" if modern and event else "")))
    text = _plain(str(error), field + signs) if error else ""
    header = ["MSH", signs, given[5], given[6], given[3], given[4],
              now.strftime("%Y%m%d%H%M%S%z"), "", kind, ids.control_id(), given[11] or "P", given[12]]  # fmt: skip
    if given[18]:
        header += ["", "", "", "", given[17], given[18]]
    lines = [header, ["MSA", error.wire.msa if error else "AA", given[10], text]]
    if error:
        place, said = _location(error.place, msg).split("^"), TABLE_0357.get(error.err, "")
        if modern:
            coded = component.join((error.err, said, "HL70357"))
            lines.append(["ERR", "", component.join(place), coded, "E", "", "", text, text])
        else:  # before 2.5: segment, sequence, field; then the code, a CE in subcomponents
            coded = subcomponent.join((error.err, said, "HL70357"))
            lines.append(["ERR", component.join([*[*place, "", ""][:3], coded])])
    return "".join(field.join(line).rstrip(field) + "\r" for line in lines).encode("latin_1")


def _location(place: str, msg: Message | None) -> str:
    """`SEG^seq^field…` of a place; empty where the message does not tell it for certain."""
    if re.fullmatch(r"[A-Z][A-Z0-9]{2}(\^\d+)*", place):
        return place
    word, value = (place, "") if place in PLACES else place.partition(" ")[::2]
    for name, number in PLACES.get(word, ()):
        said = [(one.field(number).split(one.delimiters[1])[0], one) for one in (msg.all(name) if msg else ())]
        found = {text: one.place(number) for text, one in reversed(said) if value in ("", text)}
        if len(found) == 1:
            return found.popitem()[1]
    return ""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2]) or (2, 5)


def _plain(text: str, delimiters: str) -> str:
    """Our own words without the message's delimiters."""
    return "".join(char if " " <= char <= "~" and char not in delimiters else " " for char in text)[:200]
