"""Acknowledgements (conformance.md 5.5): MSA-2 is MSH-10 of the request, exactly; never patient data.

What is only noted (vendor characters, a control ID used again) is in the journal and not in the answer: many senders
take any ERR for a refusal."""

import datetime as dt
import re
from collections.abc import Sequence

from broker import ids
from broker.errors import BrokerError, InvalidValue
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
# Table 0155 of MSH-15 and MSH-16: whether an answer goes out where all went well, and where it did not.
LETS_OUT = {"AL": (True, True), "NE": (False, False), "SU": (True, False), "ER": (False, True)}
BETWEEN = b"\x1c\x0d\x0b"  # two messages, each in its own frame of MLLP: as they are sent, so they are kept
Lines = Sequence[Sequence[str]]


def check(request: Header) -> None:
    """Raises InvalidValue where MSH-15 or MSH-16 says nothing that can be obeyed."""
    for number in (15, 16):
        if _wish(request, number) not in ("", *LETS_OUT):
            raise InvalidValue(f"MSH^1^{number}", "is none of AL, NE, ER, SU", err="103")


def _wish(request: Header, number: int) -> str:
    return request[number].strip().upper().replace('""', "")


def _wishes(request: Header) -> tuple[str, str] | None:
    """What enhanced mode asks for (an empty one is NE); None in original mode, and where it cannot be obeyed."""
    said = _wish(request, 15), _wish(request, 16)
    known = all(one in ("", *LETS_OUT) for one in said)
    return (said[0] or "NE", said[1] or "NE") if any(said) and known else None


def answer(
    request: Header,
    error: BrokerError | None,
    *,
    now: dt.datetime,
    msg: Message | None = None,
    kind: str = "",
    lines: Lines = (),
    taken: bool = True,
) -> bytes:
    """All that the sender is told, in its mode; empty where it wants to hear nothing. Two messages stand with BETWEEN
    between them. What was refused is told by the application's answer, and where that is not wanted by the accept's
    (CE with the ERR): a sender that listens at all learns of it.

    kind, lines: an order response in place of a plain ACK, with its segments. taken: the message is in the journal."""
    wishes = _wishes(request)
    if wishes is None:
        return build(request, error, now=now, msg=msg, kind=kind, lines=lines)
    accept, application = (LETS_OUT[wish] for wish in wishes)
    codes = []
    if error is None:
        codes = ["CA"] * accept[0] + ["AA"] * application[0]
    elif taken and error.wire.msa == "AE" and application[1]:
        codes = ["CA"] * accept[0] + ["AE"]
    elif accept[1]:
        codes = ["C" + error.wire.msa[1]]
    elif application[1]:
        codes = [error.wire.msa]

    def message(code: str) -> bytes:
        if code[0] == "C":
            return build(request, error if code != "CA" else None, now=now, msg=msg, code=code)
        return build(request, error, now=now, msg=msg, code=code, kind=kind, lines=lines)

    return BETWEEN.join(map(message, codes))


def build(
    request: Header,
    error: BrokerError | None,
    *,
    now: dt.datetime,
    msg: Message | None = None,
    code: str = "",
    kind: str = "",
    lines: Lines = (),
) -> bytes:
    """One message. What comes from the request goes back byte for byte, in its character set; our own words are ASCII.

    now: in the site's zone. msg: the request, where it can be read, to find the field that a service speaks of. code:
    MSA-1, by the error where it is empty. kind, lines: of an order response, as `ORI^O24`."""
    given = [*(value.decode("latin_1") for value in request.raw), *[""] * 19]  # Latin-1: bytes in, the same bytes out
    field = request.delimiters[0]
    signs = "".join(own.strip("\0") or usual for own, usual in zip(request.delimiters[1:], USUAL_SIGNS, strict=True))
    component, subcomponent = signs[0], signs[3]
    modern = _version(request[12]) >= (2, 5)
    code = code or (error.wire.msa if error else "AA")
    text = _plain(str(error), field + signs) if error else ""
    silent = "NE" if code[0] == "A" and _wishes(request) else ""  # nobody answers an answer
    header = ["MSH", signs, given[5], given[6], given[3], given[4], now.strftime("%Y%m%d%H%M%S%z"), "",
              component.join(_type(kind, given[9], component, modern)), ids.control_id(), given[11] or "P", given[12],
              "", "", silent, silent, given[17] if given[18] else "", given[18]]  # fmt: skip
    said = [header, ["MSA", code, given[10], text]]
    if error:
        place, meaning = _location(error.place, msg).split("^"), TABLE_0357.get(error.err, "")
        if modern:
            coded = component.join((error.err, meaning, "HL70357"))
            said.append(["ERR", "", component.join(place), coded, "E", "", "", text, text])
        else:  # before 2.5: segment, sequence, field; then the code, a CE in subcomponents
            coded = subcomponent.join((error.err, meaning, "HL70357"))
            said.append(["ERR", component.join([*[*place, "", ""][:3], coded])])
    return "".join(field.join(line).rstrip(field) + "\r" for line in [*said, *lines]).encode("latin_1")


def _type(kind: str, asked: str, component: str, modern: bool) -> list[str]:
    """MSH-9: with its structure from 2.5 on."""
    if kind:
        return [*kind.split("^"), *[kind.replace("^", "_")] * modern]
    event = [one for one in asked.split(component)[1:2] if one]
    return ["ACK", *event, *["ACK"] * (modern and bool(event))]


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
