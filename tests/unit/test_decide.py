"""The decision table of reconciliation.md 3.5: each row by a small exam that fits it, and what no row may ever do."""

import datetime as dt
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from broker.archive import facts as of
from broker.archive.decide import TABLE, decide
from broker.archive.facts import Decided, Item, Offer, Performed, Person, Request, Seen, StudyFacts
from broker.archive.grades import grade

TOKYO = ZoneInfo("Asia/Tokyo")
NOW = dt.datetime(2026, 4, 1, 10, 0, tzinfo=TOKYO)
EARLIER = NOW - dt.timedelta(minutes=20)
OURS, ALIAS = "1.2.3", "2.25.9"
YAMADA = Person(1, "YAMADA^TARO=山田^太郎", "19700101", "M")
SATO = Person(2, "SATO^HANAKO", "19850315", "F")
OFFER = Offer("CT1", EARLIER, 1, YAMADA.name, "19700101")
ITEM = Item(
    step_pk=11, procedure_pk=21, order_pk=31, patient_pk=1, accession_number="ACC1", accession_issuer="RIS",
    procedure_id="RP1", sps_id="SPS1", study_uid=OURS, modality="CT", status="STARTED", devices=("CT1",), start=NOW,
    placed_at=NOW - dt.timedelta(hours=2), offers=(OFFER,),
)  # fmt: skip
OTHER_ITEM = replace(
    ITEM, step_pk=12, procedure_pk=22, order_pk=32, accession_number="ACC2", procedure_id="RP2", sps_id="SPS2",
    study_uid="1.2.4",
)  # fmt: skip
SATOS_ITEM = replace(OTHER_ITEM, patient_pk=2, offers=())
REQUEST = Request("RP1", "SPS1", "", "")
IMAGE = Seen(
    instances=(1,), patient_id="0012345", issuer="HOSP", name=YAMADA.name, birth_date="19700101", sex="M", patients=(1,),
    id_via="equal", accession_number="ACC1", accession_issuer="RIS", requests=(REQUEST,), modality="CT",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2", image_type=("ORIGINAL", "PRIMARY"), device="CT1", source_device="CT1",
    acquired_first=EARLIER, acquired_last=EARLIER, received_last=NOW,
)  # fmt: skip
DECIDED = Decided(
    at=NOW - dt.timedelta(hours=1), by_person=False, outcome="A", grade="G0", patient_pk=1, orders=(31,),
    identities=(("0012345", "HOSP", YAMADA.name, "19700101", "M"),), devices=("CT1",), modalities=("CT",),
    acquired_last=EARLIER,
)  # fmt: skip
WEEK = dt.timedelta(days=7)


def exam(*, uid=OURS, items=(ITEM,), people=(YAMADA, SATO), **changes):
    """An exam as ordered; changes: of its images, or of the study where StudyFacts has that name."""
    of_study = {name: changes.pop(name) for name in list(changes) if name in StudyFacts.__dataclass_fields__}
    of_study.setdefault("seen", (replace(IMAGE, **changes),))
    return StudyFacts(study_uid=uid, now=NOW, items=items, people=people, listed=("CT1",), **of_study)


def item(**changes):
    return (replace(ITEM, **changes),)


NO_ID = {"patient_id": "", "patients": (), "id_via": ""}
STRANGER = {"patient_id": "777", "patients": (), "id_via": "", "name": "OTHER^ONE"}
TWIN_ID = {"patient_id": "777", "patients": (), "id_via": ""}
UNLINKED = {"uid": ALIAS, "requests": (), "accession_number": ""}
BY_A = {"uid": ALIAS, "requests": ()}
BY_R = {"uid": ALIAS}
CASES = [
    ("1", "A", {}),
    ("1", "A", {"requests": ()}),
    ("1", "A", {"name": "=山田^太郎"}),
    ("1", "C", {"items": item(status="EXPIRED")}),
    ("1b", "C", BY_R),
    ("1b", "C", {"uid": ALIAS, "requests": (), "performed": (Performed(1, "COMPLETED", (11,), patient_id="1", patient=1),)}),
    ("2", "C", {"sex": ""}),
    ("2", "C", {"name": "=山田"}),
    ("2", "C", {**BY_R, "birth_date": ""}),
    ("3", "C", {"accession_number": ""}),
    ("4", "C", BY_A),
    ("4", "C", {**BY_A, "birth_date": ""}),
    ("46", "H", {**BY_A, "name": ""}),
    ("46", "H", {"accession_number": "TYPED"}),
    ("46", "H", {"items": item(status="ON_HOLD")}),
    ("46", "H", {"is_cut": True}),
    ("46", "H", {"is_cut": True, "decided": DECIDED}),
    ("16/32", "C", {"id_via": "rule"}),
    ("16/32", "C", {"accession_number": "acc1"}),
    ("36", "C", {"id_via": "merge"}),
    ("5", "H", UNLINKED),
    ("6", "H", {**UNLINKED, "items": (ITEM, OTHER_ITEM)}),
    ("13", "H", {**UNLINKED, "items": ()}),
    ("13", "H", {**UNLINKED, **STRANGER, "items": ()}),
    ("40", "H", {**UNLINKED, "items": (), "source_kind": "import"}),
    ("15", "HH", NO_ID),
    ("15", "H", {**UNLINKED, **NO_ID}),
    ("11", "HH", STRANGER),
    ("11", "HH", TWIN_ID),
    ("12", "HH", {**BY_A, **STRANGER}),
    ("12", "HH", {**BY_R, **STRANGER}),
    ("12b", "H", {**BY_A, **TWIN_ID}),
    ("48", "H", {"accession_number": "ACC2", "items": (ITEM, OTHER_ITEM)}),
    ("48", "HH", {**BY_R, "seen": (replace(IMAGE, accession_number="ACC2", name="YAMADA^TARO"),),
                  "items": (ITEM, replace(SATOS_ITEM, patient_pk=3)),
                  "people": (YAMADA, replace(YAMADA, pk=3))}),
    ("10", "HH", {"name": "SUZUKI^JIRO"}),
    ("10", "HH", {"sex": "F", "birth_date": "19700102"}),
    ("44", "HH", {"birth_date": "19700102"}),
    ("8", "H", {"birth_date": "19700102", "items": item(offers=(replace(OFFER, birth_date="19700102"),))}),
    ("9", "H", {"sex": "F"}),
    ("7", "H", {**BY_R, "name": "YAMADA^TARI"}),
    ("31", "HH", {**BY_A, "accession_issuer": "", "items": (ITEM, replace(SATOS_ITEM, accession_number="ACC1"))}),
    ("31", "H", {**BY_A, "accession_issuer": "",
                 "items": (ITEM, replace(OTHER_ITEM, accession_number="ACC1", accession_issuer="CLINIC"))}),
    ("17", "HH", {**UNLINKED, "items": (), "patients": (1, 2)}),
    ("18", "H", {"items": item(status="CANCELED", cancelled_at=EARLIER - dt.timedelta(hours=1))}),
    ("19", "H", {"items": item(status="CANCELED", cancelled_at=NOW)}),
    ("21", "HH", {"performed": (Performed(1, "DISCONTINUED", (11,), patient_id="1", patient=1, wrong_entry=True),)}),
    ("25", "HH", {"seen": (IMAGE, replace(IMAGE, patient_id="777", patients=(), accession_number="", requests=(),
                                          name="YAMADA^TARO")), "uid": ALIAS, "items": ()}),
    ("25", "HH", {"performed": (Performed(1, "COMPLETED", (11,), patient_id="2", patient=2),)}),
    ("27", "HH", {"decided": replace(DECIDED, patient_pk=2, orders=())}),
    ("27", "HH", {**UNLINKED, "patient_id": "2", "patients": (2,), "decided": DECIDED}),
    ("44", "HH", {"items": item(offers=(replace(OFFER, patient=2),))}),
    ("28", "H", {"acquired_last": EARLIER + 2 * dt.timedelta(days=1), "received_last": NOW + WEEK}),
    ("28", "H", {"decided": replace(DECIDED, at=NOW - WEEK, acquired_last=EARLIER - WEEK)}),
    ("28", "H", {"decided": replace(DECIDED, orders=(99,))}),
    ("23", "H", {"decided": replace(DECIDED, at=NOW - dt.timedelta(hours=25))}),
    ("23", "H", {"decided": DECIDED, "device": "CT2", "items": item(devices=(), offers=())}),
    ("47", "A", {"decided": DECIDED}),
    ("47", "C", {"decided": DECIDED, "id_via": "merge"}),
    ("47", "A", {"decided": replace(DECIDED, at=NOW - WEEK), "modality": "SR", "device": "WS1"}),
    ("47", "C", {**STRANGER, "decided": replace(
        DECIDED, by_person=True, outcome="C", grade="", identities=(("777", "HOSP", "OTHER^ONE", "19700101", "M"),))}),
    ("22", "C", {"decided": replace(DECIDED, by_person=True, identities=())}),
    ("24", "C", {**BY_R, "accession_number": "", "items": (ITEM, OTHER_ITEM),
                 "requests": (REQUEST, Request("RP2", "SPS2"))}),
    ("26", "C", {**BY_R, "other_studies": {21: 1}}),
    ("26", "H", {**BY_R, "other_studies": {21: 4}}),
    ("26", "H", {**BY_R, "other_studies": {21: 1}, "sex": ""}),
    ("29b", "H", {"conflicts": ("attributes",)}),
    ("30", "HH", {"conflicts": ("attributes", "pixels")}),
    ("30", "HH", {"conflicts": ("identity",)}),
    ("33", "H", {"modality": "MR"}),  # D1
    ("33", "H", {"device": "CT2", "items": item(offers=())}),  # D2
    ("33", "H", {"items": item(offers=())}),  # D3
    ("33", "H", {"acquired_first": EARLIER - dt.timedelta(hours=5), "acquired_last": EARLIER}),  # D4
    ("33", "H", {"acquired_first": NOW + dt.timedelta(hours=1)}),  # D4
    ("33", "H", {"items": item(other_study=True)}),  # D8
    ("33", "H", {"performed": (Performed(1, "COMPLETED", (11,), ("9",)), Performed(2, "COMPLETED", (13,), ("9",)))}),
    ("33", "H", {**BY_R, "name": "", "birth_date": ""}),  # GM
]  # fmt: skip


@pytest.mark.parametrize(("row", "outcome", "changes"), CASES)
def test_the_first_row_that_fits_decides(row, outcome, changes):
    verdict = decide(exam(**changes))
    assert (verdict.row, verdict.outcome) == (row, outcome), verdict.reasons


def test_each_row_has_an_exam_here():
    assert {rule.row for rule in TABLE} == {row for row, _, _ in CASES}


@pytest.mark.parametrize(("row", "outcome", "changes"), CASES)
def test_a_decision_can_be_made_again_from_what_is_stored_with_it(row, outcome, changes):
    facts = exam(**changes)
    assert decide(of.from_json(of.to_json(facts))) == decide(facts)


@pytest.mark.parametrize(("row", "outcome", "changes"), [case for case in CASES if case[1] in "AC"])
@pytest.mark.parametrize("wrong", [STRANGER, NO_ID, {"birth_date": "19010203", "name": "OTHER^ONE"}])
def test_what_enters_the_archive_with_the_right_patient_never_does_with_another(row, outcome, changes, wrong):
    right = exam(**changes)
    if right.decided and right.decided.by_person:
        return  # a person vouched for these very values
    worse = replace(right, seen=tuple(replace(seen, **wrong) for seen in right.seen))
    assert decide(worse).outcome in ("H", "HH")


def test_an_id_that_may_mean_two_people_is_nobody_s():
    assert grade(replace(IMAGE, patients=(1, 2)), YAMADA).code in ("G4", "G5")


def test_reasons_name_what_differs_and_never_whom():
    said = " ".join(decide(exam(**STRANGER)).reasons)
    assert "patient ID differs" in said
    assert not any(word in said for word in ("OTHER", "YAMADA", "777", "1970"))


def test_the_best_candidate_comes_first():
    verdict = decide(exam(**UNLINKED, items=(SATOS_ITEM, ITEM)))
    assert [one["order_id"] for one in verdict.candidates] == [31, 32]
    assert verdict.candidates[0]["reasons"] == ["modality agrees", "station agrees"]


def test_a_step_that_a_study_was_made_for_is_named():
    (link,) = decide(exam()).links
    assert (link.order_pk, link.procedure_pk, link.step_pk) == (31, 21, 11)
