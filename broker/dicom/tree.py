"""Small data sets as plain trees: tag -> (VR, value). Strict, bounded, and quick where a general library is not.

A value is text (decoded), bytes (binary VRs), or a list of trees (SQ). Used for worklist items and query keys."""

import struct
from collections.abc import Sequence
from functools import lru_cache

from pydicom.datadict import dictionary_VR

from broker.config import Limits
from broker.dicom import charset
from broker.errors import Unreadable

Value = "str | bytes | list[Tree]"
Tree = dict[int, "tuple[str, str | bytes | list[Tree]]"]

CHARSET = 0x00080005
IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
TEXT_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})  # those that (0008,0005) governs
PLAIN_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF


@lru_cache(4096)
def vr_of(tag: int) -> str:
    try:
        return dictionary_VR(tag)[:2]
    except KeyError:
        return "UN"


def read(data: bytes, transfer_syntax: str, limits: Limits, *, any_charset: bool = False) -> Tree:
    """Raises Unreadable for anything that is no data set, is too deep or too long.

    any_charset: text in a set that we do not know is read as ASCII (charset.default_repertoire)."""
    try:
        reader = _Reader(data, transfer_syntax == IMPLICIT_LE, limits, any_charset)
        return reader.dataset(0, len(data), ("",), 0)[0]
    except (struct.error, IndexError, UnicodeDecodeError):
        raise Unreadable("data set", "cannot be read") from None


class _Reader:
    def __init__(self, data: bytes, implicit: bool, limits: Limits, any_charset: bool) -> None:
        self.data, self.implicit, self.limits, self.elements = data, implicit, limits, 0
        self.any_charset = any_charset

    def dataset(self, at: int, end: int, charsets: Sequence[str], depth: int) -> tuple[Tree, int]:
        """From `at` to `end`, or to the item delimiter where the length is undefined (end is then the outer end)."""
        if depth > self.limits.header_depth_max:
            raise Unreadable("data set", f"sequences are nested deeper than {self.limits.header_depth_max}")
        tree: Tree = {}
        last = -1
        while at < end:
            tag, vr, length, at = self._header(at)
            if tag == ITEM_END:
                return tree, at
            if tag <= last:
                raise Unreadable("data set", "elements are not in order")
            last = tag
            if vr == "SQ" or (length == UNDEFINED and vr == "UN"):
                items, at = self._items(at, end if length == UNDEFINED else at + length, end, length, charsets, depth)
                tree[tag] = ("SQ", items)
                continue
            if at + length > end:
                raise Unreadable("data set", f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than the data")
            value = self._value(self.data[at : at + length], vr, charsets)
            if tag == CHARSET and isinstance(value, str):
                charsets = charset.terms(value)
                if not charset.supported(charsets):
                    charsets = () if self.any_charset else ("",)
            tree[tag] = (vr, value)
            at += length
        return tree, at

    def _header(self, at: int) -> tuple[int, str, int, int]:
        self.elements += 1
        if self.elements > self.limits.header_elements_max:
            raise Unreadable("data set", f"more than {self.limits.header_elements_max} elements")
        group, element = struct.unpack_from("<HH", self.data, at)
        tag = group << 16 | element
        if self.implicit or group == 0xFFFE:
            return tag, vr_of(tag), struct.unpack_from("<I", self.data, at + 4)[0], at + 8
        vr = self.data[at + 4 : at + 6].decode("ascii")
        if not (vr.isalpha() and vr.isupper()):
            raise Unreadable("data set", "an element has no value representation")
        if vr in LONG_VRS:
            return tag, vr, struct.unpack_from("<I", self.data, at + 8)[0], at + 12
        return tag, vr, struct.unpack_from("<H", self.data, at + 6)[0], at + 8

    def _items(
        self, at: int, end: int, outer: int, length: int, charsets: Sequence[str], depth: int
    ) -> tuple[list[Tree], int]:
        items: list[Tree] = []
        if end > outer:
            raise Unreadable("data set", "a sequence is longer than the data")
        while at < end:
            tag, _, size, at = self._header(at)
            if tag == SEQUENCE_END and length == UNDEFINED:
                return items, at
            if tag != ITEM or (size != UNDEFINED and at + size > end):
                raise Unreadable("data set", "a sequence holds something that is no item")
            tree, at = self.dataset(at, end if size == UNDEFINED else at + size, charsets, depth + 1)
            items.append(tree)
        return items, at

    def _value(self, data: bytes, vr: str, charsets: Sequence[str]) -> str | bytes:
        if vr in TEXT_VRS and not charsets:
            return charset.default_repertoire(data.rstrip(b" \0"))
        if vr in TEXT_VRS:
            return charset.decode(data, charsets, vr).rstrip(" \0")
        if vr in PLAIN_VRS:
            return data.decode("ascii").strip(" \0")
        return data


def write(tree: Tree, transfer_syntax: str, charsets: Sequence[str]) -> bytes:
    """Raises ValueError where a character does not fit into the sets."""
    implicit = transfer_syntax == IMPLICIT_LE
    return b"".join(_element(tag, *tree[tag], implicit, charsets) for tag in sorted(tree))


def _element(tag: int, vr: str, value: "str | bytes | list[Tree]", implicit: bool, charsets: Sequence[str]) -> bytes:
    if isinstance(value, list):
        data = b"".join(
            struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
            for item in (write(tree, IMPLICIT_LE if implicit else EXPLICIT_LE, charsets) for tree in value)
        )
    elif isinstance(value, str):
        data = charset.encode(value, charsets, vr) if vr in TEXT_VRS else value.encode("ascii")
        data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
    else:
        data = value
    if implicit:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(data)) + data
    if vr in LONG_VRS:
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr.encode(), 0, len(data)) + data
    if len(data) > 0xFFFF:
        raise ValueError(f"element {tag:08X} is longer than its VR allows")
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(data)) + data
