"""One small, fixed world: a CT, an MR, a second CT; a few invented patients; golden orders of the conformance text."""

import datetime as dt
from zoneinfo import ZoneInfo

from broker import ids
from broker.sim.ris import Order, Patient, Step

TOKYO = ZoneInfo("Asia/Tokyo")

YAMADA = Patient("0000012345", "山田^太郎", "ヤマダ^タロウ", "19700101", "M")
SATO = Patient("0000023456", "佐藤^花子", "サトウ^ハナコ", "19850315", "F")
TAKAHASHI = Patient("0000034567", "髙橋^一郎", "タカハシ^イチロウ", "19601224", "M")
SMITH = Patient("0000045678", "", "", "19551111", "F", romaji="SMITH^ANNA")


_begun = dt.datetime.now(TOKYO)


def begin() -> None:
    """Of a test: it knows one now, so that what it says twice is the same twice when the minute has changed between."""
    global _begun
    _begun = dt.datetime.now(TOKYO)


def today(hour: int = 0, minute: int = 0) -> dt.datetime:
    """A time of today in the site's zone; without arguments: when the test began, to the minute."""
    now = _begun.replace(second=0, microsecond=0)
    return now.replace(hour=hour, minute=minute) if (hour, minute) != (0, 0) else now


def order(
    accession: str = "ACC001",
    patient: Patient = YAMADA,
    *,
    modality: str = "CT",
    station: str = "CT1",
    steps: int = 1,
    start: dt.datetime | None = None,
    study_uid: str = "",
) -> Order:
    """An order for today on one device, with ids derived from the accession number."""
    return Order(
        accession=accession,
        patient=patient,
        start=start or today(),
        steps=tuple(
            Step(f"S{n + 1}{accession}"[:16], modality, station, f"6000{n}00200000000", f"胸部{n + 1}")
            for n in range(steps)
        ),
        procedure_id=f"R{accession}"[:16],
        study_uid=study_uid or ids.derived_uid("2.25", accession),
    )
