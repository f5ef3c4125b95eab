"""docs/conformance/hl7-fields.md and docs/mapping.md say what the program reads."""

import contextlib
import re
from pathlib import Path

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError
from broker.ris_bridge.hl7 import message, road
from broker.ris_bridge.mapping import reads, trial
from broker.ris_bridge.mapping.targets import TARGETS

DOCS = Path(__file__).parent.parent.parent / "docs"
PID = "PID|1||1^^^HOSP&1.2.3&ISO^PI||A^B||19700101|M||||||||||AC1^^^HOSP"
MEASURE = "OBX|1|NM|X^Body weight||60|kg"
ORDER = (
    PID, "AL1|1||^卵", "NTE|1||x", "PV1|1|I|7W", "ORC|{control}|||||||P1",
    "TQ1|1", "OBR|1|||||||||||||||||A1|R1|S1", "NTE|1||x", MEASURE, "{last}",
)  # fmt: skip
SIU = (
    "SCH|A1^HIS|A2^RIS||||||||||^^^20251201093000|||||12^B^C|||||||||Booked|P1^HIS|F1^RIS", "TQ1|1||||||20251201093000",
    "NTE|1||x", PID, "PV1|1|I|7W|||||^B^C|||||||B6|||V1", MEASURE, "RGS|1|A", "AIS|1|A|X^Y^L|20251201093000|0|min|10|min",
    "AIG|1|A|R1^CT室1", "AIL|1|A|1F^CT", "AIP|1|A|1^B^C",
)  # fmt: skip
ORU = (
    PID, "AL1|1||^卵", "PV1|1|I|7W", "ORC|RE", "OBR|1|||X^Y||||||||||||||ACC1||||20251201|||F", "NTE|1||x", "OBX|1|TX|X^Y||所見|||||F", "OBX|2|NM|X^Y||3|mm|||||F",
    "OBX|3|ED|X^Y||^AP^PDF^Base64^JVBERi0xLjQ=||||||F",
)  # fmt: skip
ADT = ("EVN|A01|20251201||||20251201", PID, "AL1|1||^卵", "PV1|1|I|7W||||||||||||||||V1^^^HOSP", MEASURE,
       "ORC|NW|P1^HIS|F1^RIS", "OBR|1|P1^HIS|F1^RIS|||||||||||||||ACC1")  # fmt: skip
MERGE = ("EVN|A40|20251201||||20251201", PID, "MRG|2^^^HOSP^PI")
# Messages that say little of their orders, so that every source is asked: what says something ends the search.
EXAMPLES = {
    "ORM": (ORDER,), "OMG": (ORDER,), "OMI": (ORDER,), "SIU": (SIU,), "ORU": (ORU,), "ADT": (ADT, MERGE),
}  # fmt: skip


def text(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def test_the_table_of_fields_is_in_the_statement():
    assert reads.table() in text("conformance/hl7-fields.md"), f"put this into the statement:\n{reads.table()}"


@pytest.mark.parametrize("kind", sorted(road.READERS))
def test_no_field_is_read_that_the_table_does_not_name(kind):
    known = {one.field for one in reads.fields_read() if {"every", kind[:3]} & set(one.messages)}
    for example in EXAMPLES[kind[:3]]:
        assert observed(kind, example) - known == set()


def observed(kind: str, example: tuple[str, ...]) -> set[str]:
    """Fields that are looked at, with or without a value."""
    found: set[str] = set()
    for control in ("NW", "XO", "CH"):
        last = "IPC|A|R|1.2.3|S|CT" if kind[:3] == "OMI" else "ZDS|"
        head = f"MSH|^~\\&|A|B|C|D|20251201085500||{kind}|1|P|2.5.1||||||UNICODE UTF-8"
        lines = [head, *(line.format(control=control, last=last) for line in example)]
        msg, seen = trial.watched(message.parse("\r".join(lines).encode(), Limits(), "ASCII"))
        with contextlib.suppress(BrokerError):
            road.READERS[kind](msg, Site())
        found |= {f"{segment}-{number}" for segment, _, number in seen}
    return found


def test_every_target_is_in_the_document():
    targets = text("mapping.md").partition("## Targets")[2]
    rows = re.findall(r"^\| `([a-zA-Z_.]+)` \| (.*) \|$", targets, re.M)
    assert rows == [(name, target.kind.about) for name, target in TARGETS.items()]


def test_every_shipped_profile_is_in_the_document():
    from broker.ris_bridge.mapping.profile import shipped, shipped_names

    for name in shipped_names():
        assert f"| `{name}` | {shipped(name).description} |" in text("mapping.md")
