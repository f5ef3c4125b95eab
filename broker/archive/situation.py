"""Facts about a study, and the situations that the decision table asks for (reconciliation.md 3.5). Pure.

Each function below the class is one cell of the table, in its words."""

import datetime as dt
from collections.abc import Iterable
from functools import cached_property
from typing import Literal

from broker.archive import detectors
from broker.archive.facts import Decided, Item, Person, Seen, StudyFacts
from broker.archive.grades import Grade, grade, is_worse, worst
from broker.archive.links import OPEN, Links, accession_agrees, find
from broker.mwl import normalise

Outcome = Literal["A", "C", "H", "HH"]
DAY = dt.timedelta(hours=24)
# What is made from images, or about them: it may come late, and from a workstation.
DERIVED = frozenset({"SR", "PR", "KO", "SEG", "DOC", "SC"})
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


class Situation:
    """The facts with what follows from them, each worked out when a row first asks."""

    def __init__(self, facts: StudyFacts) -> None:
        self.facts = facts
        self.seen = facts.seen
        self.people: dict[int, Person] = {person.pk: person for person in facts.people}
        self.links: Links = find(facts)
        self.items: tuple[Item, ...] = self.links.items
        self.is_linked = bool(self.links.statements)
        self.has = self.links.kinds

    @cached_property
    def patients(self) -> frozenset[int]:
        """Of the orders named."""
        return frozenset(
            item.patient_pk for one in self.links.statements for item in one.items
            if item.order_pk in self.links.orders
        )  # fmt: skip

    @cached_property
    def grade(self) -> Grade:
        """The worst over all identities in the study and all orders named; without a link against the patients that
        the objects name."""
        against = [self.people[pk] for pk in sorted(self.patients)] if self.is_linked else []
        if not against and self.decided and self.decided.patient_pk is not None:
            against = [self.people[self.decided.patient_pk]]
        if against:
            return worst([grade(seen, person) for seen in self.seen for person in against])
        return worst([grade(seen, self._own(seen)) for seen in self.seen])

    def _own(self, seen: Seen) -> Person:
        return self.people.get(seen.patients[0], Person(0)) if len(seen.patients) == 1 else Person(0)

    @property
    def is_compared(self) -> bool:
        """There is somebody to compare the objects with: an order's patient, the study's, or whom their IDs name."""
        return self.is_linked or self.decided is not None or all(len(seen.patients) == 1 for seen in self.seen)

    @cached_property
    def signs(self) -> dict[str, str]:
        return detectors.fired(self.facts, self.links)

    @property
    def decided(self) -> Decided | None:
        return self.facts.decided

    @property
    def is_open(self) -> bool:
        return bool(self.items) and all(item.status in OPEN for item in self.items)

    @cached_property
    def images(self) -> tuple[Seen, ...]:
        """What was acquired, not made from it."""
        return tuple(seen for seen in self.seen if not is_derived(seen))

    @property
    def is_clean(self) -> bool:
        """Order open, and no accession number but its own."""
        return self.is_open and all(accession_agrees(seen, self.items) for seen in self.seen)

    def is_grade(self, *codes: str) -> bool:
        return self.grade.code in codes

    def shows(self, names: Iterable[str]) -> bool:
        """Whether one of these detectors fired."""
        return any(name in self.signs for name in names)


# Cells


def is_near_copy(case: Situation) -> bool:
    return bool(case.facts.conflicts) and not is_conflict(case)


def is_conflict(case: Situation) -> bool:
    return bool({"identity", "pixels"} & set(case.facts.conflicts))


def is_remembered(case: Situation) -> bool:
    """A person released these very identity values for this study (3.5, after the table)."""
    decided = case.decided
    return (
        decided is not None
        and decided.by_person
        and all(identity_of(seen) in decided.identities for seen in case.seen)
        and names_no_other_order(case, decided)
        and not is_wrong_entry(case)
        and not is_cut(case)
        and may_follow(case, decided)
    )


def names_no_other_order(case: Situation, decided: Decided) -> bool:
    """What the objects link to is what their study was released for."""
    return not case.is_linked or (not case.links.contradict and case.links.orders == frozenset(decided.orders))


def contradiction(case: Situation) -> Outcome:
    return "H" if len(case.patients) == 1 and names_only(case, case.patients) else "HH"


def names_only(case: Situation, patients: frozenset[int]) -> bool:
    return all(frozenset(seen.patients) == patients for seen in case.seen)


def is_other_patients_study(case: Situation) -> bool:
    decided = case.decided
    if decided is None or decided.patient_pk is None:
        return False
    return not names_only(case, frozenset({decided.patient_pk})) or bool(case.patients - {decided.patient_pk})


def is_wrong_entry(case: Situation) -> bool:
    return any(one.wrong_entry for one in case.facts.performed)


def is_later_object(case: Situation) -> bool:
    """Row 47"""
    decided = case.decided
    if decided is None or decided.by_person or is_cut(case) or not names_no_other_order(case, decided):
        return False
    if is_worse(case.grade.code, decided.grade) or not case.is_grade("G0", "G1"):
        return False
    own = [item for item in case.facts.items if item.order_pk in decided.orders]
    return all(accession_agrees(seen, own) for seen in case.seen) and may_follow(case, decided)


def may_follow(case: Situation, decided: Decided) -> bool:
    soon = case.facts.now - decided.at <= DAY
    return all(is_derived(seen) or (soon and seen.device in decided.devices) for seen in case.seen)


def is_derived(seen: Seen) -> bool:
    return (
        seen.modality in DERIVED
        or seen.sop_class_uid.startswith(SECONDARY_CAPTURE)
        or (bool(seen.image_type) and seen.image_type[0] == "DERIVED")
    )


def two_orders(case: Situation) -> Outcome:
    named = {item.patient_pk for one in case.links.doubles for item in one.items}
    return "H" if len(named) == 1 and names_only(case, frozenset(named)) else "HH"


def is_ambiguous(case: Situation) -> bool:
    return any(len(seen.patients) > 1 for seen in case.seen)


def is_cancelled(case: Situation) -> bool:
    return any(item.status == "CANCELED" for item in case.items)


def is_cancelled_first(case: Situation) -> bool:
    first = min((seen.acquired_first for seen in case.seen if seen.acquired_first), default=None)
    return any(
        item.status == "CANCELED" and (first is None or item.cancelled_at is None or item.cancelled_at <= first)
        for item in case.items
    )


def is_used_again(case: Situation) -> bool:
    """Row 28: the same patient's, but another order, or acquired more than a day apart."""
    times = [at for seen in case.images for at in (seen.acquired_first, seen.acquired_last) if at]
    decided = case.decided
    if decided is not None:
        if case.is_linked and case.links.orders != frozenset(decided.orders):
            return True
        times += [decided.acquired_last] if decided.acquired_last and times else []
    return bool(times) and max(times) - min(times) > DAY


def is_late_append(case: Situation) -> bool:
    """Row 23"""
    decided = case.decided
    if decided is None:
        return False
    late = case.facts.now - decided.at > dt.timedelta(hours=case.facts.append_hours)
    elsewhere = any(
        seen.device not in decided.devices or seen.modality not in decided.modalities for seen in case.images
    )
    return late or elsewhere


def is_group(case: Situation) -> bool:
    return (
        detectors.is_group(case.links)
        and bool(case.has & {"R", "M"})
        and len(case.patients) == 1
        and case.is_grade("G0", "G1")
        and case.is_clean
    )


def is_additional(case: Situation) -> bool:
    return any(case.facts.other_studies.get(item.procedure_pk) for item in case.items)


def additional(case: Situation) -> Outcome:
    fits = detectors.is_additional(case.facts, case.links) and case.is_grade("G0") and case.is_clean
    return "C" if fits else "H"


def is_append(case: Situation) -> bool:
    """Row 22"""
    return case.decided is not None and case.is_linked and case.is_grade("G0") and case.is_clean


def fits_rows_1_to_4(case: Situation) -> bool:
    return any(fits(case) for fits in (is_row_1, is_row_1b, is_row_2, is_row_4))


def is_row_1(case: Situation) -> bool:
    return "U" in case.has and case.is_grade("G0") and case.is_clean


def is_row_1b(case: Situation) -> bool:
    return bool(case.has & {"R", "M"}) and case.is_grade("G0") and case.is_clean


def is_row_2(case: Situation) -> bool:
    return bool(case.has & {"U", "R", "M"}) and case.is_grade("G1") and case.is_clean


def is_row_3(case: Situation) -> bool:
    empty = any(not normalise.plain(seen.accession_number) for seen in case.seen)
    return is_row_1(case) and empty and any(item.accession_number for item in case.items)


def is_row_4(case: Situation) -> bool:
    modalities = {item.modality for item in case.items}
    seen = {one.modality for one in case.images}
    return (
        case.has == {"A"}
        and (case.is_grade("G0") or (case.is_grade("G1") and "name" not in case.grade.missing))
        and bool(seen)
        and seen <= modalities
        and case.is_clean
    )


def is_reopened(case: Situation) -> bool:
    """Its step had expired: the exam was made after all (3.3), and the step starts with the images."""
    return any(item.status in ("EXPIRED", "NO_SHOW") for item in case.items)


def is_merged(case: Situation) -> bool:
    return any(seen.id_via == "merge" for seen in case.seen)


def is_by_rule(case: Situation) -> bool:
    """Row 16/32: an ID or accession number is the same only without its width, or with its zeros."""
    numbers = {item.accession_number for item in case.items}
    spelt = any(seen.accession_number and seen.accession_number not in numbers for seen in case.seen)
    return spelt or any(seen.id_via == "rule" for seen in case.seen)


def open_items(case: Situation) -> list[Item]:
    """What the patient whom the objects name has open."""
    named = {seen.patients for seen in case.seen}
    if case.is_linked or len(named) != 1 or not case.is_grade("G0"):
        return []
    return [item for item in case.facts.items if (item.patient_pk,) in named and item.status in OPEN - {"COMPLETED"}]


def is_one_click(case: Situation) -> bool:
    """Row 5"""
    found = open_items(case)
    return len(found) == 1 and all(
        seen.modality == found[0].modality
        and seen.device in found[0].devices
        and not (seen.acquired_first and detectors.is_off(seen, seen.acquired_first, found[0]))
        for seen in case.seen
    )


def is_g2(case: Situation, what: str) -> bool:
    return case.is_grade("G2") and what in case.grade.differs


def is_cut(case: Situation) -> bool:
    return any(seen.is_cut for seen in case.seen)


def is_from(case: Situation, kind: str) -> bool:
    return any(seen.source_kind == kind for seen in case.seen)


def outcome_before(case: Situation) -> Outcome:
    """The same decision; no A where the ID leads to the patient only by a rule or a merge (3.3)."""
    unchanged = all(seen.id_via == "equal" for seen in case.seen)
    return "A" if case.decided and case.decided.outcome == "A" and unchanged else "C"


def identity_of(seen: Seen) -> tuple[str, ...]:
    """As Decided.identities has them."""
    return (seen.patient_id, seen.issuer, seen.name, seen.birth_date, seen.sex)
