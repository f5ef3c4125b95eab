"""May a study enter the archive? The decision table of reconciliation.md 3.5 as data; pure.

Read TABLE from the top: the first row whose situation holds decides. Safety rows come first. Where it asks one person,
a later row that asks two goes before it: more disagreement never makes a case easier (P4). Rows 41 to 43 and 29 are the
intake's (they refuse, or change nothing)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from broker.archive import detectors
from broker.archive import situation as its
from broker.archive.facts import StudyFacts
from broker.archive.grades import GRADES, grade, worst
from broker.archive.links import OPEN
from broker.archive.situation import Outcome, Situation

RULES_VERSION = "2"
# 45: QA and phantom IDs. 14: emergency aliases. Without their registers nothing is one, and such studies are held.
MISSING_ROWS = ("45", "14")
AMBER = ("D1", "D2", "D3", "D4", "D5", "D6", "D8", "D14")


@dataclass(frozen=True)
class Link:
    """What an accepted study is filed under. step_pk: None where it is for several steps of the procedure."""

    order_pk: int
    procedure_pk: int
    step_pk: int | None


@dataclass(frozen=True)
class Verdict:
    """row: number in the table. reasons: sentences without patient data. order_pk: the one order that the study is
    for, or would be. candidates: best first, as the case shows them."""

    row: str
    outcome: Outcome
    grade: str
    reasons: tuple[str, ...]
    links: tuple[Link, ...] = ()
    patient_pk: int | None = None
    order_pk: int | None = None
    flags: tuple[str, ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Rule:
    row: str
    outcome: Outcome | Callable[[Situation], Outcome]
    text: str
    holds: Callable[[Situation], bool]


TABLE: tuple[Rule, ...] = (
    Rule("29b", "H", "an object differs from the one with its SOP Instance UID in attributes", its.is_near_copy),
    Rule("30", "HH", "an object differs from the one with its SOP Instance UID in pixels or identity", its.is_conflict),
    Rule("47", its.outcome_before, "later object with the identity that a person released", its.is_remembered),
    Rule("15", "HH", "no Patient ID, though a link names an order", lambda c: c.is_grade("GX") and c.is_linked),
    Rule("15", "H", "no Patient ID: unidentified", lambda c: c.is_grade("GX")),
    Rule("11", "HH", "the Study Instance UID is that of another patient's order",
         lambda c: "U" in c.has and c.is_grade("G4", "G5")),
    Rule("12", "HH", "accession number, request or MPPS name another patient's order",
         lambda c: c.is_linked and c.is_grade("G5")),
    Rule("48", its.contradiction, "Study UID, request, MPPS and accession number name different orders",
         lambda c: c.links.contradict),
    Rule("27", "HH", "the study belongs to another patient already", its.is_other_patients_study),
    Rule("25", "HH", "one study, two patients", lambda c: len(c.patients) > 1 or "D11" in c.signs),
    Rule("21", "HH", "its MPPS was discontinued: incorrect worklist entry selected (110514)", its.is_wrong_entry),
    Rule("10", "HH", "name, birth date or sex differ too much", lambda c: c.is_grade("G3")),
    Rule("44", "HH", "signs of a wrong or edited worklist entry", lambda c: c.shows(detectors.RED)),
    Rule("47", its.outcome_before, "later object of a decided study", its.is_later_object),
    Rule("8", "H", "the birth date differs", lambda c: its.is_g2(c, "birth date")),
    Rule("9", "H", "the sex differs", lambda c: its.is_g2(c, "sex")),
    Rule("7", "H", "the name differs slightly", lambda c: its.is_g2(c, "name")),
    Rule("12b", "H", "another Patient ID with the same person data: probably registered twice",
         lambda c: c.is_linked and c.is_grade("G4")),
    Rule("31", its.two_orders, "two orders have that accession number",
         lambda c: "U" not in c.has and bool(c.links.doubles)),
    Rule("17", "HH", "the Patient ID is known under several issuers and the objects name none", its.is_ambiguous),
    Rule("18", "H", "the order was cancelled before the acquisition", its.is_cancelled_first),
    Rule("19", "H", "the order was cancelled after the acquisition had begun", its.is_cancelled),
    Rule("28", "H", "the Study Instance UID was used again", its.is_used_again),
    Rule("23", "H", "added to a finished study late, or from another station or modality", its.is_late_append),
    Rule("46", "H", "the header says more than can be looked at", its.is_cut),
    Rule("33", "H", "signs of a wrong worklist entry", lambda c: c.is_linked and (c.is_grade("GM") or c.shows(AMBER))),
    Rule("24", "C", "one study for several orders of one patient", its.is_group),
    Rule("26", its.additional, "a further study of one requested procedure", its.is_additional),
    Rule("22", "C", "images added to a study", its.is_append),
    Rule("36", "C", "as ordered; the Patient ID was merged into another",
         lambda c: its.fits_rows_1_to_4(c) and its.is_merged(c)),
    Rule("16/32", "C", "as ordered; ID or accession number are spelt in another way",
         lambda c: its.fits_rows_1_to_4(c) and its.is_by_rule(c)),
    Rule("3", "C", "as ordered; the accession number is filled in", its.is_row_3),
    Rule("1", "C", "as ordered; the step had expired", lambda c: its.is_row_1(c) and its.is_reopened(c)),
    Rule("1", "A", "as ordered", its.is_row_1),
    Rule("1b", "C", "as ordered; the device made the Study Instance UID", its.is_row_1b),
    Rule("2", "C", "as ordered; what the device left out is filled in", its.is_row_2),
    Rule("4", "C", "the accession number names one open order of this patient", its.is_row_4),
    Rule("5", "H", "no link; the patient has one exam open on this station", its.is_one_click),
    Rule("6", "H", "no link; the patient has exams open", lambda c: bool(its.open_items(c))),
    Rule("40", "H", "from outside media", lambda c: not c.is_linked and its.is_from(c, "import")),
    Rule("13", "H", "no link: unscheduled or unidentified", lambda c: not c.is_linked),
    Rule("46", "H", "nothing in the table allows it", lambda c: True),
)  # fmt: skip
FLAGS: dict[str, Callable[[Situation], bool]] = {
    "PARTIAL": lambda c: any(one.status == "DISCONTINUED" for one in c.facts.performed),  # row 20
    "INCOMPLETE": lambda c: c.facts.missing > 0,  # row 39
    "NO_WORKLIST": lambda c: not {seen.device for seen in c.images} <= set(c.facts.listed),  # D3 was silent
}


def decide(facts: StudyFacts) -> Verdict:
    """The verdict of the row that fits, with its reasons."""
    case = Situation(facts)
    fitting = [(rule, _outcome(rule, case)) for rule in TABLE if rule.holds(case)]
    rule, outcome = fitting[0]
    texts = [rule.text]
    if outcome == "H" and (worse := next((one for one in fitting if one[1] == "HH"), None)):
        rule, outcome = worse
        texts = [rule.text, *texts]
    accepted = outcome in ("A", "C")
    return Verdict(
        row=rule.row,
        outcome=outcome,
        grade=case.grade.code,
        reasons=_reasons(case, texts),
        links=_filed_under(case) if accepted else (),
        patient_pk=_patient(case) if accepted else None,
        order_pk=next(iter(case.links.orders)) if len(case.links.orders) == 1 else None,
        flags=tuple(flag for flag, holds in FLAGS.items() if holds(case)),
        candidates=() if accepted else _candidates(case),
    )


def _outcome(rule: Rule, case: Situation) -> Outcome:
    return rule.outcome(case) if callable(rule.outcome) else rule.outcome


def _patient(case: Situation) -> int | None:
    return case.decided.patient_pk if case.decided else next(iter(case.patients), None)


def _filed_under(case: Situation) -> tuple[Link, ...]:
    """One link for each procedure that R or M name; else for the one that the Study UID or the modality tells. None for
    a later object without a link of its own: it is filed where its study is."""
    modalities = {seen.modality for seen in case.seen}
    links: dict[int, Link] = {}
    for procedure_pk in dict.fromkeys(item.procedure_pk for item in case.items):
        steps = [item for item in case.items if item.procedure_pk == procedure_pk]
        steps = [item for item in steps if item.modality in modalities] or steps
        links[procedure_pk] = Link(steps[0].order_pk, procedure_pk, steps[0].step_pk if len(steps) == 1 else None)
    if case.has & {"R", "M"} or len(links) < 2:
        return tuple(links.values())
    best = max(case.items, key=lambda item: (item.study_uid == case.facts.study_uid, item.modality in modalities))
    return (links[best.procedure_pk],)


def _reasons(case: Situation, texts: Sequence[str]) -> tuple[str, ...]:
    said = [*texts]
    if case.is_compared:
        said += [f"{what} differs" for what in case.grade.differs]
        said += [f"{what} is missing" for what in case.grade.missing]
    if not all(seen.identity_is_text for seen in case.seen):
        said.append("the identity is not written in the character set that the objects name")
    return (*said, *(f"{name}: {sign}" for name, sign in case.signs.items()))


def _candidates(case: Situation) -> tuple[dict[str, Any], ...]:
    """Items that a person may choose, best first: named ones, then by grade, modality and station."""
    modalities, devices = {seen.modality for seen in case.seen}, {seen.device for seen in case.seen}
    rated = []
    for item in case.facts.items:
        found = worst([grade(seen, case.people[item.patient_pk]) for seen in case.seen])
        links = sorted({one.kind for one in case.links.statements if item in one.items})
        evidence = [f"link {kind}" for kind in links]
        evidence += ["modality agrees"] * (item.modality in modalities)
        evidence += ["station agrees"] * bool(devices & set(item.devices))
        evidence += [f"{what} differs" for what in found.differs]
        rank = (not links, GRADES.index(found.code), item.status not in OPEN, -len(evidence), item.step_pk)
        shown = {
            "order_id": item.order_pk, "accession_number": item.accession_number, "sps_id": item.sps_id,
            "state": item.status, "grade": found.code, "reasons": evidence,
        }  # fmt: skip
        rated.append((rank, shown))
    return tuple(shown for _, shown in sorted(rated, key=lambda one: one[0]))
