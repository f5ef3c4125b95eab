"""When it was said: the time of the message that each thing of an order is known from. Pure but for the rows' fields.

Messages come twice, late and in any order; what is known at the end is what they say in the order of their own times
(ORC-9, else MSH-7). So every row of an order keeps, by name, the time of the message that a field, an attribute or an
order control is from. An older message changes nothing that a newer one has said, and fills what no newer one has. Of
two of the same time the one that arrives later counts. What has no time of its own (REST, the command line), or one
that cannot be, is said now, and after all that came before."""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker import clock
from broker.errors import DuplicateKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep

Part = ImagingOrder | RequestedProcedure | ScheduledStep
LISTED = "listed:"  # before a name: when another provider's worklist said it, and which (ris_bridge/upstream_effect.py)
BORN, ENDED = "born", "ended"  # of the oldest message that names the row; of the message that ended the step
OPPOSITE = {"hold": "release", "release": "hold", "arrive": "unarrive", "unarrive": "arrive"}
BACK = "reinstate"  # by a person
TAKEN_BACK = ("cancel", "no_show", "complete", "hold", "arrive")  # by that, where they were said before it
AFTER = dt.timedelta(microseconds=1)
# A wrong year would win for ever. Clocks that are minutes apart, or in another zone than they say, keep their times: to
# move those would put the messages of one sender out of their order.
AHEAD_MAX = dt.timedelta(days=1)


def time_of(at: dt.datetime | None, last: dt.datetime | None, now: dt.datetime) -> str:
    """In a form that sorts. at: the message's own time. last: of the newest message applied to its order."""
    if at is not None and not is_far_ahead(at, now):
        return clock.iso(at)
    present = not_ahead(at, now) or now
    return clock.iso(max(present, last + AFTER) if last else present)


def not_ahead(at: dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
    """The same time; where it is further ahead than any clock may be, now: to the second, as most senders know it, so
    that what follows in the same second is no older."""
    return now.replace(microsecond=0) if at is not None and is_far_ahead(at, now) else at


def heard(order: ImagingOrder, at: dt.datetime | None, now: dt.datetime) -> None:
    """A message about the order was taken. updated_at says when, whatever time it has itself: many senders repeat that
    of the order."""
    order.last_event_at = max(filter(None, (order.last_event_at, not_ahead(at, now) or now)))
    order.updated_at = max(order.updated_at, now)


def is_far_ahead(at: dt.datetime, now: dt.datetime) -> bool:
    return at - now > AHEAD_MAX


@dataclass
class Telling:
    """One message about one order. at: its time. place: where in the message the order stands. refuse: it may add and
    fill, but not change (a new order that is known). Comes to: the names of what it changed, and whether something
    newer kept it from changing more."""

    at: str
    place: str = "order"
    refuse: bool = False
    changed: list[str] = field(default_factory=list)
    older: bool = False


def contents(said: Any, names: Iterable[str] = ()) -> dict[str, Any]:
    """What a command says of fields and attributes (by DICOM keyword); an empty text deletes."""
    values = {name: getattr(said, name) for name in names} | said.attributes
    return {name: "" if value == [] else value for name, value in values.items() if value is not None}


def news(at: str, row: Part, values: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> list[str]:
    """The names of what a message of that time would change. known: values that no column holds."""
    before = {name: value_of(row, name) for name in values} | dict(known or {})
    return [
        name for name, value in values.items()
        if value != before[name] and (at >= row.said.get(name, "") or is_listed(row, name))
    ]  # fmt: skip


def is_listed(row: Part, name: str) -> bool:
    """Known from a worklist alone: what a message says of it counts more, whenever it was made."""
    at, _, source = row.said.get(LISTED + name, "").partition(" ")
    return bool(source) and at == row.said.get(name)


def vouch(row: Part, name: str = BORN) -> None:
    """It is no longer what a list alone says."""
    if LISTED + name in row.said:
        row.said = {one: time for one, time in row.said.items() if one != LISTED + name}


def tell(
    telling: Telling, row: Part, values: Mapping[str, Any], what: str, known: Mapping[str, Any] | None = None
) -> list[str]:
    """Set what changes, and remember since when all of it is known; the names of what changed. what: of what kind the
    row is. What `known` holds is set by the caller. Raises DuplicateKey where it may not change."""
    new = news(telling.at, row, values, known)
    fixed = [] if is_listed(row, BORN) else [name for name in new if not is_listed(row, name)]
    if fixed and telling.refuse and telling.at >= row.said.get(BORN, ""):
        named = fixed[0].replace("_", " ")
        raise DuplicateKey(telling.place, f"the {what} exists already with another {named}; send a change (XO)")
    before = {name: value_of(row, name) for name in values} | dict(known or {})
    telling.older |= any(value != before[name] for name, value in values.items() if name not in new)
    attributes = {name: values[name] for name in new if _is_attribute(name)}
    if attributes:
        row.attributes = {name: value for name, value in (row.attributes | attributes).items() if value != ""}
    for name in new:
        if not _is_attribute(name) and name not in (known or {}):
            setattr(row, name, values[name])
    current = {name: telling.at for name in values if telling.at > row.said.get(name, "") or is_listed(row, name)}
    if current:
        row.said = row.said | current
    if telling.refuse:
        vouch(row)
    telling.changed += new
    return new


def value_of(row: Part, name: str) -> Any:
    return row.attributes.get(name, "") if _is_attribute(name) else getattr(row, name, None)


def _is_attribute(name: str) -> bool:
    return name[0].isupper()  # a DICOM keyword; fields are written small


def named(row: Part, at: str) -> bool:
    """A message of that time names the row; whether it is the oldest that does."""
    if BORN in row.said and at >= row.said[BORN]:
        return False
    row.said = row.said | {BORN: at}
    return True


# Order controls


def against(control: str) -> tuple[str, ...]:
    """What keeps it from counting where that was said later."""
    if control == BACK:
        return TAKEN_BACK
    opposite = (OPPOSITE[control],) if control in OPPOSITE else ()
    return (*opposite, BACK) if control in TAKEN_BACK else opposite


def word(row: Part, control: str, at: str) -> bool:
    """Remember that it was said of the row; False where something newer was."""
    others = against(control)
    vouch(row, control)  # whenever this was said
    if at < max(row.said.get(one, "") for one in (control, *others)):
        return False
    kept = {name: time for name, time in row.said.items() if name not in others or name == BACK}
    row.said = kept | {control: at}
    return True


def newest(rows: Sequence[Part], control: str) -> str:
    """When it was last said of one of them; empty = never."""
    return max(row.said.get(control, "") for row in rows)


def holds(rows: Sequence[Part], control: str) -> bool:
    """Whether it counts, and not its opposite."""
    said = newest(rows, control)
    return said > newest(rows, OPPOSITE[control]) and said >= newest(rows, BACK)
