"""Which keys a worklist query may have, and what they ask for (PS3.4 Table K.6-1, conformance.md 1.2, 1.3)."""

from broker.dicom import charset, tree
from broker.dicom.tree import Tree
from broker.errors import InvalidValue
from broker.mwl import matching
from broker.mwl.dataset import STEP_SEQUENCE

STATUS, QUERY_LEVEL, TIMEZONE = 0x00400020, 0x00080052, matching.TIMEZONE
# Attributes of table 1.2 that we can return, beside those we match on. What is not here is unknown: FF01. So is
# Admitting Diagnoses Description (0008,1080): acceptance-tests.md MWL-22.
RETURNED = matching.MATCHED | {
    # identifier
    0x00080005, TIMEZONE, 0x0040A390,
    # patient
    0x00101002, 0x00100101, 0x00101010, 0x00101020, 0x00101030, 0x00101040, 0x00102000, 0x00102110, 0x00102150,
    0x00102152, 0x00102154, 0x00102160, 0x00102180, 0x001021A0, 0x001021B0, 0x001021C0, 0x001021D0, 0x001021F0,
    0x00104000, 0x00380050, 0x00380100, 0x00380500, 0x00403001,
    # visit
    0x00080080, 0x00081120, 0x00380008, 0x00380016, 0x00380020, 0x00380060, 0x00380400, 0x00384000,
    # imaging service request
    0x00321033, 0x00400026, 0x00400027, 0x00402004, 0x00402008, 0x00402009, 0x00402010, 0x00402016, 0x00402017,
    0x00402400,
    # requested procedure
    0x00080020, 0x00080030, 0x00081110, 0x00081140, 0x00200010, 0x0032000A, 0x00400275, 0x00401002, 0x00401004,
    0x00401005, 0x00401008, 0x00401009, 0x0040100A, 0x00401010, 0x00401400,
    # steps, specimens
    matching.STEP_SEQUENCE, 0x00400500, 0x22000005,
}  # fmt: skip
STEP_RETURNED = matching.STEP_MATCHED | {
    0x00400004, 0x00400005, 0x0040000B, 0x00400012, 0x00321070, 0x00400400, 0x0018990C, 0x0018990D, 0x00400440,
}  # fmt: skip
# Inside the other sequences: codes, references, identifiers with their issuers, protocol context, specimens.
ITEM_RETURNED = matching.ITEM_MATCHED | {
    0x00080080, 0x00081150, 0x00081155, 0x00100020, 0x00100021, 0x00100022, 0x00100024, 0x00100102, 0x00400440,
    0x00400512, 0x00400518, 0x00400551, 0x00400554, 0x00400560, 0x004008EA, 0x00401101, 0x0040A040, 0x0040A043,
    0x0040A120, 0x0040A123, 0x0040A160, 0x0040A168, 0x0040A170, 0x0040A30A, 0x00420010,
}  # fmt: skip

Shape = tuple[tuple[int, "Shape | None"], ...]


def check(query: Tree) -> bool:
    """Whether every key is supported. InvalidValue for what is no worklist identifier (conformance.md 1.3)."""
    if QUERY_LEVEL in query:
        raise InvalidValue("(0008,0052)", "has no place in a worklist query", tags=(QUERY_LEVEL,))
    steps = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    if isinstance(steps, list) and len(steps) > 1:
        raise InvalidValue("(0040,0100)", "has more than one item", tags=(STEP_SEQUENCE,))
    matching.check(query)
    matching.zone_of(query)
    return _supported(query, RETURNED)


def _supported(keys: Tree, known: frozenset[int]) -> bool:
    nested = [(tag, item) for tag, (_, value) in keys.items() if isinstance(value, list) for item in value]
    tags = {tag for tag in keys if tag & 0xFFFF}  # the others are group lengths, which say nothing (PS3.5 7.2)
    return tags <= known and all(_supported(item, known_in(tag)) for tag, item in nested)


def known_in(sequence: int) -> frozenset[int]:
    return STEP_RETURNED if sequence == STEP_SEQUENCE else ITEM_RETURNED


def shape(query: Tree) -> Shape:
    """The tags that are asked for, nested; values gone. An empty sequence asks for all that it can hold."""
    return tuple(
        (tag, shape(value[0]) if value else None) if isinstance(value, list) else (tag, ())
        for tag, (_, value) in sorted(query.items())
        if tag != tree.CHARSET
    )


def step_keys(query: Tree) -> Tree:
    items = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    return items[0] if isinstance(items, list) and items else {}


def plain(keys: Tree, tag: int) -> str:
    value = keys.get(tag, ("", ""))[1]
    return value.strip(" ") if isinstance(value, str) else ""


def is_readable(query: Tree) -> bool:
    """Whether it is in a character set that we know; else only its ASCII characters were read (conformance.md 1.6)."""
    return charset.supported(charset.terms(plain(query, tree.CHARSET)))


def can_answer_in(setting: str) -> bool:
    return bool(setting) and charset.supported(charset.terms(setting))
