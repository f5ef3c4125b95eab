"""What a modality may say about a performed step: every row of conformance.md 2.4 that needs no database."""

import pytest

from broker.dicom.tree import CHARSET, Tree, vr_of
from broker.errors import EmptyField, InvalidValue, MissingField, WrongState
from broker.mpps import rules
from broker.mpps.rules import COMPLETED, DISCONTINUED, IN_PROGRESS
from tests.performed import DESCRIPTION, created, final, reference, scheduled, series


def stored() -> Tree:
    return rules.check_create(created(), strict=False)


def test_an_absent_type_2_attribute_is_taken_as_empty_also_in_items():
    made = stored()
    assert made[DESCRIPTION] == ("LO", "")
    assert made[rules.PERFORMED_SERIES] == ("SQ", [])
    assert rules.items(made, rules.SCHEDULED_STEPS)[0][rules.ACCESSION] == ("SH", "")


def test_a_strict_site_demands_type_2_and_lists_all_that_is_absent():
    with pytest.raises(MissingField) as refused:
        rules.check_create(created(), strict=True)
    assert refused.value.wire.dimse_n == 0x0120
    assert {DESCRIPTION, rules.PERFORMED_SERIES, rules.ACCESSION} <= set(refused.value.tags)


TYPE_1 = [f"t{a.tag:08X}" for a in rules.TABLE if a.create == 1]


@pytest.mark.parametrize("name", TYPE_1)
def test_an_absent_type_1_attribute_is_refused_and_named(name):
    """MPP-06"""
    with pytest.raises(MissingField) as refused:
        rules.check_create(created(**{name: None}), strict=False)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0120, (int(name[1:], 16),))


@pytest.mark.parametrize("name", TYPE_1)
def test_an_empty_type_1_attribute_is_refused_and_named(name):
    """MPP-07"""
    nothing = ("SQ", []) if name == "t00400270" else ("LO", "")
    with pytest.raises(EmptyField) as refused:
        rules.check_create(created(**{name: nothing}), strict=False)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0121, (int(name[1:], 16),))


def test_a_scheduled_step_without_a_study_uid_is_refused():
    with pytest.raises(MissingField) as refused:
        rules.check_create(created(t00400270=("SQ", [{rules.SPS_ID: ("SH", "S1")}])), strict=False)
    assert refused.value.tags == (rules.STUDY_UID,)


@pytest.mark.parametrize("status", [COMPLETED, DISCONTINUED, "STARTED", "in progress"])
def test_a_performed_step_is_born_in_progress(status):
    """MPP-04"""
    with pytest.raises(InvalidValue) as refused:
        rules.check_create(created(t00400252=("CS", status)), strict=False)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0106, (rules.STATUS,))


def test_text_where_a_sequence_belongs_is_refused():
    with pytest.raises(InvalidValue):
        rules.check_create(created(t00400270=("LO", "text")), strict=False)


@pytest.mark.parametrize(
    ("tag", "good", "old", "bad"),
    [
        (rules.START_DATE, ["20251201", "20240229"], ["2025.12.01"], ["nonsense", "20250230", "2025-12-01", "202512"]),
        (rules.START_TIME, ["09", "0930", "093000", "093000.5", "235960"], ["09:30", "09:30:00", "09:30:00.25"],
         ["25:99", "2400", "9:30", "093000.", "093000.1234567", "09.5", "0930\\0931"]),
    ],
)  # fmt: skip
def test_a_date_or_time_is_of_the_standard_or_leniently_of_its_predecessor(tag, good, old, bad):
    """PS3.5 6.2: DA, TM; the forms of ACR-NEMA 300."""

    def refused(value: str, *, strict: bool) -> tuple[int, ...]:
        said = created(**{f"t{tag:08X}": (vr_of(tag), value)})
        try:
            rules.check_create(said, strict=strict)
        except MissingField:  # strict: the least data set lacks every type 2
            return ()
        except InvalidValue as error:
            return error.tags
        return ()

    assert [value for value in good + old if refused(value, strict=False)] == []
    assert [value for value in good if refused(value, strict=True)] == []
    assert [value for value in old if not refused(value, strict=True)] == []
    assert [value for value in bad if refused(value, strict=False) != (tag,)] == []


@pytest.mark.parametrize(
    ("tag", "item"),
    [
        (rules.STUDY_UID, scheduled("abc")),
        (rules.STUDY_UID, scheduled("1.2.03")),
        (rules.REFERENCED_INSTANCE, scheduled("1.2.3", original="x")),
    ],
)
def test_a_study_uid_that_is_none_is_refused_and_named(tag, item):
    """PS3.5 9.1"""
    with pytest.raises(InvalidValue) as refused:
        rules.check_create(created(t00400270=("SQ", [item])), strict=False)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0106, (tag,))


def test_everything_that_is_malformed_is_named_at_once():
    said = created(t00400244=("DA", "x"), t00400245=("TM", "y"), t00400270=("SQ", [scheduled("z")]))
    with pytest.raises(InvalidValue) as refused:
        rules.check_create(said, strict=False)
    assert set(refused.value.tags) == {rules.START_DATE, rules.START_TIME, rules.STUDY_UID}


@pytest.mark.parametrize(
    "element",
    [("UN", b"20251201"), ("SQ", [{}]), ("DA", "2025\x001201")],
)
def test_what_cannot_be_text_is_refused_where_text_belongs(element):
    with pytest.raises(InvalidValue) as refused:
        rules.check_create(created(t00400244=element), strict=False)
    assert refused.value.tags == (rules.START_DATE,)


def test_the_birth_date_of_a_patient_is_no_matter_of_the_performed_step():
    """We act on it nowhere here, and an exam is not refused for it."""
    assert rules.check_create(created(t00100030=("DA", "unknown")), strict=False)


def test_a_malformed_end_is_refused_and_a_malformed_fixed_attribute_ignored():
    with pytest.raises(InvalidValue) as refused:
        rules.check_set(stored(), IN_PROGRESS, {rules.END_TIME: ("TM", "25:99")}, strict=False)
    assert refused.value.tags == (rules.END_TIME,)
    change = rules.check_set(stored(), IN_PROGRESS, {rules.START_TIME: ("TM", "25:99")}, strict=False)
    assert change.ignored == (rules.START_TIME,)


@pytest.mark.parametrize("name", [rules.SERIES_UID, rules.REFERENCED_INSTANCE])
def test_a_series_or_instance_uid_that_is_none_is_refused(name):
    one = series("abc") if name == rules.SERIES_UID else series("1.2.9", "1..2")
    with pytest.raises(InvalidValue) as refused:
        rules.check_set(stored(), IN_PROGRESS, {rules.PERFORMED_SERIES: ("SQ", [one])}, strict=False)
    assert refused.value.tags == (name,)


@pytest.mark.parametrize("nothing", [("SQ", []), ("LO", ""), ("OB", b"")])
def test_a_fixed_attribute_without_a_value_that_never_had_one_is_no_matter(nothing):
    change = rules.check_set(stored(), IN_PROGRESS, {0x00101002: nothing}, strict=True)
    assert change.ignored == ()


def test_group_lengths_are_not_kept():
    """They are of the data set that came, not of the one that is made of it (PS3.5 7.2)."""
    made = rules.check_create(created(t00400000=("UL", b"\x10\x00\x00\x00")), strict=False)
    assert 0x00400000 not in made


def test_unknown_and_private_attributes_are_kept_and_character_sets_are_not():
    made = rules.check_create(created(t00091010=("LO", "private"), t00080005=("CS", "ISO_IR 100")), strict=False)
    assert made[0x00091010] == ("LO", "private")
    assert CHARSET not in made


@pytest.mark.parametrize("status", [COMPLETED, DISCONTINUED])
@pytest.mark.parametrize("said", [{}, {rules.STATUS: ("CS", IN_PROGRESS)}, {rules.STATUS: ("CS", "CANCELED")}])
def test_a_final_step_takes_nothing_more_whatever_is_said(status, said):
    with pytest.raises(WrongState) as refused:
        rules.check_set(stored(), status, said, strict=False)
    assert refused.value.text == "Performed Procedure Step Object may no longer be updated"


@pytest.mark.parametrize(
    ("status", "event"), [(IN_PROGRESS, "update"), (COMPLETED, "complete"), (DISCONTINUED, "discontinue")]
)
def test_a_status_is_an_event(status, event):
    assert rules.check_set(stored(), IN_PROGRESS, final(status), strict=True).event == event


@pytest.mark.parametrize("status", ["CANCELED", "", "completed"])
def test_another_status_is_refused(status):
    with pytest.raises(InvalidValue) as refused:
        rules.check_set(stored(), IN_PROGRESS, {rules.STATUS: ("CS", status)}, strict=False)
    assert refused.value.tags == (rules.STATUS,)


def test_an_update_without_a_status_goes_on():
    change = rules.check_set(stored(), IN_PROGRESS, {DESCRIPTION: ("LO", "頭部")}, strict=True)
    assert (change.event, change.dataset[DESCRIPTION]) == ("update", ("LO", "頭部"))


def test_a_fixed_attribute_said_again_is_no_matter():
    said = {rules.MODALITY: ("CS", "CT"), rules.SCHEDULED_STEPS: ("SQ", [{rules.STUDY_UID: ("UI", "1.2.3")}])}
    assert rules.check_set(stored(), IN_PROGRESS, said, strict=True).ignored == ()


def test_a_fixed_attribute_said_otherwise_is_ignored_and_the_rest_applied():
    said = {rules.MODALITY: ("CS", "MR"), DESCRIPTION: ("LO", "new")}
    change = rules.check_set(stored(), IN_PROGRESS, said, strict=False)
    assert change.ignored == (rules.MODALITY,)
    assert change.dataset[rules.MODALITY] == ("CS", "CT")
    assert change.dataset[DESCRIPTION] == ("LO", "new")


def test_a_strict_site_refuses_a_fixed_attribute_said_otherwise():
    with pytest.raises(InvalidValue) as refused:
        rules.check_set(stored(), IN_PROGRESS, {rules.MODALITY: ("CS", "MR")}, strict=True)
    assert refused.value.tags == (rules.MODALITY,)


@pytest.mark.parametrize("tag", rules.FINAL_TYPE_1)
def test_a_final_state_without_its_type_1_is_refused_strictly_and_marked_leniently(tag):
    """MPP-09"""
    said = {key: element for key, element in final().items() if key != tag}
    with pytest.raises(EmptyField) as refused:
        rules.check_set(stored(), IN_PROGRESS, said, strict=True)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0121, (tag,))
    assert rules.check_set(stored(), IN_PROGRESS, said, strict=False).missing == (tag,)


def test_the_end_may_have_been_said_before_the_final_state():
    before = rules.check_set(stored(), IN_PROGRESS, final(IN_PROGRESS), strict=True).dataset
    assert rules.check_set(before, IN_PROGRESS, {rules.STATUS: ("CS", COMPLETED)}, strict=True).missing == ()


def test_a_series_without_its_uid_is_refused_with_a_status_that_n_set_has():
    bad = series()
    del bad[rules.SERIES_UID]
    with pytest.raises(EmptyField) as refused:
        rules.check_set(stored(), IN_PROGRESS, {rules.PERFORMED_SERIES: ("SQ", [bad])}, strict=False)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0121, (rules.SERIES_UID,))


def test_a_sequence_replaces_the_one_before():
    """MPP-12"""
    first = rules.check_set(stored(), IN_PROGRESS, {rules.PERFORMED_SERIES: ("SQ", [series("1.1")])}, strict=False)
    second = rules.check_set(
        first.dataset, IN_PROGRESS, {rules.PERFORMED_SERIES: ("SQ", [series("1.2")])}, strict=False
    )
    assert list(rules.announced(second.dataset)) == ["1.2"]


def test_images_and_other_objects_of_a_series_are_announced_together_and_once():
    one = series("1.2.9", "1.2.9.1", "1.2.9.2", "1.2.9.1")
    one[rules.REFERENCED_OTHERS] = ("SQ", [reference("1.2.9.7")])
    assert rules.announced({rules.PERFORMED_SERIES: ("SQ", [one])}) == {"1.2.9": ["1.2.9.1", "1.2.9.2", "1.2.9.7"]}


@pytest.mark.parametrize(
    ("performed", "event"),
    [
        ([(IN_PROGRESS, False)], None),
        ([(COMPLETED, False)], "complete"),
        ([(DISCONTINUED, False)], "discontinue"),
        ([(DISCONTINUED, True)], "wrong_entry"),
        ([(COMPLETED, False), (IN_PROGRESS, False)], None),
        ([(DISCONTINUED, False), (IN_PROGRESS, False)], None),
        ([(COMPLETED, False), (DISCONTINUED, False)], "complete"),
        ([(DISCONTINUED, True), (IN_PROGRESS, False)], None),
        ([(DISCONTINUED, True), (COMPLETED, False)], "complete"),
        ([(DISCONTINUED, True), (DISCONTINUED, False)], "discontinue"),
        ([(DISCONTINUED, True), (DISCONTINUED, True)], "wrong_entry"),
    ],
)
def test_a_scheduled_step_hears_what_all_its_parts_say_together(performed, event):
    assert rules.step_event(performed) == event


def test_a_wrong_worklist_entry_goes_before_other_reasons():
    def code(value: str, scheme: str = "DCM") -> Tree:
        return {rules.CODE_VALUE: ("SH", value), rules.CODE_SCHEME: ("SH", scheme), rules.CODE_MEANING: ("LO", "x")}

    assert rules.reason({rules.REASON: ("SQ", [code("110501"), code("110514")])}) == ("110514", "DCM", "x")
    assert rules.reason({rules.REASON: ("SQ", [code("110501"), code("110514", "99X")])}) == ("110501", "DCM", "x")
    assert rules.reason({}) == ("", "", "")


def test_n_get_returns_what_was_asked_and_says_when_it_has_less():
    assert rules.select(stored(), []) == (stored(), False)
    assert rules.select(stored(), [rules.STATUS]) == ({rules.STATUS: ("CS", IN_PROGRESS)}, False)
    assert rules.select(stored(), [rules.REASON]) == ({rules.REASON: ("SQ", [])}, False)
    assert rules.select(stored(), [rules.STATUS, rules.SERIES_UID]) == ({rules.STATUS: ("CS", IN_PROGRESS)}, True)
    assert rules.select(stored(), [CHARSET]) == ({}, False)
