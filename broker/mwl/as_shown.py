"""What a device will show of its worklist, beside the record: for people, before the patient is called."""

import datetime as dt
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydicom.datadict import dictionary_description, tag_for_keyword

from broker import access
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.habits import NO_HABITS
from broker.dicom.tree import Tree
from broker.errors import UnknownKey
from broker.mwl import answers, view, worklist
from broker.mwl.answers import UTF_8, Answer, Look
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import STEP_RETURNED, Shape, plain, step_keys
from broker.mwl.worklist import Found

GROUPS = ("alphabetic", "ideographic", "phonetic")
CODES: Shape = ((0x00080100, ()), (0x00080102, ()), (0x00080104, ()))
KEYS: dict[int, Shape] = {
    0x00080050: (), 0x00080090: (), 0x00100010: (), 0x00100020: (), 0x00100030: (), 0x00100040: (), 0x00321032: (),
    0x00321060: (), 0x00321064: CODES, 0x00380300: (), 0x00401001: (), 0x00401002: (), 0x00401400: (),
}  # fmt: skip
STEP_KEYS: dict[int, Shape] = {
    0x00080060: (), 0x00321070: (), 0x00400001: (), 0x00400002: (), 0x00400003: (), 0x00400006: (), 0x00400007: (),
    0x00400008: CODES, 0x00400009: (), 0x00400010: (), 0x00400011: (), 0x00400012: (), 0x00400020: (), 0x00400400: (),
}  # fmt: skip
WHOLE = Look((UTF_8,))


def listing(ae_title: str, settings: Settings, now: dt.datetime, query: Tree | None = None) -> list[dict[str, Any]]:
    """Every item that the device gets now, as its record and as it shows it, with a warning for each difference. Who is
    shown what he asks for asks for his own title (worklist.usual).

    query: of the device, for the set that it declares. Raises UnknownKey where no such device is configured, TooMany
    over limits.list_items_max."""
    node = access.find_node(ae_title)
    if node is None and settings.dicom.unknown_ae == "reject":
        raise UnknownKey("AE title", f"{ae_title} is no configured device: broker node add {shlex.quote(ae_title)}")
    habits = node.habits if node else NO_HABITS
    look = answers.look_of(node, settings, query or {})
    what = replace(view.of(node, ae_title, settings, now), matches_max=settings.limits.list_items_max)
    found = worklist.search(worklist.usual(what), what, access.directory())
    return [_row(one, look, habits.requires) for one in found]


def _row(found: Found, look: Look, requires: tuple[str, ...]) -> dict[str, Any]:
    wanted = _shape(requires)
    record = _seen(found, wanted, WHOLE)[1]
    made, shown = _seen(found, wanted, look)
    withheld = [f"is not offered: {made.withheld}"] if made.withheld else []
    step = step_keys(record)
    return {
        "step_id": found.step_pk,
        "accession_number": plain(record, 0x00080050),
        "sps_id": plain(step, 0x00400009),
        "start_date": plain(step, 0x00400002),
        "start_time": plain(step, 0x00400003),
        "state": found.status,
        "character_set": made.character_set,
        "record": in_words(record),
        "shown": in_words(shown),
        "warnings": withheld or [*differences(record, shown), *missing(shown, requires)],
    }


def _shape(requires: tuple[str, ...]) -> Shape:
    required = [tag for keyword in requires if (tag := tag_for_keyword(keyword)) is not None]
    step = {**STEP_KEYS, **{tag: () for tag in required if tag in STEP_RETURNED and tag not in STEP_KEYS}}
    keys = {**{tag: () for tag in required if tag not in step}, **KEYS, STEP_SEQUENCE: tuple(sorted(step.items()))}
    return tuple(sorted(keys.items()))


def _seen(found: Found, wanted: Shape, look: Look) -> tuple[Answer, Tree]:
    """The answer, and what the device reads in it."""
    made = answers.answer(found.dataset, found.status, wanted, tree.EXPLICIT_LE, look, None, found.stations)
    return made, tree.read(made.dataset, tree.EXPLICIT_LE, answers.LIMITS)


def in_words(item: Tree) -> dict[str, str]:
    """What people know an item by, as far as there is any."""
    return {
        dictionary_description(tag): text
        for keys in (item, step_keys(item))
        for tag in keys
        if tag != tree.CHARSET and (text := plain(keys, tag))
    }


def missing(shown: Tree, requires: tuple[str, ...]) -> list[str]:
    """requires: keywords without which the device drops an item."""
    tags = [tag for keyword in requires if (tag := tag_for_keyword(keyword)) is not None]
    return [
        f"this device drops items without {dictionary_description(tag)}"
        for tag in tags
        if not any(keys.get(tag, ("", ""))[1] for keys in (shown, step_keys(shown)))
    ]


def differences(record: Tree, shown: Tree) -> list[str]:
    """What a reader of the shown item sees other than the record says, in words; both of the same keys."""
    return list(_differences(record, shown))


def _differences(record: Tree, shown: Tree) -> Iterator[str]:
    for tag, (vr, was) in record.items():
        now = shown.get(tag, (vr, [] if vr == "SQ" else ""))[1]
        label = dictionary_description(tag)
        if tag == tree.CHARSET or not was:
            continue
        if isinstance(was, list) and isinstance(now, list):
            if len(now) < len(was):
                yield f"{label}: {len(was) - len(now)} of {len(was)} items are left out"
            else:
                for old, new in zip(was, now, strict=True):
                    yield from _differences(old, new)
        elif isinstance(was, str) and isinstance(now, str):
            yield from (_names(label, was, now) if vr == "PN" else _text(label, was, now))


def _names(label: str, was: str, now: str) -> Iterator[str]:
    groups = zip(GROUPS, [*was.split("="), "", ""], [*now.split("="), "", ""], strict=False)
    for group, old, new in groups:
        yield from _text(f"the {group} group of {label}", old, new)


def _text(label: str, was: str, now: str) -> Iterator[str]:
    if now == was:
        return
    if was and not now:
        yield f"{label} is left out"
    elif was.startswith(now):
        yield f"{label} is cut to {len(now)} of {len(was)} characters: {now}"
    elif _is_within(now, was):
        yield f"{label} lacks {len(was) - len(now)} of {len(was)} characters: {now}"
    else:
        yield f"{label} is shown as {now}"


def _is_within(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(char in rest for char in part)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The same as a page: what the device shows, the record beside it where that says something else."""
    page = []
    for row in rows:
        page.append(" ".join(filter(None, (row["start_date"], row["start_time"], row["sps_id"], row["state"]))))
        for label, said in row["record"].items():
            there = row["shown"].get(label, "")
            page.append(f"  {label}: {there}" + ("" if there == said else f"  [record: {said}]"))
        page += [f"  ! {warning}" for warning in row["warnings"]]
    return page or ["none"]
