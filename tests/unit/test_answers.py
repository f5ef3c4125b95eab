"""How an item looks to one device: its sets one after the other, its lengths, its quirks (conformance.md 1.3, 1.6)."""

import pytest

from broker.config import Settings
from broker.dicom import tree
from broker.dicom.habits import Habits
from broker.dicom.service import NodeInfo
from broker.mwl import answers, as_shown
from broker.mwl.answers import Answer, Look
from broker.mwl.dataset import encode_item, to_tree

NAME = "YAMADA^TARO=山田^太郎=やまだ^たろう"
IR87, IR87_159, IR13 = r"\ISO 2022 IR 87", r"\ISO 2022 IR 87\ISO 2022 IR 159", r"ISO 2022 IR 13\ISO 2022 IR 87"
PN, ID, TEXT, CODES, STEP, PRE_MEDICATION = 0x00100010, 0x00100020, 0x00321060, 0x00321064, 0x00400100, 0x00400012
ACCESSION, DESCRIPTION, STATIONS, PROTOCOL, CONTEXT = 0x00080050, 0x00400007, 0x00400001, 0x00400008, 0x00400440
STEP_KEYS = ((0x00080060, ()), (STATIONS, ()), (DESCRIPTION, ()), (0x00400009, ()), (PRE_MEDICATION, ()))
WANTED = tuple(
    sorted(
        [(tag, ()) for tag in (ACCESSION, PN, ID, TEXT, 0x00401001, 0x00080090)] + [(CODES, None), (STEP, STEP_KEYS)]
    )
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("answers"))


def device(character_set: str = "", **habits) -> NodeInfo:
    said = Habits(**habits)
    return NodeInfo(1, "CT1", "", False, "CT1", frozenset(), character_set, None, habits=said)


def stored(**keys) -> bytes:
    """An item; keywords over those that every one has, those of the step included."""
    step = {
        "ScheduledStationAETitle": "ROOM1", "ScheduledProcedureStepStartDate": "20350705", "Modality": "CT",
        "ScheduledProcedureStepStartTime": "0900", "ScheduledProcedureStepID": "S1",
        "ScheduledProtocolCodeSequence": [
            {"CodeValue": "P1", "CodeMeaning": "plain", "ProtocolContextSequence": [{"ValueType": "TEXT"}]}
        ],
    }  # fmt: skip
    item = {"PatientName": NAME, "PatientID": "0000012345", "RequestedProcedureID": "RP1", "AccessionNumber": "ACC001"}
    for keyword, value in keys.items():
        (step if keyword in step or keyword.startswith("Scheduled") else item)[keyword] = value
    return encode_item({**to_tree(item), STEP: ("SQ", [to_tree(step)])})


def made(look: Look, stations=None, wanted=WANTED, **keys) -> Answer:
    return answers.answer(stored(**keys), "SCHEDULED", wanted, tree.EXPLICIT_LE, look, None, stations)


def read(answer: Answer) -> tree.Tree:
    assert answer.withheld == ""
    return tree.read(answer.dataset, tree.EXPLICIT_LE, answers.LIMITS)


def step_of(item: tree.Tree) -> tree.Tree:
    return item[STEP][1][0]


@pytest.mark.parametrize(
    ("character_set", "also", "tried"),
    [
        ("", (), (IR87,)),
        ("ISO_IR 100", (), ("ISO_IR 100",)),
        (IR87, ("ISO 2022 IR 159",), (IR87, IR87_159)),
        (IR87, ("ISO_IR 192", "ISO 2022 IR 159"), (IR87, IR87_159, "ISO_IR 192")),  # what may be added comes first
        (IR87_159, ("ISO 2022 IR 159",), (IR87_159,)),
        ("ISO_IR 100", ("ISO 2022 IR 159",), ("ISO_IR 100", r"ISO 2022 IR 100\ISO 2022 IR 159")),
        ("ISO_IR 6", ("ISO 2022 IR 87",), ("ISO_IR 6", IR87)),
        ("ISO_IR 192", ("ISO 2022 IR 159", "ISO_IR 192"), ("ISO_IR 192",)),  # takes no code extensions
        ("GB18030", ("ISO 2022 IR 58", "ISO_IR 192"), ("GB18030", "ISO_IR 192")),
        ("ASCII", ("ISO 2022 IR 87", "ISO_IR 192"), ("ASCII", "ISO_IR 192")),
    ],
)
def test_a_device_is_answered_in_its_set_then_with_what_may_be_added_then_in_what_may_stand_in(
    settings, character_set, also, tried
):
    """conformance.md 1.6"""
    assert answers.look_of(device(character_set, character_sets_also=also), settings, {}).character_sets == tried


@pytest.mark.parametrize(
    ("declared", "answered"),
    [(None, IR87), ("", IR87), (IR13, IR13), ("ISO_IR 192", "ISO_IR 192"), ("GBK", "GBK"), ("FOO", "ISO_IR 192")],
)
def test_on_request_the_set_of_the_query_is_taken_and_the_sites_where_it_names_none(settings, declared, answered):
    query = {} if declared is None else {tree.CHARSET: ("CS", declared)}
    assert answers.look_of(device("REQUEST"), settings, query).character_sets == (answered,)


def test_a_site_that_answers_as_it_is_asked_answers_who_names_no_set_in_utf_8(settings, monkeypatch):
    monkeypatch.setattr(settings.dicom, "character_set", "REQUEST")
    assert answers.look_of(None, settings, {}).character_sets == ("ISO_IR 192",)


def test_the_set_of_a_profile_counts_where_the_node_has_none(settings):
    assert answers.look_of(device(character_set=""), settings, {}).character_sets == (IR87,)
    habits = Habits(character_set="ASCII")
    node = NodeInfo(1, "CT1", "", False, "CT1", frozenset(), "", None, habits=habits)
    assert answers.look_of(node, settings, {}).character_sets == ("ASCII",)


@pytest.mark.parametrize(
    ("sets", "name", "declared", "shown", "lost"),
    [
        ((IR87, IR87_159, "ISO_IR 192"), "A=山田", IR87, "A=山田", set()),
        ((IR87, IR87_159, "ISO_IR 192"), "A=草彅", IR87_159, "A=草彅", set()),
        ((IR87, IR87_159, "ISO_IR 192"), "A=髙橋", "ISO_IR 192", "A=髙橋", set()),
        ((IR87, IR87_159), "A=髙彅", IR87_159, "A=高彅", {"variant"}),
        ((IR87, IR87_159), "A=髙橋", IR87, "A=高橋", {"variant"}),  # no more than it needs
        ((IR87,), "A=髙彅=B", IR87, "A==B", {"group"}),
        (("ASCII", "ISO_IR 192"), "A=山田", "ASCII", "A", set()),
        (("ASCII", "ISO_IR 192"), "=山田", "ISO_IR 192", "=山田", set()),
        (("ISO_IR 100",), "Müller=山田", "ISO_IR 100", "Müller", {"group"}),
    ],
)
def test_the_first_set_that_has_the_characters_is_declared_and_what_none_has_is_flagged(
    sets, name, declared, shown, lost
):
    answer = made(Look(sets), PatientName=name)
    assert answer.character_set == declared
    assert answer.lost == lost
    item = read(answer)
    assert item.get(tree.CHARSET, ("CS", "ASCII"))[1] == declared
    assert item[PN][1] == shown


@pytest.mark.parametrize(
    ("sets", "lengths", "keys", "why"),
    [
        ((IR87,), (), {"PatientName": "=草彅"}, "no group of Patient's Name fits into its character set"),
        (("ASCII",), (), {"PatientName": "=山田"}, "romaji missing"),
        ((IR87,), (), {"PatientID": "彅1"}, "an identifier does not fit into its character set"),
        ((IR87,), (), {"ScheduledProcedureStepID": "彅1"}, "an identifier does not fit into its character set"),
        ((IR87,), ((ID, 9),), {}, "an identifier is longer than it takes"),
        ((IR87,), ((0x00401001, 2),), {}, "an identifier is longer than it takes"),
    ],
)
def test_an_item_that_would_lose_a_value_of_type_1_is_withheld_with_the_reason(sets, lengths, keys, why):
    answer = made(Look(sets, lengths), **keys)
    assert (answer.withheld, answer.dataset) == (why, b"")


@pytest.mark.parametrize(
    ("tag", "limit", "keys", "shown", "lost"),
    [
        (TEXT, 4, {"RequestedProcedureDescription": "胸部単純CT"}, "胸部単純", {"length"}),
        (TEXT, 6, {"RequestedProcedureDescription": "胸部単純CT"}, "胸部単純CT", set()),
        (TEXT, 3, {"RequestedProcedureDescription": "CT 胸部"}, "CT", {"length"}),
        (TEXT, 4, {"RequestedProcedureDescription": "㍻CT"}, "平成CT", {"variant"}),
        (TEXT, 3, {"RequestedProcedureDescription": "㍻CT"}, "平成C", {"variant", "length"}),  # it grew
        (TEXT, 2, {"RequestedProcedureDescription": "胸部彅"}, "胸部", {"length"}),  # nothing else is lost
        (PN, 6, {"PatientName": "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"}, "YAMADA=山田^太郎=ヤマダ^タロ", {"length"}),
        (PN, 11, {}, NAME, set()),
        (ACCESSION, 5, {}, "", {"identifier"}),
    ],
)
def test_what_is_longer_than_a_device_takes_is_cut_at_characters_and_an_identifier_never(tag, limit, keys, shown, lost):
    answer = made(Look((IR87,), ((tag, limit),)), **keys)
    assert read(answer)[tag][1] == shown
    assert answer.lost == lost


def test_nothing_is_cut_from_its_accent():
    answer = made(Look(("ISO_IR 192",), ((TEXT, 2),)), RequestedProcedureDescription="ae\u0301a")
    assert read(answer)[TEXT][1] == "a"


def test_a_length_is_told_by_keyword_and_one_that_nobody_knows_counts_for_nothing(settings):
    habits = {"lengths": (("RequestedProcedureDescription", 4), ("NoSuchThing", 1))}
    assert answers.look_of(device(**habits), settings, {}).lengths == ((TEXT, 4),)


def test_a_device_of_ascii_reads_kana_in_romaji_and_the_code_where_nothing_else_is_left():
    keys = {
        "RequestedProcedureDescription": "胸部レントゲン",
        "ScheduledProcedureStepDescription": "胸部",
        "RequestedProcedureCodeSequence": [{"CodeValue": "X1", "CodeMeaning": "胸部"}],
    }
    answer = made(Look(("ASCII",)), **keys)
    item = read(answer)
    assert item[TEXT][1] == "RENTOGEN"
    assert step_of(item)[DESCRIPTION][1] == "P1"
    assert [(code[0x00080100][1], code[0x00080104][1]) for code in item[CODES][1]] == [("X1", "X1")]
    assert answer.lost == {"variant", "characters"}
    assert tree.CHARSET not in item
    short = read(made(Look(("ASCII",), ((DESCRIPTION, 1), (TEXT, 3))), **keys))
    assert step_of(short)[DESCRIPTION][1] == ""  # a code is not cut
    assert short[TEXT][1] == "REN"


def test_a_code_that_a_device_cannot_write_goes_as_a_whole():
    keys = {"RequestedProcedureCodeSequence": [{"CodeValue": "彅", "CodeMeaning": "A"}, {"CodeValue": "X1"}]}
    answer = made(Look((IR87,)), **keys)
    assert [code[0x00080100][1] for code in read(answer)[CODES][1]] == ["X1"]
    assert answer.lost == {"identifier"}
    short = made(Look((IR87,), ((0x00080100, 1),)), **keys)
    assert read(short)[CODES][1] == []


def test_of_other_identifiers_those_that_a_device_cannot_write_are_not_there():
    keys = {"OtherPatientIDsSequence": [{"PatientID": "彅", "IssuerOfPatientID": "A"}, {"PatientID": "2"}]}
    others = 0x00101002
    answer = made(Look((IR87,)), wanted=((others, None),), **keys)
    assert [one[ID][1] for one in read(answer)[others][1]] == ["2"]


def test_zero_length_elements_are_left_out_for_who_cannot_take_them():
    item = read(made(Look((IR87,), omit_empty=True)))
    assert item.keys() == {tree.CHARSET, ACCESSION, PN, ID, 0x00401001, STEP}
    assert step_of(item).keys() == {0x00080060, STATIONS, 0x00400009}
    assert read(made(Look((IR87,))))[TEXT][1] == ""


@pytest.mark.parametrize(
    ("asked", "flat", "context"),
    [
        (None, True, None), (None, False, False), (((PROTOCOL, None),), True, False), (((PROTOCOL, ()),), False, True),
        (((PROTOCOL, ((CONTEXT, ()),)),), True, True),
    ],
)  # fmt: skip
def test_sequences_inside_items_come_only_if_they_are_named_where_a_device_cannot_take_others(asked, flat, context):
    """context: None = no codes; else whether the context of the protocol comes with them."""
    look = Look((IR87,), no_inner_sequences=flat)
    step = step_of(read(made(look, wanted=((STEP, asked),))))
    if context is None:
        assert PROTOCOL not in step
    else:
        assert (CONTEXT in step[PROTOCOL][1][0]) == (context or not flat)


@pytest.mark.parametrize(
    ("character_set", "name", "shown", "lost"),
    [
        (IR13, NAME, "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", set()),
        (IR13, "A=B=ヴァネッサ^ｼﾞｮｰ", "ｳﾞｧﾈｯｻ^ｼﾞｮｰ=B=ヴァネッサ^ｼﾞｮｰ", set()),
        ("ISO_IR 192", NAME, "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", set()),
        ("ISO_IR 13", "A==ﾔﾏﾀﾞ", "ﾔﾏﾀﾞ==ﾔﾏﾀﾞ", set()),
        (IR13, "KIM=金=김", "KIM=金", {"group"}),
        (IR13, "YAMADA=山田", "YAMADA=山田", set()),
    ],
)
def test_group_1_is_half_width_kana_where_a_device_wants_it_and_there_are_kana(
    settings, character_set, name, shown, lost
):
    """MWL-17"""
    look = answers.look_of(device(character_set, quirks=frozenset({"half_width_kana"})), settings, {})
    answer = made(look, PatientName=name)
    assert read(answer)[PN][1] == shown
    assert answer.lost == lost


def test_an_answer_has_the_stations_of_who_asks_and_the_item_keeps_its_own():
    item = read(made(Look((IR87,)), stations=("CT1", "CT2")))
    assert step_of(item)[STATIONS] == ("AE", "CT1\\CT2")
    assert step_of(read(made(Look((IR87,)))))[STATIONS] == ("AE", "ROOM1")
    assert STATIONS not in step_of(read(made(Look((IR87,)), ("CT1",), ((STEP, ((0x00080060, ()),)),))))


def test_people_read_in_words_where_a_device_shows_other_than_the_record():
    record = to_tree(
        {
            "PatientName": "TAKAHASHI=髙橋=タカハシ", "PatientID": "1", "RequestedProcedureDescription": "胸部単純CT",
            "PatientComments": "外彅来", "ReasonForTheRequestedProcedure": "①", "PatientSex": "",
            "RequestedProcedureCodeSequence": [{"CodeValue": "1"}, {"CodeValue": "2", "CodeMeaning": "胸"}],
            "ReferencedStudySequence": [{"ReferencedSOPClassUID": "1"}, {"ReferencedSOPClassUID": "2"}],
        }
    )  # fmt: skip
    shown = to_tree(
        {
            "PatientName": "TAKAHASHI=高橋", "RequestedProcedureDescription": "胸部", "PatientComments": "外来",
            "ReasonForTheRequestedProcedure": "(1)",
            "RequestedProcedureCodeSequence": [{"CodeValue": "1"}, {"CodeValue": "2"}],
            "ReferencedStudySequence": [{"ReferencedSOPClassUID": "1"}],
        }
    )  # fmt: skip
    assert sorted(as_shown.differences(record, shown)) == [
        "Code Meaning is left out",
        "Patient Comments lacks 1 of 3 characters: 外来",
        "Patient ID is left out",
        "Reason for the Requested Procedure is shown as (1)",
        "Referenced Study Sequence: 1 of 2 items are left out",
        "Requested Procedure Description is cut to 2 of 6 characters: 胸部",
        "the ideographic group of Patient's Name is shown as 高橋",
        "the phonetic group of Patient's Name is left out",
    ]
    assert as_shown.differences(record, record) == []
    assert as_shown.missing(shown, ("PatientName", "AccessionNumber")) == [
        "this device drops items without Accession Number"
    ]
