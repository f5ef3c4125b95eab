"""Elements of another provider's worklist entry as they will stand in our rows. Pure.

An identifier or a code that cannot be one is refused; a text is cut to what its attribute holds; what else is not as
its VR wants is left out, and told."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_VM, keyword_for_tag, tag_for_keyword

from broker import ids
from broker.config import Site
from broker.dicom import tree
from broker.dicom.tree import Tree
from broker.errors import BrokerError, InvalidValue
from broker.mwl import keys
from broker.ris_bridge import rest_orders
from broker.ris_bridge.hl7 import values

NAMED_BY = {"CodeMeaning": ("CodeValue", "LongCodeValue")}  # what an item that has it is nothing without
DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(\.\d{1,6})?")
DATE = re.compile(r"(\d{4})(\.?)(\d{2})\2(\d{2})")


# Attributes


def attributes(item: Tree, names: Sequence[str], left_out: list[str], site: Site) -> dict[str, Any]:
    """By keyword, those that have a value."""
    made = {}
    for name in names:
        tag = tag_of(name)
        if tag in item and (value := _value(tag, item[tag][1], left_out, site)) is not None:
            made[name] = value
    return made


def _value(tag: int, value: str | bytes | list[Tree], left_out: list[str], site: Site) -> Any:
    """None: it says nothing, or nothing that can be kept."""
    vr, name = tree.vr_of(tag), keyword_for_tag(tag)
    if isinstance(value, list) or vr == "SQ":
        found = [_inner(one, left_out, site) for one in value] if isinstance(value, list) else []
        return [one for one in found if one] or None
    if isinstance(value, bytes):
        number = int.from_bytes(value[:2], "little") if vr == "US" and len(value) == 2 else None
        if value and number is None:
            left_out.append(name)
        return number
    parts = [value] if dictionary_VM(tag) == "1" or vr in values.LINES else value.split("\\")
    made = [kept for part in parts if part.strip(" ") and (kept := _kept(part.strip(" "), vr, name, site))]
    if len(made) < sum(bool(part.strip(" ")) for part in parts):
        left_out.append(name)
    return (made if dictionary_VM(tag) != "1" else made[0]) if made else None


def _kept(text: str, vr: str, name: str, site: Site) -> str:
    """Empty: it is not what its VR wants."""
    if vr == "PN":
        try:
            return rest_orders.name(groups(text), site, place(name)).pn
        except BrokerError:
            return ""
    checks = {"DA": date, "TM": time_of_day, "DS": _decimal, "CS": _code_string, "UI": _uid}
    return checks[vr](text) if vr in checks else _fitted(text, vr)


def _inner(item: Tree, left_out: list[str], site: Site) -> dict[str, Any]:
    """An item of a sequence. A code without its value is none."""
    made = {}
    for tag, (_, value) in item.items():
        if tag in keys.ITEM_RETURNED and (kept := _value(tag, value, left_out, site)) is not None:
            made[keyword_for_tag(tag)] = kept
    is_nothing = any(name in made and not any(one in made for one in by) for name, by in NAMED_BY.items())
    return {} if is_nothing else made


def _fitted(text: str, vr: str) -> str:
    """Cut to what its VR holds, as what HL7 says for people."""
    if vr not in (*values.LINES, "UT"):
        text = values.CONTROL.sub(" ", text.replace("\\", "/"))
    return text.replace("\0", " ")[: values.CHARACTERS_MAX.get(vr, 1024)].strip()


def _decimal(text: str) -> str:
    return text if DECIMAL.fullmatch(text) and len(text) <= 16 else ""


def _code_string(text: str) -> str:
    return text if values.CODE_STRING.fullmatch(text) else ""


def _uid(text: str) -> str:
    return text if ids.valid_uid(text) else ""


def date(text: str) -> str:
    """YYYYMMDD; the form with points is of ACR-NEMA (PS3.5 6.2). Empty for what is no date."""
    parts = DATE.fullmatch(text)
    return values.date("".join(parts.group(1, 3, 4))) or "" if parts else ""


def time_of_day(text: str) -> str:
    """HHMMSS; empty for what is no time."""
    parts = TIME.fullmatch(text.replace(":", ""))
    if parts is None:
        return ""
    hours, minutes, seconds = (int(one or 0) for one in parts.group(1, 2, 3))
    return f"{hours:02}{minutes:02}{min(seconds, 59):02}" if hours < 24 and minutes < 60 and seconds <= 60 else ""


def groups(name: str) -> list[tuple[str, list[str]]]:
    """As HL7 says them: family, given, middle, suffix, prefix of the groups that there are."""
    said = []
    for code, group in zip("AIP", name.split("=")[:3], strict=False):
        family, given, middle, prefix, suffix = [*group.split("^"), "", "", "", "", ""][:5]
        if group.strip("^ "):
            said.append((code, [family, given, middle, suffix, prefix]))
    return said


# Elements


@lru_cache(1024)
def tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def place(keyword: str) -> str:
    tag = tag_of(keyword)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def plain(item: Tree, keyword: str) -> str:
    value = item.get(tag_of(keyword), ("", ""))[1]
    return value.strip(" \0") if isinstance(value, str) else ""


def exact(item: Tree, keyword: str) -> str:
    """An identifier or a code: what does not fit is refused, never cut."""
    text = plain(item, keyword)
    characters_max = values.CHARACTERS_MAX.get(tree.vr_of(tag_of(keyword)), 64)
    if len(text) > characters_max or "\\" in text or values.CONTROL.search(text):
        raise InvalidValue(
            place(keyword), f"is longer than {characters_max} characters, or holds control characters or two values",
            err="102",
        )  # fmt: skip
    return text


def shown(item: Tree, keyword: str) -> str:
    return _fitted(plain(item, keyword), tree.vr_of(tag_of(keyword)))


def namespace(item: Tree, sequence: str) -> str:
    """Who assigned a number: as HL7 has it, the namespace, else the universal ID."""
    entities = item.get(tag_of(sequence), ("SQ", []))[1]
    one = entities[0] if isinstance(entities, list) and entities else {}
    return exact(one, "LocalNamespaceEntityID") or exact(one, "UniversalEntityID")


def has_universal(item: Tree, sequence: str) -> bool:
    entities = item.get(tag_of(sequence), ("SQ", []))[1]
    return isinstance(entities, list) and any(plain(one, "UniversalEntityID") for one in entities)
