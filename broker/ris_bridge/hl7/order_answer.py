"""Order responses (conformance.md 5.1, 5.3): what became of each order group of a request, with the numbers by which
both sides know it. All that is repeated comes from the request byte for byte; nothing of the patient is."""

from collections.abc import Iterator, Sequence

from broker.errors import BrokerError
from broker.mwl.commands import Command, OrderCommand, Outcome
from broker.ris_bridge.hl7 import charset, message
from broker.ris_bridge.hl7.message import Header, Message
from broker.ris_bridge.hl7.values import NULL

KINDS = {"ORM^O01": "ORR^O02", "OMI^O23": "ORI^O24", "OMG^O19": "ORG^O20"}
ASKING = ("SN", "SS")  # ORC-1 that wants more than an acknowledgement
# ORC-1 of the answer (table 0119): where the order was taken and its service said nothing else, and where it was not.
TAKEN = {"SN": "NA", "SS": "SC", "RP": "RQ", "RU": "RQ"}
UNABLE = {"NW": "UA", "XO": "UX", "XR": "UX", "CA": "UC", "DC": "UD", "HD": "UH", "RL": "UR", "RP": "UM", "RU": "UM",
          "SN": "UA"}  # fmt: skip
REPEATED = {"OBR": 4, "IPC": 4}  # of these segments, so many fields


def kind(msg: Message, wanted: bool) -> str:
    """MSH-9 of the order response; empty where a plain ACK is due. wanted: by the sender's entry."""
    asked = any(one.field(1).strip() in ASKING for one in msg.all("ORC"))
    return KINDS.get(msg.header.type, "") if wanted or asked else ""


def lines(
    raw: bytes,
    head: Header,
    declared: str,
    commands: Sequence[Command],
    outcomes: Sequence[Outcome | None],
    error: BrokerError | None,
) -> list[list[str]]:
    """Segments ORC, OBR and IPC of each group, as Latin-1 text. declared: the message's character set. outcomes: of
    each command, where all were carried out."""
    given = {place: (command, outcome) for command, outcome in zip(commands, outcomes, strict=False)
             if isinstance(command, OrderCommand) and (place := _number(command))}  # fmt: skip
    said: list[list[str]] = []
    seen = 0
    for name, fields in _segments(raw, head, declared):
        if name == "ORC":
            seen += 1
            control = fields[1].strip()
            _, outcome = _of(given, seen, fields, head) or (None, None)
            if error is not None:
                reply = UNABLE.get(control, "")
            else:
                reply = outcome.reply if outcome and outcome.reply != "OK" else TAKEN.get(control, "OK")
            numbers = _numbers(outcome, fields, head.delimiters)
            said.append(["ORC", reply, *numbers, fields[4], outcome.status if outcome else ""])
        elif seen:
            said.append([name, *fields[1 : REPEATED[name] + 1]])
    return said


def _numbers(outcome: Outcome | None, fields: list[str], delimiters: str) -> list[str]:
    """ORC-2 and ORC-3: the request's own, or those that were assigned here."""
    assigned = ("", "")
    if outcome:
        assigned = (
            _entity(outcome.placer_number, outcome.placer_issuer, delimiters),
            _entity(outcome.filler_number, outcome.filler_issuer, delimiters),
        )
    stated = (own.split(delimiters[1])[0].strip() not in ("", NULL) for own in fields[2:4])
    return [own if said else given or own for own, given, said in zip(fields[2:4], assigned, stated, strict=True)]


def _entity(number: str, issuer: str, delimiters: str) -> str:
    parts = [message.escape(part, delimiters) for part in (number, issuer) if part.isascii()] if number else []
    return delimiters[1].join(parts).rstrip(delimiters[1])


def _number(command: OrderCommand) -> int:
    """The how-manieth ORC it begins with."""
    name, _, number = command.place.partition("^")
    return int(number.partition("^")[0] or 0) if name == "ORC" and number else 0


Given = dict[int, tuple[OrderCommand, Outcome | None]]


def _of(given: Given, seen: int, fields: list[str], head: Header) -> tuple[OrderCommand, Outcome | None] | None:
    """Several groups may be one order: the one that has the group's numbers, else the last that began before it."""
    component = head.delimiters[1]
    stated = tuple(value.split(component)[0].strip() for value in fields[2:4])
    if any(stated):
        for command, outcome in given.values():
            steps = [step for one in command.procedures for step in one.steps]
            numbers = {(one.placer_number, one.filler_number) for one in command.procedures}
            if stated in numbers | {(one.placer_number, one.filler_number) for one in steps}:
                return command, outcome
    before = [place for place in given if place <= seen]
    return given[max(before)] if before else None


def _segments(raw: bytes, head: Header, declared: str) -> Iterator[tuple[str, list[str]]]:
    """ORC, OBR and IPC with their first fields as they came."""
    for line in message.segment_lines(raw):
        name = line[:3].decode("latin_1")
        if name == "ORC" or name in REPEATED:
            fields = charset.split(line, head.delimiters[0].encode(), declared)
            yield name, [*(value.decode("latin_1") for value in fields), *[""] * 5]
