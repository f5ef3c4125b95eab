"""Signs that the wrong worklist entry was picked: detectors D1 to D15 (reconciliation.md 3.4). Pure.

Each looks at one thing and says in a sentence what is odd, or stays silent. `MISSING` lists those not built yet: they
count as silent, and docs/conformance/reconciliation.md says so."""

import datetime as dt
from collections.abc import Callable, Sequence

from broker.archive.facts import Item, Offer, Seen, StudyFacts
from broker.archive.grades import SAME_NAME
from broker.archive.links import Links
from broker.mwl import names, normalise

MISSING = ("D5", "D6", "D7", "D9", "D13", "D15")
RED = ("D7", "D9", "D10")
# Modalities that may stand for each other; DX and MG only where the order says so.
ALIKE = (
    {"CR", "DX", "RG"}, {"XA", "RF"}, {"XA", "IVUS"}, {"US", "IVUS"}, {"ES", "XC", "VL"}, {"NM", "PT", "CT"},
)  # fmt: skip
# Made beside or from the images of any modality.
EXEMPT = frozenset({"SR", "PR", "KO", "OT", "DOC", "SEG", "REG", "RWV", "AU", "FID", "SC", "ECG"})
BEFORE_ORDER = dt.timedelta(minutes=15)
BEFORE_ARRIVAL = dt.timedelta(minutes=30)
EARLY, LATE = dt.timedelta(hours=4), dt.timedelta(hours=12)
FUTURE = dt.timedelta(minutes=5)
STUDIES_MAX = 4  # of one requested procedure (row 26)


def fired(facts: StudyFacts, links: Links) -> dict[str, str]:
    """Detector -> what it saw, without patient data."""
    found = {name: detector(facts, links) for name, detector in DETECTORS.items()}
    return {name: text for name, text in found.items() if text}


def other_modality(facts: StudyFacts, links: Links) -> str:
    """D1"""
    scheduled = {item.modality for item in links.items if item.modality}
    seen = {one.modality for one in facts.seen if one.modality and one.modality not in EXEMPT}
    odd = sorted(one for one in seen if scheduled and not any(is_alike(one, other) for other in scheduled))
    return f"modality {', '.join(odd)} was not scheduled" if odd else ""


def is_alike(a: str, b: str) -> bool:
    return a == b or any({a, b} <= group for group in ALIKE)


def other_station(facts: StudyFacts, links: Links) -> str:
    """D2. Room groups are not known yet, so each other station is one outside the group."""
    scheduled = {device for item in links.items for device in item.devices}
    anywhere = not scheduled or any(not item.devices for item in links.items)
    seen = {one.device for one in facts.seen if one.modality not in EXEMPT}
    return "acquired on a station where it was not scheduled" if not anywhere and seen - scheduled else ""


def never_offered(facts: StudyFacts, links: Links) -> str:
    """D3. Silent for a device that asks for no worklist."""
    devices = {one.device for one in facts.seen if one.modality not in EXEMPT} & set(facts.listed)
    offered = {offer.device for item in links.items for offer in item.offers}
    return "the item was never shown to the device that acquired it" if links.items and devices - offered else ""


def other_time(facts: StudyFacts, links: Links) -> str:
    """D4"""
    for seen in facts.seen:
        if seen.modality in EXEMPT or seen.acquired_first is None:
            continue
        if seen.acquired_first > (seen.received_last or facts.now) + FUTURE:
            return "acquired in the future: the clock of the device is wrong"
        if links.items and all(is_off(seen, seen.acquired_first, item) for item in links.items):
            return "acquired at another time than the order allows"
    return ""


def is_off(seen: Seen, at: dt.datetime, item: Item) -> bool:
    """Acquired before the order, well before the patient came, or not when it was scheduled."""
    if item.placed_at and at < item.placed_at - BEFORE_ORDER:
        return True
    if item.arrived_at and at < item.arrived_at - BEFORE_ARRIVAL:
        return True
    if item.start is None:
        return False
    if item.any_time or seen.mobile:
        return at.astimezone(item.start.tzinfo).date() != item.start.date()
    return not item.start - EARLY <= at <= item.start + LATE


def step_used(facts: StudyFacts, links: Links) -> str:
    """D8. What rows 22, 24 and 26 allow is theirs."""
    if is_additional(facts, links) or is_group(links):
        return ""
    return "another study was made for the step already" if any(item.other_study for item in links.items) else ""


def is_additional(facts: StudyFacts, links: Links) -> bool:
    """Row 26: one of a few studies of one order, made on the station group that the order names."""
    if len(links.orders) != 1 or not links.kinds & {"A", "R", "M"} or not links.items:
        return False
    others = max(facts.other_studies.get(item.procedure_pk, 0) for item in links.items)
    return 0 < others < STUDIES_MAX and not other_station(facts, links)


def is_group(links: Links) -> bool:
    """Row 24"""
    return len(links.orders) > 1 and not links.contradict


def edited_entry(facts: StudyFacts, links: Links) -> str:
    """D10: with link U, what the device was shown against what it wrote. Shown twice: either may be meant."""
    if "U" not in links.kinds:
        return ""
    own = [item for item in links.items if item.study_uid == facts.study_uid]
    for seen in facts.seen:
        shown = [offer for item in own for offer in item.offers if offer.device == seen.device]
        if shown and not any(_as_shown(seen, offer) for offer in shown):
            return "the identity in the objects is not the one that the device was shown"
    return ""


def _as_shown(seen: Seen, offer: Offer) -> bool:
    name = names.grade(seen.name, offer.name)
    dates = normalise.birth_date(seen.birth_date), normalise.birth_date(offer.birth_date)
    same_id = offer.patient is None or offer.patient in seen.patients or not normalise.plain(seen.patient_id)
    return same_id and name in (*SAME_NAME, "missing") and (not all(dates) or dates[0] == dates[1])


def two_patients(facts: StudyFacts, links: Links) -> str:
    """D11: in the study, or between it and its MPPS."""
    named = {_who(one.patients, one.patient_id) for one in facts.seen if normalise.plain(one.patient_id)}
    named |= {
        _who((one.patient,) if one.patient else (), one.patient_id)
        for one in facts.performed if normalise.plain(one.patient_id) and named
    }  # fmt: skip
    return "the study names more than one patient" if len(named) > 1 else ""


def _who(patients: Sequence[int], patient_id: str) -> object:
    return tuple(patients) or normalise.plain(patient_id)


def other_report(facts: StudyFacts, links: Links) -> str:
    """D14: two MPPS about the same series, from different steps."""
    about = [one for one in facts.performed if one.steps]
    twice = any(
        set(a.series) & set(b.series) and not set(a.steps) & set(b.steps)
        for n, a in enumerate(about) for b in about[n + 1 :]
    )  # fmt: skip
    return "two performed procedure steps of different items name the same series" if twice else ""


DETECTORS: dict[str, Callable[[StudyFacts, Links], str]] = {
    "D1": other_modality,
    "D2": other_station,
    "D3": never_offered,
    "D4": other_time,
    "D8": step_used,
    "D10": edited_entry,
    "D11": two_patients,
    "D14": other_report,
}  # D12, MPPS discontinued with 110514, is row 21 itself
