"""Reads of the worklist: which items a query finds, and how they look to the device that asks."""

import contextlib
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlmodel import Session, col, select

from broker.config import Limits
from broker.dicom import charset, tree, variants
from broker.dicom.tree import Tree
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
# Inside the other sequences: codes, references, identifiers with their issuers, protocol context, specimens.
ITEM_RETURNED = frozenset(
    {
        0x00080080, 0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119, 0x00081150, 0x00081155, 0x00100020,
        0x00100021, 0x00100022, 0x00100024, 0x00100102, 0x00400031, 0x00400032, 0x00400033, 0x00400440, 0x00400512,
        0x00400518, 0x00400551, 0x00400554, 0x00400560, 0x004008EA, 0x00401101, 0x0040A040, 0x0040A043, 0x0040A120,
        0x0040A123, 0x0040A160, 0x0040A168, 0x0040A170, 0x0040A30A, 0x00420010,
    }
)  # fmt: skip
PATIENT_NAME = 0x00100010
TYPE_1_TEXTS = (PATIENT_NAME, 0x00100020, 0x00401001, 0x00400009)

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
    keys = matching.selective(query)
    rows = session.exec(_candidates(query).execution_options(yield_per=PAGE_ROWS))
    for pk, version, status, dataset in rows:
        if matching.matches(keys, _item(dataset, status)):
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
    matching.check(query)
    return _supported(query, RETURNED)


def _supported(keys: Tree, known: frozenset[int]) -> bool:
    nested = [(tag, item) for tag, (_, value) in keys.items() if isinstance(value, list) for item in value]
    return keys.keys() <= known and all(_supported(item, _known_in(tag)) for tag, item in nested)


def _known_in(sequence: int) -> frozenset[int]:
    return STEP_RETURNED if sequence == STEP_SEQUENCE else ITEM_RETURNED


def shape(query: Tree) -> Shape:
    """The tags that are asked for, nested; values gone. An empty sequence asks for all that it can hold."""
    return tuple(
        (tag, shape(value[0]) if value else None) if isinstance(value, list) else (tag, ())
        for tag, (_, value) in sorted(query.items())
        if tag != tree.CHARSET
    )


@dataclass(frozen=True)
class Answer:
    """The identifier that one device gets. lost: what its character set cost (variants.fit). withheld: why it cannot be
    offered the item; the data set is then empty."""

    dataset: bytes
    lost: frozenset[str] = frozenset()
    withheld: str = ""


@lru_cache(32768)
def answer(
    dataset: bytes, status: str, wanted: Shape, syntax: str, setting: str, zone: dt.tzinfo | None = None
) -> Answer:
    """setting: the device's character set. zone: of Timezone Offset From UTC, None = not asked for."""
    item = _item(dataset, status)
    picked = _pick(item, wanted, RETURNED)
    if zone is not None:
        picked[TIMEZONE] = ("SH", offset_of(zone, _step_keys(item)))
    return encode(picked, syntax, setting)


def _pick(item: Tree, wanted: Shape, known: frozenset[int]) -> Tree:
    """What was asked for, zero-length where we have no value (conformance.md 1.3, 8); unknown keys are left out."""
    picked: Tree = {}
    for tag, inner in wanted:
        if tag not in known or tag == TIMEZONE:
            continue
        vr, value = item.get(tag, (tree.vr_of(tag), [] if tree.vr_of(tag) == "SQ" else ""))
        if isinstance(value, list) and inner:
            value = [_pick(one, inner, _known_in(tag)) for one in value]
        picked[tag] = (vr, value)
    return picked


def encode(picked: Tree, syntax: str, setting: str) -> Answer:
    """In the device's set; else with what the record's characters become for it (conformance.md 1.6). Never a `?`."""
    romaji = setting == "ASCII"  # group 1 of names alone, and no (0008,0005)
    sets: Sequence[str] = ("",) if romaji else charset.terms(setting)
    declared: Tree = {} if romaji else {tree.CHARSET: ("CS", setting)}
    if not romaji:
        with contextlib.suppress(ValueError):
            return Answer(tree.write({**picked, **declared}, syntax, sets))
    shown, lost = variants.fit(picked, sets, groups=1 if romaji else 3)
    if gone := [tag for tag in _type_1(picked) if tag not in _type_1(shown)]:
        if gone == [PATIENT_NAME]:
            why = "romaji missing" if romaji else "no group of Patient's Name fits into its character set"
        else:
            why = "an identifier does not fit into its character set"
        return Answer(b"", lost, why)
    return Answer(tree.write({**shown, **declared}, syntax, sets), lost)


def _type_1(shown: Tree) -> list[int]:
    """Those texts of type 1 that have a value."""
    return [tag for keys in (shown, _step_keys(shown)) for tag in TYPE_1_TEXTS if keys.get(tag, ("", ""))[1]]


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


def is_readable(query: Tree) -> bool:
    """Whether it is in a character set that we know; else only its ASCII characters were read (conformance.md 1.6)."""
    return charset.supported(charset.terms(_plain(query, tree.CHARSET)))


def can_answer_in(setting: str) -> bool:
    return bool(setting) and charset.supported(charset.terms(setting))


def offset_of(zone: dt.tzinfo, step: Tree) -> str:
    """Timezone Offset From UTC (0008,0201) at the start of the step, which may lie beyond a change of the clocks."""
    date, time = (_plain(step, tag) for tag in (matching.START_DATE, matching.START_TIME))
    day = dt.datetime.strptime(date, "%Y%m%d").replace(tzinfo=zone)
    return (day + dt.timedelta(microseconds=matching.time_range(time)[0])).strftime("%z")
