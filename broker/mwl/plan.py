"""A query as the database is asked it: conditions on steps, each for the key or the rule that it stands for. Pure.

What a condition does not say wholly is `rest`, and is looked at item by item (mwl/matching.py). No condition is wider
than its key, so an answer is never wider than the query."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, and_, bindparam, func, or_, select
from sqlmodel import col

from broker import db
from broker.dicom.habits import Directory
from broker.dicom.tree import Tree
from broker.model.orders import RequestedProcedure, ScheduledStation, ScheduledStep
from broker.mwl import matching, texts, view
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import STATUS, plain, step_keys
from broker.mwl.view import View

STATION, MODALITY, SPS_ID = 0x00400001, 0x00080060, 0x00400009
PATIENT_ID, ACCESSION, RP_ID, STUDY_UID = 0x00100020, 0x00080050, 0x00401001, 0x0020000D
PATIENT_NAME, LABEL = 0x00100010, 0x00741202
STATUSES = {"SCHEDULED": ("SCHEDULED",), "ARRIVED": ("ARRIVED",), "READY": ("READY",), "STARTED": ("STARTED",),
            "DEPARTED": view.FINISHED}  # fmt: skip
# The rules of a view, by their names in what is told to people.
HIDDEN, SEES, LABELS, WINDOW = "hidden by rule", "not of this device", "label", "date window"


@dataclass(frozen=True)
class Condition:
    """of: the tag of a key, or the name of a rule. clause: in CLAUSES. values: what it is bound to, or conditions."""

    of: int | str
    clause: str
    values: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Plan:
    """conditions: those of the rules first, then those of the keys. rest: keys that are looked at item by item.
    by_item: so are the rules of `sees`."""

    conditions: tuple[Condition, ...]
    rest: Tree
    by_item: bool

    @property
    def is_whole(self) -> bool:
        """Whether the conditions say all."""
        return not self.rest and not self.by_item


def of(query: Tree, what: View, directory: Directory, *, fuzzy: bool = False) -> Plan:
    """query: one that `keys.check` has seen, its dates and times in the site's zone. fuzzy: see `person_matches`."""
    rest = matching.selective(query)
    step = dict(step_keys(rest))
    days = _days(step, what)
    asked = plain(step, STATUS)
    conditions = [*_rules(what, asked, days, directory)]
    if matching.START_DATE in step:
        conditions.append(Condition(matching.START_DATE, "days", days))
        if matching.combined_interval(step) is None:
            del step[matching.START_DATE]
    for tag, keys in ((MODALITY, step), (STATION, step), (STATUS, step), (SPS_ID, step), (PATIENT_ID, rest),
                      (ACCESSION, rest), (RP_ID, rest), (STUDY_UID, rest), (LABEL, rest)):  # fmt: skip
        value = plain(keys, tag)
        if value and not set(value) & set("*?\\"):
            conditions.append(_exact(tag, value, what, days, directory))
            del keys[tag]
        elif value and tag in LIKENESSES:
            conditions.append(Condition(tag, LIKENESSES[tag], _listed(value) if tag == STUDY_UID else (_like(value),)))
    name = plain(rest, PATIENT_NAME)
    if name and not fuzzy:
        like = _like(texts.compared(name).replace("?", "*"))
        conditions.append(Condition(PATIENT_NAME, "like_name", (like,)))
    rest.pop(STEP_SEQUENCE, None)
    if step:
        rest[STEP_SEQUENCE] = ("SQ", [step])
    return Plan(tuple(conditions), rest, what.looks_at_location)


def _days(step: Tree, what: View) -> tuple[str, str]:
    key = plain(step, matching.START_DATE)
    if not key:
        return (what.first_day or matching.EARLIEST, what.last_day or matching.LATEST)
    low, high = matching.date_range(key)
    if what.today_is_window and low == high == what.today:
        step.pop(matching.START_DATE)  # no key any more: the window says the days, and a time stays a time of day
        return (what.first_day or matching.EARLIEST, what.last_day or matching.LATEST)
    return low, high


def _rules(what: View, asked: str, days: tuple[str, str], directory: Directory) -> Sequence[Condition]:
    found = [_shown(what, asked)]
    if what.first_day or what.last_day:
        border = (what.first_day or matching.EARLIEST, what.last_day or matching.LATEST)
        found.append(Condition(WINDOW, "days", border))
    if what.labels:
        found.append(Condition(LABELS, "label", _padded(what.labels)))
    if what.sees and not what.looks_at_location:
        # Without the days of the key, which would be counted here; but the ended steps of years need a border.
        border = (
            days if what.finished_since else (what.first_day or matching.EARLIEST, what.last_day or matching.LATEST)
        )
        found.append(_any(SEES, [_seen(rule, what, border, directory) for rule in what.sees]))
    return found


def _shown(what: View, asked: str) -> Condition:
    """asked: the key for a status."""
    started = what.started_since or (what.started_if_asked if asked else None)
    borders = {"STARTED": started, **dict.fromkeys(what.finished, what.finished_since)}
    waiting = Condition(HIDDEN, "status", _padded(what.waiting or ("-",)))
    return _any(HIDDEN, [waiting, *(Condition(HIDDEN, "since", (name, at)) for name, at in borders.items() if at)])


def _any(of: str, some: Sequence[Condition]) -> Condition:
    return Condition(of, "any", tuple(some)) if len(some) > 1 else Condition(of, some[0].clause, some[0].values)


def _seen(rule: str, what: View, days: tuple[str, str], directory: Directory) -> Condition:
    if rule == view.MODALITY:
        return Condition(rule, "modality", (what.modality,))
    title = what.ae_title if rule == view.OWN else rule.removeprefix(view.STATION)
    return _stations(rule, title, what, days, directory)


def _stations(of: int | str, title: str, what: View, days: tuple[str, str], directory: Directory) -> Condition:
    """The days stand in the station's index: its list of a day is found at once, however many others there are."""
    clause = "station" if what.finished_since else "open_station"
    return Condition(of, clause, (*days, *_padded(sorted(directory.means(title)))))


def _exact(tag: int, value: str, what: View, days: tuple[str, str], directory: Directory) -> Condition:
    if tag == STATION:
        return _stations(tag, value, what, days, directory)
    if tag == STATUS:
        return Condition(tag, "status", _padded(STATUSES.get(value, ("-",))))
    return Condition(tag, CLAUSE_OF[tag], (value,))


def _like(pattern: str) -> str:
    """What matches has its parts in their order; whether it does is looked at item by item."""
    parts = (re.sub(r"([%_\\])", r"\\\1", part) for part in re.split(r"\^*[*=]+", pattern.rstrip("^= ")))
    return "%" + "%".join(part.strip().replace("?", "_") for part in parts) + "%"


def _listed(uids: str) -> tuple[str, ...]:
    """A list of UIDs (PS3.4 C.2.2.2.2), read as the rules read it."""
    return _padded([uid.strip(" \0") for uid in uids.split("\\")])


def _padded(values: Sequence[str]) -> tuple[str, ...]:
    """To a power of two, so that few statements serve lists of any length."""
    size = 1 << (len(values) - 1).bit_length()
    return (*values, *[values[-1]] * (size - len(values)))


# Clauses: what is bound -> SQL. Their shapes are few, and a statement is made once for each.

Bound = Sequence["BindParameter[Any] | ColumnElement[bool]"]
Clauses = Mapping[str, Callable[[Bound], ColumnElement[bool]]]
STEP, AT = col(ScheduledStep.pk), col(ScheduledStep.status_at)


def _station(bound: Bound, *more: Any) -> ColumnElement[bool]:
    days = col(ScheduledStation.start_date).between(bound[0], bound[1])
    return STEP.in_(
        select(col(ScheduledStation.step_pk)).where(col(ScheduledStation.ae_title).in_(bound[2:]), days, *more)
    )


def _procedure(column: Any) -> Callable[[Bound], ColumnElement[bool]]:
    return lambda bound: col(ScheduledStep.requested_procedure_pk).in_(
        select(col(RequestedProcedure.pk)).where(col(column).in_(bound))
    )


def _is_like(column: Any, bound: Bound) -> ColumnElement[bool]:
    return col(column).like(bound[0], escape="\\")


ANCHORS: Clauses = {
    "station": _station,
    "open_station": lambda bound: _station(bound, col(ScheduledStation.is_open)),
    "sps_id": lambda bound: col(ScheduledStep.sps_id) == bound[0],
    "patient_id": lambda bound: col(ScheduledStep.patient_id) == bound[0],
    "accession_number": lambda bound: col(ScheduledStep.accession_number) == bound[0],
    "requested_procedure_id": _procedure(RequestedProcedure.requested_procedure_id),
    "study_instance_uid": _procedure(RequestedProcedure.study_instance_uid),
    "study_instance_uids": _procedure(RequestedProcedure.study_instance_uid),
}
OTHERS: Clauses = {
    "days": lambda bound: col(ScheduledStep.start_date).between(bound[0], bound[1]),
    "label": lambda bound: col(ScheduledStep.label).in_(bound),
    "any": lambda bound: or_(*bound),
    "modality": lambda bound: col(ScheduledStep.modality) == bound[0],
    "like_name": lambda bound: or_(_is_like(ScheduledStep.name_key, bound), col(ScheduledStep.name_key) == ""),
    "like_sps_id": lambda bound: _is_like(ScheduledStep.sps_id, bound),
    "like_patient_id": lambda bound: _is_like(ScheduledStep.patient_id, bound),
    "like_accession_number": lambda bound: _is_like(ScheduledStep.accession_number, bound),
}


def _with_status(status: Any) -> Clauses:
    return {
        **ANCHORS,
        **OTHERS,
        "status": lambda bound: status.in_(bound),
        "since": lambda bound: and_(status == bound[0], bound[1] <= AT),
    }


BY_STATUS = _with_status(col(ScheduledStep.status))
# Where a station or a number leads to a few rows, no index of all that wait may tempt the planner.
ANCHORED = _with_status(func.coalesce(col(ScheduledStep.status), ""))
CLAUSE_OF = {
    MODALITY: "modality", SPS_ID: "sps_id", PATIENT_ID: "patient_id", ACCESSION: "accession_number",
    RP_ID: "requested_procedure_id", STUDY_UID: "study_instance_uid", LABEL: "label",
}  # fmt: skip

# With wildcards, or of a list: what leaves few to be looked at.
LIKENESSES = {
    SPS_ID: "like_sps_id", PATIENT_ID: "like_patient_id", ACCESSION: "like_accession_number",
    STUDY_UID: "study_instance_uids",
}  # fmt: skip

Shape = tuple[Any, ...]
ITEMS = (
    ScheduledStep.pk, ScheduledStep.version, ScheduledStep.status, ScheduledStep.dataset, ScheduledStep.start_date,
    ScheduledStep.start_time, ScheduledStep.sps_id,
)  # fmt: skip


def shape(conditions: Sequence[Condition]) -> Shape:
    return tuple((one.clause, shape(one.values) if one.clause == "any" else len(one.values)) for one in conditions)


def bound(conditions: Sequence[Condition]) -> dict[str, Any]:
    """By name, as the statement of their shape wants them."""
    values = list(_values(conditions))
    return {f"v{n}": value for n, value in enumerate(values)}


def _values(conditions: Sequence[Condition]) -> Sequence[Any]:
    return [value for one in conditions for value in (_values(one.values) if one.clause == "any" else one.values)]


@lru_cache(1024)
def statement(shape: Shape, *, counts: bool = False) -> db.Prepared:
    """Steps that can be offered and fulfil conditions of that shape, at most `most`, in no order; or their number."""
    names = itertools.count()
    clauses = ANCHORED if any(clause in ANCHORS for clause, _ in shape) else BY_STATUS
    made = [_clause(clauses, clause, inner, names) for clause, inner in shape]
    where = (col(ScheduledStep.offerable), *made)
    if counts:
        return db.Prepared(select(func.count()).select_from(ScheduledStep).where(*where))
    return db.Prepared(db.columns(*ITEMS).where(*where).limit(bindparam("most")))


def _clause(clauses: Clauses, clause: str, inner: Any, names: Iterator[int]) -> ColumnElement[bool]:
    if clause == "any":
        return clauses[clause]([_clause(clauses, name, more, names) for name, more in inner])
    return clauses[clause]([bindparam(f"v{next(names)}", type_=_type(clause, n)) for n in range(inner)])


def _type(clause: str, place: int) -> Any:
    return db.UTCDateTime(timezone=True) if (clause, place) == ("since", 1) else None
