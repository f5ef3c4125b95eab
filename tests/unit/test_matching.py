"""Which items a worklist query finds, key by key (PS3.4 C.2.2.2, K.6-1; conformance.md 1.2–1.5, 1.7)."""

import datetime as dt
import sys
import unicodedata
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword

from broker.config import Limits
from broker.dicom import tree
from broker.errors import InvalidValue
from broker.mwl import dataset, keys, matching, texts
from broker.mwl.matching import START_DATE, START_TIME, STEP_SEQUENCE, TIMEZONE
from broker.ris_bridge.mapping.targets import TARGETS

TOKYO, NEW_YORK = ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")
JJ1017 = {
    "CodeValue": "6000000200000000",
    "CodingSchemeDesignator": "JJ1017-16M",
    "CodeMeaning": "胸部単純CT",
    "ProtocolContextSequence": [{"ValueType": "CODE"}],
}
STEP = {
    "ScheduledStationAETitle": ["CT1", "CT2"], "ScheduledProcedureStepStartDate": "20250706",
    "ScheduledProcedureStepStartTime": "083000", "Modality": "CT",
    "ScheduledPerformingPhysicianName": "ISHI^ICHIRO=医師^一郎=いし^いちろう", "ScheduledProcedureStepID": "SPS1",
    "ScheduledProcedureStepDescription": "胸部 単純", "ScheduledStationName": ["SCANNER1"],
    "ScheduledProcedureStepLocation": "ROOM1", "ScheduledProcedureStepStatus": "SCHEDULED",
    "ScheduledProtocolCodeSequence": [JJ1017, {"CodeValue": "X2", "CodingSchemeDesignator": "99LOCAL"}],
}  # fmt: skip
ITEM = {
    "PatientName": "YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "PatientID": "0000012345", "IssuerOfPatientID": "HOSP",
    "IssuerOfPatientIDQualifiersSequence": [{"UniversalEntityID": "1.2.392.1", "UniversalEntityIDType": "ISO"}],
    "PatientBirthDate": "19700101", "PatientSex": "M", "AccessionNumber": "ACC001",
    "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "RIS"}], "RequestedProcedureID": "RP1",
    "StudyInstanceUID": "1.2.392.5", "AdmissionID": "V1",
    "IssuerOfAdmissionIDSequence": [{"LocalNamespaceEntityID": "HOSP"}],
    "ReferringPhysicianName": "SMITH^JOHN", "RequestingPhysician": "MÜLLER^RENÉ", "CurrentPatientLocation": "WARD 3",
    "RequestedProcedurePriority": "ROUTINE", "RequestedProcedureDescription": "CHEST CT",
    "RequestedProcedureCodeSequence": [{"CodeValue": "CTCHEST", "CodingSchemeDesignator": "99LOCAL"}],
    "WorklistLabel": "MAIN",
}  # fmt: skip


def made(item: dict, step: dict | None = None) -> tree.Tree:
    return dataset.to_tree({**item, **({"ScheduledProcedureStepSequence": [step]} if step is not None else {})})


STORED = made(ITEM, STEP)


def query(step: dict | None = None, **asked) -> tree.Tree:
    """Keys as they come off the wire: also those without a value. A dict is the item of a sequence."""

    def read(values: dict) -> tree.Tree:
        found: tree.Tree = {}
        for keyword, value in values.items():
            tag = tag_for_keyword(keyword)
            vr = tree.vr_of(tag)
            found[tag] = (vr, [read(value)]) if isinstance(value, dict) else (vr, value)
        return found

    steps: dict = {} if step is None else {"ScheduledProcedureStepSequence": step}
    return read({**asked, **steps})


def finds(asked: tree.Tree, item: tree.Tree = STORED, *, fuzzy: bool = False) -> bool:
    """As the worklist does it: checked, reduced to what can fail, then item by item."""
    matching.check(asked)
    found = matching.matches(matching.selective(asked), item, fuzzy)
    assert found == matching.matches(asked, item, fuzzy), "what was left out of the query mattered"
    return found


CODE, EMPTY_CODE = {"CodeValue": "CTCHEST", "CodingSchemeDesignator": "99LOCAL"}, {"CodeValue": "", "CodeMeaning": ""}
# Attribute, a key that finds the item, one that does not.
TOP_KEYS = [
    ("PatientName", "YAMADA^TARO", "YAMADA"), ("PatientID", "0000012345", "12345"), ("IssuerOfPatientID", "HOSP", "H"),
    ("IssuerOfPatientIDQualifiersSequence", {"UniversalEntityID": "1.2.392.1"}, {"UniversalEntityID": "1.2.392"}),
    ("PatientBirthDate", "19700101", "19700102"), ("PatientSex", "M", "F"), ("AccessionNumber", "ACC001", "acc001"),
    ("IssuerOfAccessionNumberSequence", {"LocalNamespaceEntityID": "RIS"}, {"LocalNamespaceEntityID": "HIS"}),
    ("RequestedProcedureID", "RP1", "RP"), ("StudyInstanceUID", "1.2.392.5", "1.2.392"), ("AdmissionID", "V1", "V2"),
    ("IssuerOfAdmissionIDSequence", {"LocalNamespaceEntityID": "HOSP"}, {"LocalNamespaceEntityID": "RIS"}),
    ("ReferringPhysicianName", "smith^john", "smith"), ("RequestingPhysician", "MULLER^RENE", "MULLER^R"),
    ("CurrentPatientLocation", "WARD 3", "WARD3"), ("RequestedProcedurePriority", "ROUTINE", "STAT"),
    ("RequestedProcedureDescription", "CHEST*", "chest*"), ("RequestedProcedureCodeSequence", CODE, {"CodeValue": "X"}),
    ("WorklistLabel", "MAIN", "OTHER"),
]  # fmt: skip
STEP_KEYS = [
    ("ScheduledStationAETitle", "CT2", "CT"), ("ScheduledProcedureStepStartDate", "20250706", "20250707"),
    ("ScheduledProcedureStepStartTime", "0830", "0831"), ("Modality", "CT", "ct"),
    ("ScheduledPerformingPhysicianName", "=医師*", "=山田*"), ("ScheduledProcedureStepID", "SPS1", "SPS2"),
    ("ScheduledProcedureStepDescription", "胸部?単純", "胸部単純"), ("ScheduledStationName", "SCANNER?", "SCANNER"),
    ("ScheduledProcedureStepLocation", "ROOM1", "ROOM"), ("ScheduledProcedureStepStatus", "SCHEDULED", "ARRIVED"),
    ("ScheduledProtocolCodeSequence", {"CodeValue": "X2"}, {"CodeValue": "X2", "CodingSchemeDesignator": "JJ1017-16M"}),
]  # fmt: skip


def test_every_key_that_we_match_on_is_in_the_tables_below():
    named = [{tag_for_keyword(keyword) for keyword, *_ in table} for table in (TOP_KEYS, STEP_KEYS)]
    assert named == [matching.MATCHED, matching.STEP_MATCHED]


@pytest.mark.parametrize(("keyword", "right", "wrong"), TOP_KEYS)
def test_a_key_finds_what_has_its_value_and_nothing_else(keyword, right, wrong):
    assert finds(query(**{keyword: right}))
    assert not finds(query(**{keyword: wrong}))


@pytest.mark.parametrize(("keyword", "right", "wrong"), STEP_KEYS)
def test_a_key_of_the_step_finds_what_has_its_value_and_nothing_else(keyword, right, wrong):
    assert finds(query({keyword: right}))
    assert not finds(query({keyword: wrong}))


@pytest.mark.parametrize(("keyword", "right", "_"), TOP_KEYS + STEP_KEYS)
def test_an_unknown_stored_value_fails_every_key_but_the_universal_ones(keyword, right, _):
    """PS3.4 K.2.2.1.1.1"""
    in_step = (keyword, right, _) in STEP_KEYS
    empty = made({}, {"ScheduledProcedureStepEndDate": "20250706"})
    universal = ["", *(["*"] if tree.vr_of(tag_for_keyword(keyword)) in matching.WILDCARD_VRS else [])]
    if isinstance(right, dict):
        universal = [dict.fromkeys(right, ""), dict.fromkeys(right, "*"), {}]
    for key in [right, *universal]:
        asked = query({keyword: key}) if in_step else query(**{keyword: key})
        assert finds(asked, empty) == (key in universal), key
        assert key == right or finds(asked)


@pytest.mark.parametrize(
    "keys_",
    [
        {"SpecificCharacterSet": "ISO_IR 192"}, {"TimezoneOffsetFromUTC": "-0500"},
        {"HL7StructuredDocumentReferenceSequence": {"ReferencedSOPInstanceUID": "1.2"}},
        {"PertinentDocumentsSequence": {"ReferencedSOPInstanceUID": "1.2"}},
        {"step": {"ProtocolContextSequence": {"ValueType": "TEXT"}}},
        {"step": {"ScheduledProtocolCodeSequence": {"ProtocolContextSequence": {"ValueType": "TEXT"}}}},
        {"PatientWeight": "70"}, {"PregnancyStatus": b"\x04\x00"}, {"MedicalAlerts": "X"}, {"StudyDate": "19000101"},
    ],
)  # fmt: skip
def test_what_is_never_matched_and_what_is_returned_only_takes_nothing_away(keys_):
    """Table K.6-1; conformance.md 1.3, 4: known, so no FF01 either"""
    asked = query(**keys_)
    assert finds(asked)
    assert keys.check(asked)


@pytest.mark.parametrize(
    "keys_",
    [{"AdmittingDiagnosesDescription": ""}, {"step": {"PerformedStationAETitle": ""}}, {"PatientBirthTime": ""},
     {"RequestedProcedureCodeSequence": {"PatientName": ""}}],
)  # fmt: skip
def test_a_key_that_we_do_not_know_is_told_apart_and_takes_nothing_away(keys_):
    asked = query(**keys_)
    assert not keys.check(asked)
    assert finds(asked)


def test_group_lengths_are_no_keys():
    assert keys.check({0x00080000: ("UL", b"\0\0\0\0"), **query({"Modality": ""}), 0x00400000: ("UL", b"\0\0\0\0")})


def test_every_attribute_that_a_profile_can_fill_can_be_asked_for():
    """All but the one that stands for what we do not support (acceptance-tests.md, MWL-22)."""
    unknown = {
        target.name
        for target in TARGETS.values()
        if target.attribute
        and tag_for_keyword(target.name) not in (keys.STEP_RETURNED if target.level == "step" else keys.RETURNED)
    }
    assert unknown == {"AdmittingDiagnosesDescription"}


# dates and times


@pytest.mark.parametrize(
    ("date", "found"),
    [
        ("20250706", True), ("20250707", False), ("20250705-20250707", True), ("20250706-20250706", True),
        ("20250706-", True), ("-20250706", True), ("20250707-", False), ("-20250705", False),
        ("20250707-20250705", False), ("2025.07.06", True), ("20250705 - 20250706", True), ("2025.07.05-20250705", False),
        ("00010101-99991231", True),
    ],
)  # fmt: skip
def test_a_date_finds_its_day_and_a_range_all_of_its_days(date, found):
    assert finds(query({"ScheduledProcedureStepStartDate": date})) == found
    born = made({"PatientBirthDate": "20250706"}, {})
    assert finds(query(PatientBirthDate=date), born) == found


@pytest.mark.parametrize(
    ("time", "found"),
    [
        ("08", True), ("0830", True), ("083000", True), ("083000.000000", True), ("08:30", True), ("08:30:00", True),
        ("083001", False), ("09", False), ("0800-0900", True), ("-08", True), ("-0830", True), ("-083000", True),
        ("-0829", False), ("0831-", False), ("08-08", True), ("0700 - 0829", False), ("2200-0900", False),
        ("083000.1", False), ("00-23", True), ("-235960", True),
    ],
)  # fmt: skip
def test_a_time_means_the_whole_interval_that_its_precision_names(time, found):
    assert finds(query({"ScheduledProcedureStepStartTime": time})) == found


@pytest.mark.parametrize(
    ("bound", "last"), [("-18", "185959.999999"), ("-1800", "180059.999999"), ("-180000", "180000.999999")]
)
def test_an_upper_bound_reaches_to_the_end_of_what_it_names(bound, last):
    """conformance.md 1.4"""
    at = {"ScheduledProcedureStepStartTime": bound}
    after = f"{int(last[:6]) + (4041 if last[2:4] == '59' else 41 if last[4:6] == '59' else 1):06}"
    assert finds(query(at), made({}, {"ScheduledProcedureStepStartTime": last}))
    assert not finds(query(at), made({}, {"ScheduledProcedureStepStartTime": after}))


JULY = [(f"202507{day:02}", f"{hour:02}0000") for day in (5, 6, 7) for hour in (8, 12, 20)]


@pytest.mark.parametrize(
    ("date", "time", "found"),
    [
        ("20250705-20250707", "1000-1800", "12345678"[0:7]), ("20250706-", "1000-", "45678"),
        ("-20250706", "-1000", "0123"), ("20250706-", "-1000", "36"), ("20250706", "1000-1800", "4"),
        ("20250706", "1000-", "45"), ("20250705-20250706", "12", "14"), ("20250705-20250706", "1000-", "1245"),
        ("20250706-20250706", "1000-1800", "4"), ("20250705 - 20250706", "10:00 - 18:00", "1234"),
        ("20250705-20250706", "", "012345"), ("", "1000-1800", "147"), ("20250707-20250705", "1000-1800", ""),
        ("20250706-20250706", "1800-1000", ""),
    ],
)  # fmt: skip
def test_ranges_of_date_and_time_of_one_form_are_one_interval_and_others_count_each_for_itself(date, time, found):
    """PS3.4 K.6-1; conformance.md 1.4"""
    step = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time}
    items = [
        made({}, {"ScheduledProcedureStepStartDate": day, "ScheduledProcedureStepStartTime": at}) for day, at in JULY
    ]
    assert "".join(str(n) for n, item in enumerate(items) if finds(query(step), item)) == found


def test_a_backslash_is_a_character_where_there_is_one_value_only():
    item = made({"IssuerOfPatientIDQualifiersSequence": [{"UniversalEntityID": "a\\b"}]}, {})
    for key, found in (("a\\b", True), ("a", False), ("b", False)):
        assert finds(query(IssuerOfPatientIDQualifiersSequence={"UniversalEntityID": key}), item) == found


def test_a_stored_time_that_is_none_is_found_by_no_time():
    item = made({}, {"ScheduledProcedureStepStartDate": "20250706", "ScheduledProcedureStepStartTime": "noon"})
    assert not finds(query({"ScheduledProcedureStepStartTime": "00-23"}), item)
    assert not finds(
        query({"ScheduledProcedureStepStartDate": "20250706-", "ScheduledProcedureStepStartTime": "00-"}), item
    )


def test_dates_that_are_written_otherwise_are_understood_and_named():
    asked = query({"ScheduledProcedureStepStartDate": "2025.07.06", "ScheduledProcedureStepStartTime": "0830"})
    assert matching.lenient(asked) == [START_DATE]
    assert matching.lenient(query({"ScheduledProcedureStepStartTime": "08:30"}, PatientBirthDate="19700101 - ")) == [
        0x00100030, START_TIME,
    ]  # fmt: skip
    assert matching.lenient(query({"ScheduledProcedureStepStartTime": " 083000.5 "}, PatientName="A. B")) == []


BAD = [
    *(("ScheduledProcedureStepStartDate", key) for key in (
        "tomorrow", "-", " - ", "2035070", "20350705--20350706", "20350705-20350706-", "20350231", "2035-07-05",
        "20350705-*", "*", "２０３５０７０５", "2035.0705", "20350705\\20350706", "00000000-99999999",
    )),
    *(("ScheduledProcedureStepStartTime", key) for key in (
        "24", "25", "000061", "-", "1200-25", "noon", "1260", "0", "123", "10.5", "10:3000", "1000-1100-1200", "*", "1000\\1100",
        "1000-1100+0900",
    )),
    *(("PatientBirthDate", key) for key in ("1970", "*", "1970????")),
    *((keyword, "A\\B") for keyword in (
        "PatientName", "PatientID", "AccessionNumber", "PatientSex", "RequestedProcedurePriority", "Modality",
        "ScheduledStationAETitle", "ScheduledPerformingPhysicianName", "ScheduledProcedureStepStatus",
    )),
    ("PatientID", "*\\"), ("PatientID", "1" * 5_000), ("StudyInstanceUID", "1." * 5_000),
    ("RequestedProcedureCodeSequence", {"CodeValue": "A\\B"}),
    ("ScheduledProtocolCodeSequence", {"CodeValue": "A\\B"}),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "key"), BAD)
def test_a_malformed_key_is_refused_by_its_name(keyword, key):
    in_step = tag_for_keyword(keyword) in matching.STEP_MATCHED
    asked = query({keyword: key}) if in_step else query(**{keyword: key})
    with pytest.raises(InvalidValue) as refused:
        keys.check(asked)
    inner = next(iter(key)) if isinstance(key, dict) else keyword
    assert refused.value.tags == (tag_for_keyword(inner),)
    assert "".join(key.values() if isinstance(key, dict) else key)[:10] not in str(refused.value) or key in (
        "-",
        "*",
        "0",
        "25",
    )


@pytest.mark.parametrize(
    "asked",
    [
        {STEP_SEQUENCE: ("UN", b"\xfe\xff\x00\xe0\x00\x00\x00\x00")}, {STEP_SEQUENCE: ("LO", "CT")},
        {STEP_SEQUENCE: ("SQ", [{}, {}])}, {0x00100020: ("UN", b"123")}, {0x00100020: ("SQ", [{}])},
        {0x00321064: ("SQ", [{0x00080100: ("SH", "A")}, {}])}, {0x00321064: ("LO", "A")},
        {STEP_SEQUENCE: ("SQ", [{START_TIME: ("SQ", [{START_TIME: ("TM", "08"), TIMEZONE: ("SH", "+0000")}])}])},
        {0x00080052: ("CS", "STUDY")},
    ],
)  # fmt: skip
def test_a_key_of_another_kind_than_its_attribute_is_refused_and_not_overlooked(asked):
    with pytest.raises(InvalidValue) as refused:
        keys.check(asked)
    assert len(refused.value.tags) == 1


def test_zero_length_is_universal_in_whatever_representation_it_comes():
    """A device that does not know a sequence sends it as unknown."""
    for asked in ({0x00100020: ("UN", b"")}, {0x00100020: ("UN", b"  ")}, {STEP_SEQUENCE: ("UN", b"")}, {STEP_SEQUENCE: ("SQ", [])},
                  {STEP_SEQUENCE: ("SQ", [{}])}, {0x00321064: ("SQ", [{}, {}])}):  # fmt: skip
        keys.check(asked)
        assert finds(asked)
        assert matching.selective(asked) == {}


CONTROLS = [*(chr(n) for n in range(0x20) if chr(n) not in "\t\n\f\r\x1b"), "\x7f", "\x80", "\x9f"]
ENTITY = "IssuerOfPatientIDQualifiersSequence"


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "Modality", ENTITY])
def test_a_control_character_in_a_key_is_refused_by_the_name_of_the_key(keyword):
    """No database takes a NUL; and of the others none is in any value (PS3.5 6.2)."""
    in_step = tag_for_keyword(keyword) in matching.STEP_MATCHED
    for char in CONTROLS:
        said = f"A{char}B"
        key = {"UniversalEntityID": said} if keyword == ENTITY else said
        with pytest.raises(InvalidValue) as refused:
            keys.check(query({keyword: key}) if in_step else query(**{keyword: key}))
        assert refused.value.tags == (tag_for_keyword("UniversalEntityID" if keyword == ENTITY else keyword),), char


@pytest.mark.parametrize("char", "\t\n\f\r")
def test_lines_and_tabs_are_in_texts_of_many_lines_alone(char):
    keys.check(query(**{ENTITY: {"UniversalEntityID": f"A{char}B"}}))
    with pytest.raises(InvalidValue):
        keys.check(query(PatientID=f"A{char}B"))


def test_an_escape_in_a_key_and_what_pads_a_uid_are_no_fault():
    for key in ("A\x1bB", "*\x1b"):
        keys.check(query(PatientID=key, PatientName=key))
    assert finds(query(StudyInstanceUID="1.2.3\0\\1.2.392.5\0"))


def test_what_is_not_matched_on_may_hold_anything():
    assert finds(
        query(MedicalAlerts="A\0B", ScheduledProcedureStepSequence={"CommentsOnTheScheduledProcedureStep": "\1"})
    )


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber", "ScheduledStationAETitle"])
def test_a_key_has_256_characters_at_most(keyword):
    in_step = tag_for_keyword(keyword) in matching.STEP_MATCHED
    for length in (256, 257):
        key = "A" * length
        asked = query({keyword: key}) if in_step else query(**{keyword: key})
        if length == 256:
            assert not finds(asked)
        else:
            with pytest.raises(InvalidValue) as refused:
                keys.check(asked)
            assert refused.value.tags == (tag_for_keyword(keyword),)


def test_a_name_is_as_long_as_what_it_is_compared_by():
    """`ﷺ` is one character and stands for eighteen."""
    keys.check(query(PatientName="ﷺ" * (256 // 18)))
    for name in ("ﷺ" * (256 // 18 + 1), "ﷺ" * 4_000):
        with pytest.raises(InvalidValue) as refused:
            keys.check(query(PatientName=name))
        assert refused.value.tags == (0x00100010,)
    keys.check(query(PatientID="ﷺ" * 256))


def test_many_uids_and_a_long_text_may_be_asked_for():
    uids = "\\".join(f"1.2.392.{n}" for n in range(300))
    assert finds(query(StudyInstanceUID=uids))
    keys.check(query(**{ENTITY: {"UniversalEntityID": "A" * 4096}}))
    with pytest.raises(InvalidValue):
        keys.check(query(**{ENTITY: {"UniversalEntityID": "A" * 4097}}))


# text


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("AB C?D*", True), ("  AB C?D*  ", True), ("AB*", True), ("*D?", True), ("**", True), ("*", True),
        ("  ", True), ("???????", True), ("??????", False), ("*?*", True), ("ab*", False), ('""', False),
        ("AB  C?D*", False), ("ＡＢ*", False), ("*" * 200 + "Z", False),
    ],
)  # fmt: skip
def test_a_text_is_compared_exactly_and_wildcards_stand_for_characters(key, found):
    """No escape: a `*` in the record is found by a `*`"""
    item = made({"CurrentPatientLocation": "AB C?D*"}, {})
    assert finds(query(CurrentPatientLocation=key), item) == found


def test_several_stars_are_no_universal_key():
    """PS3.4 K.2.2.1.1.1: a single wildcard alone finds what is not known"""
    assert not finds(query(CurrentPatientLocation="**"), made({}, {}))


@pytest.mark.parametrize(
    ("key", "found"),
    [("1.2.3", True), ("1.2.9\\1.2.3", True), ("1.2.3 \\", True), ("1.2.*", False), ("*", False), ("1.2", False),
     ("1.2.9\\1.2.8", False), ("\\", False), ("one", False)],
)  # fmt: skip
def test_of_several_uids_any_is_enough_and_there_are_no_wildcards(key, found):
    assert finds(query(StudyInstanceUID=key), made({"StudyInstanceUID": "1.2.3"}, {})) == found


def test_any_of_several_stored_values_is_enough():
    """MWL-32"""
    for key, found in (("CT1", True), ("CT2", True), ("CT?", True), ("CT3", False), ("CT1\\CT2", None)):
        if found is None:
            with pytest.raises(InvalidValue):
                finds(query({"ScheduledStationAETitle": key}))
        else:
            assert finds(query({"ScheduledStationAETitle": key})) == found


def test_a_question_mark_stands_for_one_character_however_many_bytes_it_has():
    assert finds(query({"ScheduledProcedureStepDescription": "胸?*"}))
    assert finds(query(PatientName="=?田^太?"))
    assert not finds(query(PatientName="=??田^太郎"))


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ({"CodeValue": "6000000200000000", "CodingSchemeDesignator": "JJ1017-16M"}, True),
        ({"CodeValue": "X2", "CodingSchemeDesignator": "99LOCAL"}, True),
        ({"CodeValue": "X2", "CodingSchemeDesignator": "JJ1017-16M"}, False),  # each is there, but not in one item
        ({"CodeValue": "60000002*"}, True), ({"CodeMeaning": "胸部*"}, True), ({"CodeMeaning": "*", "CodeValue": ""}, True),
        ({"CodeValue": "X2", "CodeMeaning": "*"}, True), ({"CodeValue": "X2", "MappingResource": "DCMR"}, True), ({"CodeValue": "X2", "CodeMeaning": "?*"}, False),
    ],
)  # fmt: skip
def test_one_item_of_a_sequence_has_to_have_all_that_is_asked(key, found):
    assert finds(query({"ScheduledProtocolCodeSequence": key})) == found


# names


@pytest.mark.parametrize(
    ("key", "found"),
    [
        # single group, case, trailing delimiters
        ("YAMADA^TARO", True), ("yamada^taro", True), ("Yamada^Taro^^^", True), ("YAMADA^TARO==", True), ("山田^太郎==", True), ("yamada^taro^=山田*", True),
        ("YAMADA", False), ("YAMADA^", False), ("TARO^YAMADA", False), ("YAMADA TARO", False), ("YAMADA^TAR", False),
        ("  YAMADA^TARO  ", True), ("YAMADA*", True), ("*TARO", True), ("YAMAD?^TARO", True), ("YAMAD?TARO", False),
        # each group and the whole
        ("山田^太郎", True), ("山田*", True), ("ヤマダ^タロウ", True), ("*郎=*", False), ("YAMADA^TARO=山田^太郎", True),
        ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", True), ("Y*ウ", True), ("山田^太郎=ヤマダ^タロウ", False),
        ("YAMADA^TARO=山田^花子", False), ("SATO^TARO=山田^太郎", False),
        # group by group
        ("=山田*", True), ("==やまだ*", True), ("==ヤマダ^タロウ", True), ("=*", True), ("=山田^太郎=", True), ("==ヤマダ", False),
        ("=ヤマダ*", False), ("YAMADA^TARO==サトウ*", False), ("===X", False), ("===*", True),
        # width and kana
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", True), ("==ﾔﾏﾀﾞ*", True), ("ﾔﾏﾀ^ﾀﾛｳ", False), ("ＹＡＭＡＤＡ^ＴＡＲＯ", True), ("やまだ^たろう", True),
        ("ヤマダ^タロー", False), ("ヤマダ^タロゥ", False), ("ヤマタ^タロウ", False),
        # what only looks like a sign is none
        ("ＹＡＭＡＤＡ＾ＴＡＲＯ", False), ("＝山田*", False), ("＊", False), ("山田＊", False), ("YAMAD？^TARO", False),
        ("＝＝＊", False), ("YAMADA^TARO＼X", False), ("⁇*", False), ("≠*", False),
        # nothing at all
        ("", True), ("^^^^", True), ("==", True), ("^=^=^", True), ("*", True), ("**", True), ('""', False),
    ],
)  # fmt: skip
def test_a_name_is_found_by_the_rule_for_persons(key, found):
    """conformance.md 1.5; MWL-12, MWL-14"""
    assert finds(query(PatientName=key)) == found


@pytest.mark.parametrize(
    ("name", "key", "found"),
    [
        ("MÜLLER^RENÉ", "muller^rene", True), ("MULLER^RENE", "Müller^René", True), ("STRAẞE^A", "strasse^a", True),
        ("MUELLER^R", "MÜLLER^R", False), ("김^희중", "김^희*", True), ("=ハシモト^ガク", "=ハシモト^カク", False),
        ("==おおの^ゆう", "==オオノ^ユウ", True), ("==オーノ^ユー", "==オオノ^ユウ", False), ("==キャノン", "==キヤノン", False),
        ("==いすゞ^ミヽ", "==イスヾ^みゝ", True), ("=ジョン＝スミス^Ａ", "=ジョン＝スミス^A", True),
        ("=ジョン＝スミス^A", "=ジョン=スミス^A", False), ("=髙橋^一郎", "=高橋^一郎", True), ("=高橋^一郎", "=髙橋*", True), ("=渡邊^A", "=渡辺^A", False), ("A^B", "=**", False), ("A^B", "=*", True), ("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "ヤマダ*", True),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "やまだ^たろう=山田*", True),
    ],
)  # fmt: skip
def test_accents_width_and_kana_do_not_count_but_long_vowels_and_small_kana_do(name, key, found):
    assert finds(query(PatientName=key), made({"PatientName": name}, {})) == found


def test_no_character_folds_into_a_delimiter_or_a_wildcard():
    for char in map(chr, range(0x80, sys.maxunicode + 1)):
        if set(unicodedata.normalize("NFKD", char)) & set("=^*?\\"):
            assert texts.fold(char) == char
    assert texts.fold("=\u0338*\u0301") == "=*"


def test_folding_twice_is_folding_once():
    for text in ("ﾔﾏﾀﾞ^ﾀﾛｳ", "Straẞe", "がぎぐ\u3099", "İstanbul", "㍿", "ﬁ", "Ⅷ"):
        assert texts.fold(texts.fold(text)) == texts.fold(text)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("YAMADA^TARO", True), ("TARO^YAMADA", True), ("yama", True), ("tar", True), ("^TARO", True), ("^YAMADA", True),
        ("TA^YA", True), ("YA^TA", True), ("山", True), ("=太^山", True), ("==たろ^やま", True), ("AMADA", False),
        ("YAMADA^HANAKO", False), ("TARO^SATO", False), ("YAMADA^TARO^X", False), ("=SATO", False), ("YAMADA TARO", False),
        ("YA?A^*RO", True), ("YAMADA*RO", True), ("SATO=山", False), ("＊", False),
    ],
)  # fmt: skip
def test_a_fuzzy_name_is_the_beginning_of_family_and_given_name_in_either_order(key, found):
    """PS3.4 K.5.1, byte 3; conformance.md 1.5"""
    assert finds(query(PatientName=key), fuzzy=True) == found


def test_fuzzy_matching_finds_all_that_literal_matching_finds_and_is_for_names_alone():
    for key in ("YAMADA^TARO", "*TARO", "Y*ウ", "YAMADA^TARO=山田^太郎", "=山田*", "YAMAD?^TARO"):
        assert finds(query(PatientName=key), fuzzy=True)
    assert not finds(query(PatientID="00000"), fuzzy=True)
    assert not finds(query({"ScheduledProcedureStepID": "SPS"}), fuzzy=True)
    assert finds(query({"ScheduledPerformingPhysicianName": "ICHI^I"}), fuzzy=True)
    assert finds(query(PatientName="YAMADA^TARO^^DR"), made({"PatientName": "TARO^YAMADA^X^DR"}, {}), fuzzy=True)


# time zones


def at(date: str, time: str) -> tree.Tree:
    return made({}, {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time})


def finds_from(offset: str, date: str, time: str, item: tree.Tree, site: ZoneInfo = TOKYO) -> bool:
    step = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time}
    asked = query(step, TimezoneOffsetFromUTC=offset)
    keys.check(asked)
    zone = matching.zone_of(asked)
    assert zone is not None
    return finds_here(matching.in_zone(asked, zone, site), item)


def finds_here(asked: tree.Tree, item: tree.Tree) -> bool:
    """Of what `in_zone` made: its date has to say enough to the database, too."""
    found = matching.matches(matching.selective(asked), item)
    step = keys.step_keys(asked)
    if found and keys.plain(step, START_DATE):
        low, high = matching.date_range(keys.plain(step, START_DATE))
        assert low <= keys.plain(keys.step_keys(item), START_DATE) <= high
    return found


@pytest.mark.parametrize(
    ("date", "time", "found"),
    [
        # one day there: from 09:00 here to 09:00 on the next day
        ("20250705", "", True), ("20250706", "", False), ("20250705-20250705", "", True), ("20250704-20250705", "", True),
        ("20250706-", "", False), ("20250705-", "", True), ("-20250705", "", True), ("-20250704", "", False),
        # with a time: MWL-36
        ("20250705", "2330", True), ("20250705", "23", True), ("20250705", "2329", False), ("20250706", "2330", False),
        ("20250705", "2300-2329", False), ("20250705", "2300-", True), ("20250705", "-2330", True),
        ("20250705", "2330-0030", False), ("20250704-20250705", "2331-2330", True), ("20250705-20250706", "2331-0100", False),
        ("20250705-", "2330-", True), ("20250705-", "2331-", False), ("-20250705", "-2330", True), ("-20250705", "-2329", False),
        # no interval: a time of day there, on the days there
        ("", "2330", True), ("", "0830", False), ("", "2300-", True), ("", "2300-0100", False), ("", "-2329", False),
        ("20250704-20250706", "2330", True), ("20250706-20250707", "2330", False), ("20250705-", "-2330", True),
        ("20250706-", "-2330", False), ("-20250705", "2330-", True), ("20250704-20250706", "0830", False),
    ],
)  # fmt: skip
def test_half_past_eight_in_tokyo_is_half_past_eleven_of_the_day_before_in_utc(date, time, found):
    """conformance.md 1.7"""
    assert finds_from("+0000", date, time, at("20250706", "083000")) == found


def test_in_the_sites_own_offset_a_query_means_what_it_meant():
    items = [at(day, time) for day, time in JULY]
    for date in ("", "20250706", "20250705-20250706", "20250706-", "-20250706"):
        for time in ("", "12", "1200", "1000-1800", "1200-", "-1200"):
            step = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time}
            for item in items:
                assert finds_from("+0900", date, time, item) == finds(query(step), item), (date, time)


@pytest.mark.parametrize(("date", "found"), [("20250110", "083000"), ("20250710", "093000")])
def test_summer_time_is_that_of_the_site_on_the_day_of_the_exam(date, found):
    """13:30 UTC in New York"""
    for time in ("073000", "083000", "093000", "103000"):
        assert finds_from("+0000", date, "1330", at(date, time), NEW_YORK) == (time == found)
        assert finds_from("+0000", "", "1330", at(date, time), NEW_YORK) == (time == found)
        assert finds_from("+0000", "20250101-20251231", "1330", at(date, time), NEW_YORK) == (time == found)


def test_the_first_and_the_last_day_of_the_calendar_can_be_asked_for_from_everywhere():
    for offset in ("+1400", "-1200"):
        assert finds_from(offset, "00010101-99991231", "", at("20250706", "083000"))
        for time in ("2359", "235960"):
            assert not finds_from(offset, "99991231", time, at("20250706", "083000"))


def test_other_keys_are_not_touched_by_a_zone():
    """A birth date is a day in the calendar and no moment."""
    asked = query({"Modality": "CT"}, PatientBirthDate="19700101", TimezoneOffsetFromUTC="-1000")
    assert matching.in_zone(asked, dt.timezone(dt.timedelta(hours=-10)), TOKYO) == asked
    for time, first, last in (("", "20250705-20250706", "090000.000000-085959.999999"),
                              ("2330", "20250706-20250706", "083000.000000-083059.999999")):  # fmt: skip
        there = {
            "Modality": "MR",
            "ScheduledProcedureStepStartDate": "20250705",
            "ScheduledProcedureStepStartTime": time,
        }
        here = {"Modality": "MR", "ScheduledProcedureStepStartDate": first, "ScheduledProcedureStepStartTime": last}
        assert matching.in_zone(query(there, PatientID="1"), dt.UTC, TOKYO) == query(here, PatientID="1")


@pytest.mark.parametrize(
    "offset", ["+09", "0900", "+9", "JST", "+0960", "+1500", "-1300", "-0000", "*", "+0900\\+0000"]
)
def test_an_offset_that_is_none_is_refused(offset):
    with pytest.raises(InvalidValue) as refused:
        keys.check(query(TimezoneOffsetFromUTC=offset))
    assert refused.value.tags == (TIMEZONE,)


@pytest.mark.parametrize(("offset", "minutes"), [("+0900", 540), ("-0330", -210), ("+0000", 0), ("+1400", 840)])
def test_an_offset_is_that_zone(offset, minutes):
    zone = matching.zone_of(query(TimezoneOffsetFromUTC=offset))
    assert zone is not None
    assert zone.utcoffset(None) == dt.timedelta(minutes=minutes)


def test_an_empty_offset_asks_for_the_attribute_and_says_no_zone():
    assert matching.zone_of(query(TimezoneOffsetFromUTC="")) is None
    assert matching.zone_of({}) is None


# a bad or unknown value never widens

SIGNS = st.text("AB*?^=-\\ .:0129山ヤやﾔ＝＊́", max_size=6)
TIMES = st.sampled_from(["", "08", "0830", "0800-0900", "0900-", "-0830", "2200-0100", "noon", "083000.5", "-"])
DATES = st.sampled_from(
    ["", "20250706", "20250705-20250707", "20250706-", "-20250706", "20250707-20250705", "2025", "-"]
)
VALUES = {"DA": DATES, "TM": TIMES, "SQ": st.builds(lambda value, scheme: {"CodeValue": value, "CodingSchemeDesignator": scheme, "LocalNamespaceEntityID": value}, SIGNS, SIGNS)}  # fmt: skip


def of(keyword: str) -> st.SearchStrategy:
    """A key: near the stored value, or anything."""
    right = next(right for name, right, _ in TOP_KEYS + STEP_KEYS if name == keyword)
    vr = tree.vr_of(tag_for_keyword(keyword))
    near = [right] if isinstance(right, dict) else [right, f"{right[:2]}*", f"{right[:-1]}?", "*", ""]
    return st.one_of(st.sampled_from(near), VALUES.get(vr, SIGNS))


ANY_KEY = st.sampled_from([keyword for keyword, *_ in TOP_KEYS + STEP_KEYS]).flatmap(
    lambda keyword: st.tuples(st.just(keyword), of(keyword))
)
ITEMS = [
    STORED, made({**ITEM, "PatientName": "A^B==ヤ", "PatientID": "A"}, {**STEP, "ScheduledProcedureStepStartDate": "20250707"}),
    made({"PatientID": "B"}, {**STEP, "ScheduledProcedureStepStartTime": "223000"}), made({}, {"Modality": "B"}),
]  # fmt: skip


def answer(chosen: dict, fuzzy: bool, offset: str) -> set[int]:
    """Which items; none where the query is refused."""
    in_step = {keyword for keyword, *_ in STEP_KEYS}
    step = {keyword: key for keyword, key in chosen.items() if keyword in in_step}
    asked = query(step, **{keyword: key for keyword, key in chosen.items() if keyword not in in_step})
    try:
        matching.check(asked)
    except InvalidValue:
        return set()
    if offset and (zone := matching.zone_of(query(TimezoneOffsetFromUTC=offset))):
        asked = matching.in_zone(asked, zone, TOKYO)
    asked = matching.selective(asked)
    return {n for n, item in enumerate(ITEMS) if matching.matches(asked, item, fuzzy)}


def is_one_interval(chosen: dict, keyword: str) -> bool:
    """Dates beside a range of times make one interval of both: the night between two days is found, which no time of
    day was (PS3.4 K.6-1). That is the one key that adds something."""
    time = chosen.get("ScheduledProcedureStepStartTime", "")
    return keyword == "ScheduledProcedureStepStartDate" and "-" in time


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    st.lists(ANY_KEY, max_size=3).map(dict), ANY_KEY, st.booleans(), st.sampled_from(["", "+0000", "-0500", "+0900"])
)
def test_a_key_more_never_finds_more(chosen, more, fuzzy, offset):
    keyword, key = more
    if keyword in chosen or is_one_interval(chosen, keyword):
        return
    assert answer({**chosen, keyword: key}, fuzzy, offset) <= answer(chosen, fuzzy, offset)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(sorted(matching.MATCHED | {STEP_SEQUENCE, TIMEZONE, 0x00080005})),
        st.binary(max_size=24),
        max_size=4,
    )
)
def test_bytes_off_the_wire_are_refused_or_find_no_more_than_no_key_at_all(elements):
    raw = b"".join(
        tag.to_bytes(4, "little")[2:] + tag.to_bytes(4, "little")[:2] + len(value).to_bytes(4, "little") + value
        for tag, value in sorted(elements.items())
    )
    try:
        asked = tree.read(raw, tree.IMPLICIT_LE, Limits(), any_charset=True)
        keys.check(asked)
    except Exception as error:
        assert type(error).__module__ == "broker.errors"
        return
    for item in ITEMS:
        assert matching.matches(asked, item) == matching.matches(matching.selective(asked), item)
