"""Reads of the worklist: which items a query finds, and how they look to the device that asks."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlmodel import Session, col, select

from broker.config import Limits
from broker.dicom import charset, tree
from broker.dicom.tree import Tree
from broker.dicom.variants import SUBSTITUTE
from broker.errors import InvalidValue, TooMany
from broker.model.orders import ImagingOrder, ScheduledStation, ScheduledStep
from broker.mwl import matching
from broker.mwl.dataset import STEP_SEQUENCE

SHOWN = ("SCHEDULED", "ARRIVED", "READY")  # conformance.md 1.8; STARTED only to those who ask for it by status
STATUS, QUERY_LEVEL, TIMEZONE = 0x00400020, 0x00080052, 0x00080201
PAGE_ROWS = 500
# Attributes of table 1.2 that we can return, beside those we match on. What is not here is unknown: FF01.
RETURNED = matching.MATCHED | {
    0x00080005, 0x00080020, 0x00080030, 0x00081110, 0x00081120, 0x00081140, 0x00100024, 0x00101002, 0x00100101,
    0x00101010, 0x00101020, 0x00101030, 0x00102000, 0x00102110, 0x001021C0, 0x00104000, 0x00200010, 0x00321033,
    0x0032000A, 0x00380014, 0x00380050, 0x00380100, 0x00380500, 0x00400026, 0x00400027, 0x00400100, 0x00400500,
    0x00401002, 0x0040100A, 0x00401004, 0x00401400, 0x00402016, 0x00402017, 0x00402400, 0x00403001, 0x0040A390,
    0x22000005, TIMEZONE, 0x00400275,
}  # fmt: skip
STEP_RETURNED = matching.STEP_MATCHED | {
    0x00400004, 0x00400005, 0x0040000B, 0x00400012, 0x00321070, 0x00400400, 0x0018990C, 0x0018990D, 0x00400440,
}  # fmt: skip

Shape = tuple[tuple[int, "Shape | None"], ...]


@dataclass(frozen=True)
class Found:
    """One item: its row, which version, its bytes."""

    step_pk: int
    version: int
    status: str
    dataset: bytes


def search(session: Session, query: Tree, limits: Limits) -> list[Found]:
    """Items that match, earliest first. Raises TooMany over the cap, InvalidValue for a malformed key.

    query: MWL identifier; an empty value matches all and asks for the key (universal matching, PS3.4 C.2.2.2.3).
    Times are site local, as devices show them. Source: PS3.4 K.6.1, matching C.2.2.2."""
    found: list[Found] = []
    rows = session.exec(_candidates(query).execution_options(yield_per=PAGE_ROWS))
    for pk, version, status, dataset in rows:
        if matching.matches(query, _item(dataset, status)):
            if len(found) >= limits.worklist_matches_max:
                raise TooMany("")
            found.append(Found(pk, version, status, dataset))
    return found


def _candidates(query: Tree) -> Any:
    """Narrowed by the promoted columns; exact matching follows on the items."""
    step = _step_keys(query)
    statement = (
        select(ScheduledStep.pk, ScheduledStep.version, ScheduledStep.status, ScheduledStep.dataset)
        .where(col(ScheduledStep.offerable), col(ScheduledStep.status).in_(_states(step)))
        .order_by(
            col(ScheduledStep.start_date), col(ScheduledStep.start_time), col(ScheduledStep.sps_id),
            col(ScheduledStep.pk),
        )
    )  # fmt: skip
    date = _plain(step, matching.START_DATE)
    if date:
        low, high = matching.date_range(date)
        statement = statement.where(col(ScheduledStep.start_date).between(low, high))
    for column, keys, tag in (
        (ScheduledStep.modality, step, 0x00080060),
        (ScheduledStep.sps_id, step, 0x00400009),
        (ScheduledStep.patient_id, query, 0x00100020),
        (ScheduledStep.accession_number, query, 0x00080050),
    ):
        value = _plain(keys, tag)
        if value and not set(value) & set("*?"):
            statement = statement.where(col(column) == value)
    station = _plain(step, 0x00400001)
    if station and not set(station) & set("*?"):
        statement = statement.join(ScheduledStation, col(ScheduledStation.step_pk) == ScheduledStep.pk).where(
            ScheduledStation.ae_title == station
        )
    return statement


def _states(step: Tree) -> Sequence[str]:
    return (*SHOWN, "STARTED") if _plain(step, STATUS) else SHOWN


def _step_keys(query: Tree) -> Tree:
    items = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    return items[0] if isinstance(items, list) and items else {}


def _plain(keys: Tree, tag: int) -> str:
    value = keys.get(tag, ("", ""))[1]
    return value.strip() if isinstance(value, str) else ""


@lru_cache(8192)
def _item(dataset: bytes, status: str) -> Tree:
    item = tree.read(dataset, tree.EXPLICIT_LE, Limits())
    steps = item[STEP_SEQUENCE][1]
    assert isinstance(steps, list)
    steps[0][STATUS] = ("CS", status)
    return item


def check(query: Tree) -> bool:
    """Whether every key is supported. InvalidValue for what is no worklist identifier (conformance.md 1.3)."""
    if QUERY_LEVEL in query:
        raise InvalidValue("(0008,0052)", "has no place in a worklist query", tags=(QUERY_LEVEL,))
    steps = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    if isinstance(steps, list) and len(steps) > 1:
        raise InvalidValue("(0040,0100)", "has more than one item", tags=(STEP_SEQUENCE,))
    return not set(query) - RETURNED and not set(_step_keys(query)) - STEP_RETURNED


def shape(query: Tree) -> Shape:
    """The tags that are asked for, nested; values gone. An empty sequence asks for all that it can hold."""
    return tuple(
        (tag, shape(value[0]) if value else None) if isinstance(value, list) else (tag, ())
        for tag, (_, value) in sorted(query.items())
        if tag != tree.CHARSET
    )


@lru_cache(32768)
def answer(dataset: bytes, status: str, wanted: Shape, syntax: str, setting: str, offset: str) -> bytes | None:
    """The identifier that this device gets; None where the device can show nothing of the name (ASCII only).

    setting: the device's character set. offset: Timezone Offset From UTC, empty = not asked for."""
    picked = _pick(_item(dataset, status), wanted, RETURNED)
    if offset:
        picked[TIMEZONE] = ("SH", offset)
    return encode(picked, syntax, setting)


def _pick(item: Tree, wanted: Shape, known: "frozenset[int] | set[int]") -> Tree:
    """What was asked for, zero-length where we have no value (conformance.md 1.3, 8); unknown keys are left out."""
    picked: Tree = {}
    for tag, inner in wanted:
        if tag not in known or tag == TIMEZONE:
            continue
        vr, value = item.get(tag, (tree.vr_of(tag), [] if tree.vr_of(tag) == "SQ" else ""))
        if tag == STEP_SEQUENCE and isinstance(value, list):
            value = [_pick(step, inner, STEP_RETURNED) if inner else step for step in value]
        elif isinstance(value, list) and inner:
            value = [{t: e for t, e in one.items() if t in dict(inner)} for one in value]
        picked[tag] = (vr, value)
    return picked


def encode(picked: Tree, syntax: str, setting: str) -> bytes | None:
    """In the device's set; else with what the record's characters become for it (conformance.md 1.6). Never a `?`."""
    if setting == "ASCII":
        return _ascii(picked, syntax)
    sets = charset.terms(setting)
    declared: Tree = {tree.CHARSET: ("CS", setting)}
    for change in (None, _variants, _without_ideographs):
        candidate = picked if change is None else _map_text(picked, change)
        try:
            return tree.write({**candidate, **declared}, syntax, sets)
        except ValueError:
            continue
    return tree.write({**_map_text(picked, lambda vr, text: _fitting(text, sets, vr)), **declared}, syntax, sets)


def _ascii(picked: Tree, syntax: str) -> bytes | None:
    plain = _map_text(picked, lambda vr, text: text.split("=")[0] if vr == "PN" else text)
    if any(vr == "PN" and tag == 0x00100010 and not value for tag, (vr, value) in plain.items()):
        return None  # no romaji: left out for this device
    return tree.write(_map_text(plain, lambda vr, text: _fitting(text, ("",), vr)), syntax, ("",))


def _map_text(item: Tree, change: Any) -> Tree:
    changed: Tree = {}
    for tag, (vr, value) in item.items():
        if isinstance(value, list):
            changed[tag] = (vr, [_map_text(one, change) for one in value])
        else:
            changed[tag] = (vr, change(vr, value) if isinstance(value, str) and vr in tree.TEXT_VRS else value)
    return changed


def _variants(_vr: str, text: str) -> str:
    return text.translate(SUBSTITUTE)


def _without_ideographs(vr: str, text: str) -> str:
    """Group 2 of a name goes, groups 1 and 3 stay."""
    text = text.translate(SUBSTITUTE)
    if vr != "PN":
        return text
    alphabetic, _, rest = text.partition("=")
    return f"{alphabetic}=={rest.partition('=')[2]}".rstrip("=")


def _fitting(text: str, sets: Sequence[str], vr: str) -> str:
    """The characters that the sets have; what they lack is left out."""
    kept = []
    for char in text.translate(SUBSTITUTE):
        try:
            charset.encode(char, sets, vr)
        except ValueError:
            continue
        kept.append(char)
    return "".join(kept)


def listing(session: Session, ae_title: str | None, limit: int) -> list[dict[str, Any]]:
    """What that device (None: any) gets now, for people: in the record's own characters."""
    statement: Any = (
        select(ScheduledStep, ImagingOrder)
        .where(ScheduledStep.order_pk == ImagingOrder.pk)
        .where(col(ScheduledStep.offerable), col(ScheduledStep.status).in_(SHOWN))
        .order_by(col(ScheduledStep.start_date), col(ScheduledStep.start_time), col(ScheduledStep.sps_id))
        .limit(limit)
    )
    if ae_title is not None:
        offered = select(ScheduledStation.step_pk).where(ScheduledStation.ae_title == ae_title)
        statement = statement.where(col(ScheduledStep.pk).in_(offered))
    rows = []
    for step, order in session.exec(statement):
        item = _item(step.dataset, step.status)
        stations = session.exec(
            select(ScheduledStation.ae_title)
            .where(ScheduledStation.step_pk == step.pk)
            .order_by(col(ScheduledStation.pk))
        ).all()
        rows.append(
            {
                "order_id": order.pk, "accession_number": order.accession_number, "sps_id": step.sps_id,
                "modality": step.modality, "start_date": step.start_date, "start_time": step.start_time,
                "state": step.status, "station_ae_titles": list(stations), "description": step.description,
                "patient": {"id": step.patient_id, "name": _plain(item, 0x00100010)},
            }
        )  # fmt: skip
    return rows


def can_answer_in(setting: str) -> bool:
    return bool(setting) and charset.supported(charset.terms(setting))


def offset_of(zone: dt.tzinfo, now: dt.datetime) -> str:
    """Timezone Offset From UTC (0008,0201): `+0900`."""
    return now.astimezone(zone).strftime("%z")
