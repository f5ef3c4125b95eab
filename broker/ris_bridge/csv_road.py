"""Orders in CSV files: a header, one row for each scheduled step; the rows of one accession number are one order.

Each order is a message of its own in the journal: the header and its rows, byte for byte. A row says how the order is:
one that is known is changed to what it says, one with the control CA is cancelled."""

import csv
import datetime as dt
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker import db
from broker.config import Settings, Site
from broker.errors import BrokerError, InvalidValue, MissingField
from broker.model.messages import Message
from broker.model.site import Intake
from broker.mwl.commands import Command, Identifier, OrderCommand, PersonCommand
from broker.ris_bridge import alike, csv_mapped, intakes, rest_orders
from broker.ris_bridge.effects import Done
from broker.ris_bridge.hl7 import charset
from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX, Read, Received, Road
from broker.ris_bridge.mapping import store
from broker.ris_bridge.mapping.profile import Profile
from broker.ris_bridge.turns import Keys

PROTOCOL = "csv"
CONTROLS = ("", "NW", "CA")
DEFAULT_SET = "UTF-8"
# What a column may be called. Each name is the path of the same value in the body of POST /api/v1/orders, where
# `procedure` and `step` stand for those of the row.
ORDER = (
    "accession_number", "accession_issuer", "priority", "requesting_physician", "requesting_service", "admission_id",
    "admission_issuer", "current_patient_location", "patient.id", "patient.issuer", "patient.birth_date", "patient.sex",
    "patient.name.alphabetic", "patient.name.ideographic", "patient.name.phonetic",
)  # fmt: skip
PROCEDURE = (
    "procedure.id", "procedure.placer_order_number", "procedure.placer_order_issuer", "procedure.filler_order_number",
    "procedure.filler_order_issuer", "procedure.study_instance_uid", "procedure.description", "procedure.code.value",
    "procedure.code.scheme", "procedure.code.meaning", "procedure.reason", "procedure.comments", "procedure.transport",
    "procedure.referring_physician",
)  # fmt: skip
STEP = (
    "step.sps_id", "step.modality", "step.station_ae_titles", "step.station_name", "step.location",
    "step.scheduled_start", "step.description", "step.label", "step.performing_physician", "step.protocol_code.value",
    "step.protocol_code.scheme", "step.protocol_code.meaning",
)  # fmt: skip
COLUMNS = ("control", *ORDER, *PROCEDURE, *STEP)
PLAIN_NAME = re.compile(r"[ -~]{1,40}")  # what an error repeats of a name
# Columns whose cell is one of several in the body, or several itself (parted by a semicolon).
ONE_OF = {"protocol_code": "protocol_codes"}
SEVERAL = {"station_ae_titles"}
KEYS = {"accession_number": "accession", "patient.id": "patient", "procedure.placer_order_number": "placer",
        "procedure.filler_order_number": "filler", "procedure.study_instance_uid": "study"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """line: of the text that was read, where it begins; the header is line 1. raw: its bytes, with the line's end."""

    line: int
    cells: list[str]
    raw: bytes


@dataclass(frozen=True)
class Group:
    """One order. lines: of the file, of each row."""

    raw: bytes
    lines: tuple[int, ...]


def profile_of(intake: Intake) -> Profile | None:
    """None: the columns have the names that stand here. Raises ConfigError where there is no such profile."""
    return db.read(store.load, intake.mapping) if intake.mapping else None


def split(raw: bytes, character_set: str, rows_max: int, site: Site, profile: Profile | None = None) -> list[Group]:
    """The orders of a file, in the order of their first rows. A row without an accession number is one by itself.

    Raises InvalidValue where the header is not right, the bytes are not of that character set, or there are more rows
    than that."""
    rows = _rows(raw, character_set)
    header = next(rows, None)
    names = _names(header, profile)
    assert header is not None
    groups: dict[tuple[str, ...], list[Row]] = {}
    for count, row in enumerate(rows, 1):
        if count > rows_max:
            raise InvalidValue("line", f"the file has more than {rows_max} rows", err="100")
        number, issuer = _order_of(names, row, site, profile)
        groups.setdefault((number, issuer) if number else (str(row.line),), []).append(row)
    first = header.raw if header.raw.endswith((b"\r", b"\n")) else header.raw + b"\n"
    return [
        Group(first + b"".join(row.raw for row in found), tuple(row.line for row in found)) for found in groups.values()
    ]


def _order_of(names: Sequence[str], row: Row, site: Site, profile: Profile | None) -> tuple[str, str]:
    """Accession number and issuer, also of a row that will be refused."""
    if profile is None:
        cells = dict(zip(names, row.cells, strict=False))
        return cells.get("accession_number", "").strip(), cells.get("accession_issuer", "").strip()
    try:
        return csv_mapped.order_of(csv_mapped.reading(profile, names, row.cells, row.line, site))
    except BrokerError:
        return "", ""


def received(group: Group, intake: Intake, at: dt.datetime, settings: Settings) -> Received:
    """at: when the file was last written. It is part of the key: the same rows in a later file are said anew."""
    digest = hashlib.sha256(group.raw).hexdigest()
    said = intakes.peer(intake)
    return Received(
        raw=group.raw, protocol=PROTOCOL, peer=said, settings=settings, sender=said[:KEY_CHARACTERS_MAX],
        control_id=f"{at.timestamp():.6f}.{digest[:16]}", digest=digest, type="order", time=at.isoformat(),
    )  # fmt: skip


def again(row: Message, settings: Settings) -> tuple[Received, Road]:
    """Of the journal; by what its folder is told to be now."""
    intake = db.read(intakes.of_peer, row.peer) or Intake(name=row.peer, kind="folder", format="csv")
    found = Received(
        raw=row.raw, protocol=PROTOCOL, peer=row.peer, settings=settings, sender=row.sender, control_id=row.control_id,
        digest=row.sha256, type=row.type, time=row.message_time,
    )  # fmt: skip
    return found, road_of(intake)


def road_of(intake: Intake) -> Road:
    return Road(read=lambda found: _read(found, intake), refuse=lambda _, error: _told(error))


def _read(found: Received, intake: Intake) -> Read:
    profile, site = profile_of(intake), found.settings.site
    rows = _rows(found.raw, intake.character_set)
    names = _names(next(rows, None), profile)
    listed = [(row.line, _cells(names, row)) for row in rows]
    at = dt.datetime.fromisoformat(found.time)
    if profile is None:
        return Read(_keys(listed), lambda: [command(listed, site, at)], _answer, actor=found.sender)
    read = [csv_mapped.reading(profile, names, list(cells.values()), line, site) for line, cells in listed]
    return Read(
        keys=frozenset((kind, value[:KEY_CHARACTERS_MAX]) for kind, value in csv_mapped.keys(read)),
        commands=lambda: csv_mapped.commands(profile, read, site, at),
        answer=_answer,
        actor=found.sender,
        notes=("ignored by its profile",) if all(row.is_ignored for row in read) else (),
        mapping=profile.label,
    )


def _keys(listed: Sequence[tuple[int, dict[str, str]]]) -> Keys:
    return frozenset(
        (kind, cells[name][:KEY_CHARACTERS_MAX])
        for _, cells in listed
        for name, kind in KEYS.items()
        if cells.get(name)
    )


def _answer(error: BrokerError | None, done: Sequence[Done]) -> bytes:
    return _told(error) if error else "; ".join(one.words for one in done).encode()


def _told(error: BrokerError) -> bytes:
    return f"refused: {error.err} {error}".encode()


# From rows to a command


def command(listed: Sequence[tuple[int, dict[str, str]]], site: Site, at: dt.datetime) -> Command:
    """listed: (line, column -> cell) of one order. Raises BrokerError whose place begins with the line."""
    line, first = listed[0]
    for number, cells in listed[1:]:
        for name in ("control", *ORDER):
            if cells.get(name) != first.get(name):
                raise InvalidValue(f"line {number} {name}", "differs from the first row of the same order")
    control = first.get("control", "")
    if control not in CONTROLS:
        raise InvalidValue(f"line {line} control", "must be NW, CA or empty")
    if control == "CA":
        return _cancel(line, first, site, at)
    tree, places = _body(listed)
    try:
        placed = rest_orders.placed(rest_orders.new(json.dumps(tree)), site)
    except BrokerError as error:
        error.place = _place(error.place, line, places)
        raise
    procedures = tuple(replace(one, steps=alike.once(one.steps)) for one in placed.procedures)
    return replace(placed, procedures=procedures, known="change", at=at)


def _cancel(line: int, cells: dict[str, str], site: Site, at: dt.datetime) -> OrderCommand:
    for name in ("accession_number", "patient.id"):
        if not cells.get(name):
            raise MissingField(f"line {line} {name}", "is required to cancel an order")
    patient = Identifier(cells["patient.id"], cells.get("patient.issuer") or site.patient_id_issuer)
    return OrderCommand(
        "CA",
        accession_number=cells["accession_number"],
        accession_issuer=cells.get("accession_issuer") or site.accession_issuer,
        patient=PersonCommand((patient,)),
        at=at,
        place="order",
    )


def _body(listed: Sequence[tuple[int, dict[str, str]]]) -> tuple[dict[str, Any], dict[str, int]]:
    """The body of POST /api/v1/orders, and for each path in it the line that says it. Rows whose columns of the
    procedure are alike are steps of one procedure."""
    tree: dict[str, Any] = _tree(ORDER, listed[0][1])
    procedures: dict[tuple[str | None, ...], dict[str, Any]] = {}
    places: dict[str, int] = {}
    for line, cells in listed:
        key = tuple(cells.get(name) for name in PROCEDURE)
        if key not in procedures:
            procedures[key] = {**_tree(PROCEDURE, cells).get("procedure", {}), "steps": []}
            places[f"requested_procedures.{len(procedures) - 1}"] = line
        steps = procedures[key]["steps"]
        places[f"requested_procedures.{list(procedures).index(key)}.steps.{len(steps)}"] = line
        steps.append(_tree(STEP, cells).get("step", {}))
    return {**tree, "requested_procedures": list(procedures.values())}, places


def _tree(names: Sequence[str], cells: dict[str, str]) -> dict[str, Any]:
    """An empty cell says nothing."""
    tree: dict[str, Any] = {}
    for name in names:
        if not (value := cells.get(name, "")):
            continue
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            if parent in ONE_OF:
                node = node.setdefault(ONE_OF[parent], [{}])[0]
            else:
                node = node.setdefault(parent, {})
        node[last] = [one.strip() for one in value.split(";") if one.strip()] if last in SEVERAL else value
    return tree


def _place(path: str, line: int, places: dict[str, int]) -> str:
    """`requested_procedures.0.steps.1.modality`: `line 7 step.modality`."""
    known = [one for one in places if path == one or path.startswith(one + ".")]
    if known:
        longest = max(known, key=len)
        line = places[longest]
        word = "step" if ".steps." in longest else "procedure"
        path = f"{word}{path.removeprefix(longest)}"
    return f"line {line} {path}".replace("protocol_codes.0", "protocol_code")


# From bytes to rows


def _rows(raw: bytes, character_set: str) -> Iterator[Row]:
    """Rows with their bytes; lines without anything are none. A quoted cell may hold line ends."""
    text = _decoded(raw, character_set)
    pattern = r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z"
    lines, pieces = re.findall(pattern, text), re.findall(pattern.encode(), raw)
    if len(lines) != len(pieces):
        raise InvalidValue("line 1", "line ends are not as in this character set", err="102")
    if "\0" in text:
        raise InvalidValue("line 1", "the file holds a NUL character", err="102")
    reader = csv.reader(iter(lines), strict=True)
    begun = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            raise InvalidValue(f"line {begun + 1}", "is no CSV: a quotation mark is not closed, or in the midst of a"
                               " cell, or a cell is very long", err="102") from None  # fmt: skip
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield Row(begun + 1, cells, b"".join(pieces[begun : reader.line_num]))
        begun = reader.line_num


def _decoded(raw: bytes, character_set: str) -> str:
    """Nobody sees MSH-18 in a CSV file: the error names the setting."""
    try:
        return charset.decode(raw, character_set, DEFAULT_SET)[0]
    except InvalidValue as error:
        mend = "say its character set in character_set of the intake (broker intake add … --character-set CP932)"
        raise InvalidValue("file", f"{error.text} ({character_set or DEFAULT_SET}): {mend}", err="102") from None


def _names(header: Row | None, profile: Profile | None = None) -> list[str]:
    """Raises InvalidValue for a column that nobody knows: with its name where others are known, else it is no header
    but a patient's row."""
    names = [cell.strip() for cell in header.cells] if header else []
    for number, name in enumerate(names, 1):
        if profile is None and name not in COLUMNS:
            said = f": {name}" if PLAIN_NAME.fullmatch(name) else ""
            said = said if {*names} & {*COLUMNS} else "; the first line must name the columns"
            raise InvalidValue("line 1", f"column {number} has a name that is not known{said}", err="103")
    if not names or len(set(names)) < len(names):
        raise InvalidValue("line 1", "the header must name each column, and none twice", err="100")
    return names


def _cells(names: Sequence[str], row: Row) -> dict[str, str]:
    if len(row.cells) != len(names):
        raise InvalidValue(f"line {row.line}", f"has {len(row.cells)} cells, the header {len(names)}", err="100")
    return {name: cell.strip() for name, cell in zip(names, row.cells, strict=True)}


def in_file(text: str, group: Group) -> str:
    """A refusal with the lines of the file in place of those of the group, where the header is line 1."""

    def line(found: re.Match[str]) -> str:
        number = int(found[1]) - 2
        return f"line {group.lines[number]}" if 0 <= number < len(group.lines) else found[0]

    return re.sub(r"\bline (\d+)", line, text)
