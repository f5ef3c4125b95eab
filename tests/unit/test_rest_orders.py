"""The order body of the contract: what does not fit DICOM is refused at its field, without its value; what is absent
says nothing, and null deletes in a change."""

import copy
import dataclasses
import json
import re
import unicodedata

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError, DuplicateKey, InvalidValue, MissingField, Unreadable
from broker.mwl.commands import Identifier, OrderCommand
from broker.ris_bridge import http_road, rest_orders
from broker.ris_bridge.hl7 import message, orders_in
from broker.ris_bridge.http_road import (
    CHANGE,
    PLACE_CHARACTERS_MAX,
    Known,
    Reply,
    Request,
    _bounded,
    _in_words,
    reply_of,
    request_of,
)
from broker.ris_bridge.json_faults import FAULTS_MAX
from broker.ris_bridge.rest_orders import Has
from tests import roads

SITE = Site(accession_issuer="RIS", patient_id_issuer="HOSP")
KNOWN = Known("ACC1", "RIS", Identifier("1", "HOSP"))
BODY = {
    "accession_number": "ACC1",
    "patient": {"id": "1", "name": {"alphabetic": "YAMADA^TARO"}},
    "requested_procedures": [{"id": "RP1", "steps": [
        {"sps_id": "S1", "modality": "CT", "station_ae_titles": ["CT1"], "scheduled_start": "2025-12-01T09:30:00+09:00"}
    ]}],
}  # fmt: skip


def at(path: str, value: object, body: dict = BODY) -> dict:
    """The body with that value there; without the field where it is ...."""
    body = copy.deepcopy(body)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    holder = body
    for part in parents:
        holder = holder[part]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return body


def placed(body: dict, site: Site = SITE) -> OrderCommand:
    return rest_orders.placed(rest_orders.new(json.dumps(body)), site)


def of_order(*sps_ids: str) -> list[Has]:
    return [
        Has(
            {"id": "RP1", "study_instance_uid": "1.2.3", "placer_order_number": "P1", "filler_order_number": ""},
            sps_ids,
        )
    ]


def changed(body: dict, *sps_ids: str) -> OrderCommand:
    has = of_order(*(sps_ids or ("S1",)))
    return rest_orders.changed(rest_orders.change(json.dumps(body)), KNOWN, has, SITE)


def test_the_golden_order_is_the_command_that_the_message_makes():
    msg = message.parse(roads.omi(), Limits(), "ASCII")
    (by_hl7,) = orders_in.to_commands(msg, SITE)
    by_rest = placed(roads.rest())
    assert by_rest.patient == by_hl7.patient
    assert said(by_rest.attributes) == said(by_hl7.attributes)
    mine, theirs = by_rest.procedures[0], by_hl7.procedures[0]
    assert said(mine.attributes) == said(theirs.attributes)
    assert said(mine.steps[0].attributes) == said(theirs.steps[0].attributes)
    for one, other in ((by_rest, by_hl7), (mine, theirs), (mine.steps[0], theirs.steps[0])):
        for field in dataclasses.fields(one):
            if field.name not in NOT_OF_THE_ORDER:
                assert getattr(one, field.name) == getattr(other, field.name), field.name


# Of the message, not of what it asks for.
NOT_OF_THE_ORDER = ("attributes", "procedures", "steps", "place", "at", "status", "policies")


def said(attributes: dict) -> dict:
    return {name: value for name, value in attributes.items() if value is not None}


@pytest.mark.parametrize(
    ("path", "value"),
    [("accession_number", "A" * 17), ("accession_number", "A\\B"), ("patient.name.alphabetic", "A=B"),
     ("patient.name.alphabetic", "A^B^C^D^E^F"), ("patient.name.alphabetic", "Y" * 65),
     ("patient.id", "1\n2"), ("requested_procedures.0.placer_order_number", "P" * 65),
     ("requested_procedures.0.steps.0.station_ae_titles.0", "CT\\1"), ("requested_procedures.0.steps.0.modality", "ＣＴ"),
     ("requested_procedures.0.reason", "x" * 65), ("priority", "SOON"), ("colour", "red"), ("patient.sex", "男"),
     ("patient.birth_date", "19700101"), ("patient.birth_date", 86400), ("patient.birth_date", "1970-02-30"),
     ("requested_procedures.0.steps.0.scheduled_start", "20251201"),
     ("requested_procedures.0.steps.0.scheduled_start", 1764549000),
     ("requested_procedures.0.steps.0.scheduled_start", "0001-01-01T00:00:00+14:00"),
     ("requested_procedures.0.study_instance_uid", "1.02.3"), ("requested_procedures", "one"),
     ("requested_procedures.0.steps.0.protocol_codes", [{"value": "7" * 17}])],
)  # fmt: skip
def test_a_value_that_no_attribute_can_hold_is_refused_by_name(path, value):
    with pytest.raises(InvalidValue) as refused:
        placed(at(path, value))
    assert refused.value.place.startswith(path)
    assert str(value) not in refused.value.text


@pytest.mark.parametrize(
    "path",
    ["patient", "patient.id", "patient.name", "requested_procedures", "requested_procedures.0.steps",
     *(f"requested_procedures.0.steps.0.{name}" for name in ("modality", "station_ae_titles", "scheduled_start"))],
)  # fmt: skip
@pytest.mark.parametrize("value", [..., None])
def test_what_a_worklist_item_needs_is_required_of_a_new_order(path, value):
    with pytest.raises(MissingField) as refused:
        placed(at(path, value))
    assert refused.value.place.startswith(path)


@pytest.mark.parametrize(
    ("policy", "path"),
    [("missing_accession_number", "accession_number"), ("missing_requested_procedure_id", "requested_procedures.0.id"),
     ("missing_sps_id", "requested_procedures.0.steps.0.sps_id"),
     ("missing_study_instance_uid", "requested_procedures.0.study_instance_uid")],
)  # fmt: skip
def test_missing_identifiers_are_made_or_refused_as_the_site_says(policy, path):
    body = at(path, None)
    assert placed(body).policies.study_instance_uid == "derive"
    assert getattr(placed(body, Site(**{policy: "derive"})).policies, policy.removeprefix("missing_")) == "derive"
    with pytest.raises(MissingField) as refused:
        placed(body, Site(**{policy: "reject"}))
    assert refused.value.place == path


@pytest.mark.parametrize(
    ("start", "time"),
    [("2025-12-01T09:30:00+09:00", "093000"), ("2025-12-01T00:30:00Z", "093000"), ("2025-12-01T09:30", "093000"),
     ("2025-12-01T09:30:15.250", "093015")],
)  # fmt: skip
def test_a_time_is_the_sites_and_one_with_an_offset_is_turned_into_it(start, time):
    step = placed(at("requested_procedures.0.steps.0.scheduled_start", start)).procedures[0].steps[0]
    assert (step.start_date, step.start_time) == ("20251201", time)


def test_in_a_new_order_null_says_nothing():
    step = placed(at("requested_procedures.0.reason", None)).procedures[0]
    assert step.attributes["ReasonForTheRequestedProcedure"] is None


def test_a_change_says_what_it_says_and_nothing_else():
    command = changed({"requested_procedures": [{"steps": [{"description": "造影"}]}]})
    assert (command.control, command.accession_number, command.priority) == ("XO", "ACC1", None)
    step = command.procedures[0].steps[0]
    assert step.description == "造影"
    assert [step.modality, step.start_date, step.station_ae_titles] == [None, None, None]
    assert not said(step.attributes)


def test_null_deletes_in_a_change():
    command = changed({
        "priority": None, "requesting_physician": None,
        "requested_procedures": [{"id": "RP1", "reason": None, "code": None, "steps": [
            {"sps_id": "S1", "scheduled_start": None, "station_ae_titles": None, "protocol_codes": None}]}],
    })  # fmt: skip
    procedure = command.procedures[0]
    step = procedure.steps[0]
    assert (command.priority, command.attributes["RequestingPhysician"]) == ("ROUTINE", "")
    assert (procedure.attributes["ReasonForTheRequestedProcedure"], procedure.code_value) == ("", "")
    assert (step.start_date, step.start_time, step.station_ae_titles) == ("", "", ())
    assert step.attributes["ScheduledProtocolCodeSequence"] == ""


@pytest.mark.parametrize(
    ("body", "place"),
    [({"accession_number": "ACC2"}, "accession_number"), ({"accession_issuer": None}, "accession_issuer"),
     ({"patient": {"id": "2"}}, "patient.id"), ({"patient": {"issuer": "OTHER"}}, "patient.issuer"),
     ({"requested_procedures": [{"study_instance_uid": None}]}, "requested_procedures.0.study_instance_uid"),
     ({"requested_procedures": [{"steps": [{"sps_id": None}]}]}, "requested_procedures.0.steps.0.sps_id")],
)  # fmt: skip
def test_what_an_order_is_found_by_does_not_change(body, place):
    with pytest.raises(InvalidValue) as refused:
        changed(body)
    assert refused.value.place == place


@pytest.mark.parametrize("body", [{"steps": [{"sps_id": "S1"}]}, {"id": "RP1", "steps": [{"modality": "MR"}]}])
def test_of_several_steps_a_change_says_which(body):
    with pytest.raises(MissingField):
        changed({"requested_procedures": [body]}, "S1", "S2")


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"id": "RP1", "description": "MR"}, "1.id"),
        (
            {"id": "RP1", "steps": [{**BODY["requested_procedures"][0]["steps"][0], "modality": "MR"}]},
            "1.steps.0.sps_id",
        ),
    ],
)
def test_a_body_that_contradicts_itself_is_refused_where_it_does(more, place):
    first = {**BODY["requested_procedures"][0], "description": "CT"}
    both = [first, {"steps": first["steps"], **more}]
    for act in (lambda body: placed({**BODY, **body}), changed):
        with pytest.raises(InvalidValue) as refused:
            act({"requested_procedures": both})
        assert refused.value.place == f"requested_procedures.{place}"
    placed({**BODY, "requested_procedures": [first, first]})


def test_a_step_that_is_said_twice_with_two_stations_has_both():
    (procedure,) = BODY["requested_procedures"]
    (step,) = procedure["steps"]
    twice = {"requested_procedures": [{**procedure, "steps": [step, {**step, "station_ae_titles": ["CT2"]}]}]}
    for command in (placed({**BODY, **twice}), changed(twice)):
        (made,) = command.procedures[0].steps
        assert made.station_ae_titles == ("CT1", "CT2")


STEP = {"sps_id": "S9", "modality": "CT", "station_ae_titles": ["CT1"], "scheduled_start": "2025-12-01T09:30:00"}


@pytest.mark.parametrize(
    ("body", "place"),
    [({"id": "RP9"}, "steps"), ({"placer_order_number": "P9"}, "steps"), ({"study_instance_uid": "1.9"}, "steps"),
     ({"steps": [{"sps_id": "S9"}]}, "steps.0.modality"), ({"id": "RP1", "steps": [{"sps_id": "S9"}]}, "steps.0.modality"),
     ({"id": "RP9", "steps": [{**STEP, "scheduled_start": None}]}, "steps.0.scheduled_start")],
)  # fmt: skip
def test_a_change_that_names_what_the_order_does_not_have_must_say_all_of_it(body, place):
    """It would be about another order's procedure or step, and this one would get a part that no device can be shown."""
    with pytest.raises(MissingField) as refused:
        changed({"requested_procedures": [body]})
    assert refused.value.place == f"requested_procedures.0.{place}"


@pytest.mark.parametrize(
    "body",
    [{"id": "RP9", "steps": [STEP]}, {"id": "RP1", "steps": [STEP]}, {"steps": [{"sps_id": "S1"}]}, {"id": "RP1"},
     {"filler_order_number": "F1"}, {"id": "RP1", "filler_order_number": "F1"}, {"placer_order_number": "P1"}, {}],
)  # fmt: skip
def test_but_it_may_add_a_whole_part_or_a_number_that_was_not_known_yet(body):
    assert changed({"requested_procedures": [body]}).procedures


def test_a_jj1017_code_of_32_characters_is_split_and_a_foreign_one_refused():
    code = "6000000200000000" + "0" * 16
    path = "requested_procedures.0.steps.0.protocol_codes"
    (made,) = placed(at(path, [{"value": code}])).procedures[0].steps[0].attributes["ScheduledProtocolCodeSequence"]
    assert (made["CodeValue"], made["CodingSchemeDesignator"]) == (code[:16], "JJ1017-16M")
    assert "ProtocolContextSequence" in made
    with pytest.raises(InvalidValue):
        placed(at(path, [{"value": code[:-1], "scheme": "JJ1017"}]))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "\\ud800"}', '"x"', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(BrokerError):
        rest_orders.new(text)


@pytest.mark.parametrize(
    ("body", "place"),
    [({"requested_procedures": [{}, {"reason": "a\0"}]}, "requested_procedures.1.reason"), ({"a\0": 1}, "body"),
     ({"patient": {"name": {"b\0": 1}}}, "patient.name"), ({"x": [[{}, "\0"]]}, "x.0.1"), (["\0"], "0")],
)  # fmt: skip
def test_nul_is_no_character_of_a_text_and_is_refused_where_it_stands(body, place):
    for read in (rest_orders.new, rest_orders.change, lambda text: rest_orders.body(rest_orders.Reason, text)):
        with pytest.raises(InvalidValue, match="NUL") as refused:
            read(json.dumps(body))
        assert refused.value.place == place


TEXTS = [
    "accession_number", "accession_issuer", "requesting_service", "patient.id", "patient.issuer", "patient.name",
    "patient.name.alphabetic", "requested_procedures.0.id", "requested_procedures.0.filler_order_number",
    "requested_procedures.0.description", "requested_procedures.0.comments", "requested_procedures.0.steps.0.sps_id",
    "requested_procedures.0.steps.0.location", "requested_procedures.0.steps.0.label",
    "requested_procedures.0.steps.0.station_ae_titles.0",
]  # fmt: skip
NO_TEXT = [
    "\x7f", "\x85", "\x9f", "\xad", "\u061c", "\u200b", "\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\u2069",
    "\ufeff", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize("sign", NO_TEXT)
def test_a_sign_that_nobody_sees_is_refused_where_it_stands(path, sign):
    """Two identifiers that look alike would be two, or one that is shown empty."""
    for text in (f"CT1{sign}", f"{sign}CT1", f"C{sign}T", sign):
        with pytest.raises(InvalidValue) as refused:
            placed(at(path, text))
        assert refused.value.place.startswith(path)
        assert sign not in refused.value.text


def test_of_no_text_are_control_direction_and_zero_width_characters():
    wanted = {
        char for char in map(chr, range(0x20, 0x110000)) if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")
    }
    of_text = "葛\U000e0100 山\u3000田 \ue000 が e\u0301\t\r\n"  # a kanji's own form, gaiji, marks
    assert set(re.findall(f"[{http_road.NO_TEXT}]", "".join(map(chr, range(0x20, 0x110000))))) == wanted
    assert not re.search(f"[{http_road.NO_TEXT}]", of_text)
    name = "葛\U000e0100城^\ue000 \u3000"
    assert placed(at("patient.name.ideographic", name, at("patient.name", {}))).patient.name == "=葛\U000e0100城^\ue000"


def test_several_lines_keep_their_ends():
    (procedure,) = placed(at("requested_procedures.0.comments", "a\n\tb\r\nc")).procedures
    assert procedure.attributes["RequestedProcedureComments"] == "a\n\tb\r\nc"


@pytest.mark.parametrize("blank", [" ", "   ", "\u3000", "\xa0"])
@pytest.mark.parametrize(
    "path",
    ["patient.id", "patient.name", "requested_procedures.0.id", "requested_procedures.0.steps.0.sps_id",
     "requested_procedures.0.steps.0.modality", "requested_procedures.0.steps.0.station_ae_titles.0",
     "requested_procedures.0.steps.0.scheduled_start", "requested_procedures.0.code.value"],
)  # fmt: skip
def test_a_blank_is_no_value(path, blank):
    with pytest.raises((InvalidValue, MissingField)) as refused:
        placed(at(path, blank, at("requested_procedures.0.code", {"value": "1"})))
    assert path.startswith(refused.value.place)


@pytest.mark.parametrize("blank", [" ", "\u3000"])
def test_a_blank_accession_number_is_none(blank):
    assert placed(at("accession_number", blank)).accession_number == ""
    with pytest.raises(MissingField) as refused:
        placed(at("accession_number", blank), Site(missing_accession_number="reject"))
    assert refused.value.place == "accession_number"


@pytest.mark.parametrize("path", [path for path in TEXTS if path != "patient.name"])
def test_blanks_at_the_ends_of_a_text_say_nothing(path):
    """PS3.5 6.2: on the wire `A1 ` is A1."""
    assert placed(at(path, " CT1 \u3000")) == placed(at(path, "CT1"))


def test_nor_in_a_change_or_in_what_the_journal_finds_an_order_by():
    assert changed({"accession_number": " ACC1 ", "patient": {"id": "1 "}, "requested_procedures": [{"id": "RP1 "}]})
    with pytest.raises(InvalidValue) as refused:
        changed({"requested_procedures": [{"id": "RP1", "steps": [{"sps_id": "S1", "modality": " "}]}]})
    assert refused.value.place == "requested_procedures.0.steps.0.modality"
    assert rest_orders.body(rest_orders.Label, '{"label": " urgent "}').label == "urgent"
    keys = rest_orders.keys(b'{"accession_number": "A1 ", "patient": {"id": " 1"}}')
    assert keys == [("accession", "A1"), ("patient", "1")]


@pytest.mark.parametrize(
    ("text", "place"),
    [('{"patient": {"id": "X1"}, "patient": {"id": "X2"}}', "patient"),
     ('{"patient": {"id": "X1", "id": "X1"}}', "id"), ('{"requested_procedures": [{"reason": "a", "reason": "b"}]}', "reason"),
     ('{"label": "a", "l\\u0061bel": null}', "label"), ('{"x": [[{"鈴木": 1, "鈴木": 2}]]}', "body"),
     ('{"SUZUKI^HANAKO": 1, "SUZUKI^HANAKO": 1}', "body")],
)  # fmt: skip
def test_a_name_that_stands_twice_in_one_object_is_refused(text, place):
    """Nobody could know which was meant."""
    for read in (rest_orders.new, rest_orders.change, lambda text: rest_orders.body(rest_orders.Label, text)):
        with pytest.raises(InvalidValue, match="twice") as refused:
            read(text)
        assert refused.value.place == place
        assert "鈴木" not in refused.value.text and "SUZUKI" not in refused.value.text
    twice = b'{"accession_number": "A1", "patient": {"id": "1"}, "patient": {"id": "2"}}'
    assert ("accession", "A1") in rest_orders.keys(twice), "and it is found in the journal"


def test_as_deep_and_as_long_as_before():
    text = '{"x": ' * 150 + "1" * 4_000 + "}" * 150
    with pytest.raises(InvalidValue, match="not known here"):
        rest_orders.new(text)
    with pytest.raises(Unreadable):
        rest_orders.new('{"x": ' * 1_000 + "1" + "}" * 1_000)


def test_a_reverse_solidus_before_u0000_is_no_nul():
    assert rest_orders.new('{"requested_procedures": [{"comments": "\\\\u0000"}]}')


def test_half_a_character_is_refused_where_it_stands():
    with pytest.raises(Unreadable, match="line 2 column"):
        rest_orders.new('{"accession_number":\n "\\ud800"}')


def test_a_place_of_any_depth_is_not_repeated_whole():
    body: dict = {"x": "\0"}
    for _ in range(150):
        body = {"x": body}
    with pytest.raises(InvalidValue) as refused:
        rest_orders.new(json.dumps(body))
    assert len(refused.value.place) == PLACE_CHARACTERS_MAX


@pytest.mark.parametrize(
    "name", ["鈴木花子 0000012345", "0000012345", "SUZUKI^HANAKO", "x" * 41, "", "a b", "colour\n"]
)
@pytest.mark.parametrize("value", ["x", "\0"])
def test_a_name_that_is_none_of_ours_is_not_repeated_since_it_may_be_the_patients(name, value):
    body = at("patient", {**BODY["patient"], name: value})
    with pytest.raises(InvalidValue) as refused:
        rest_orders.new(json.dumps(body))
    assert refused.value.place == "patient"
    assert name not in refused.value.text or not name
    with pytest.raises(InvalidValue) as refused:
        rest_orders.new(json.dumps({**BODY, "colour": value}))
    assert refused.value.place == "colour"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("accession_number", "A" * 17, "at most 16 characters"), ("accession_number", "A\\B", "no backslash"),
        ("accession_number", 1, "must be a text"), ("patient.name.alphabetic", "A=B", "FAMILY^GIVEN"),
        ("patient.name", 5, "a text, or an object"), ("patient.sex", "X", "M, F or O"), ("patient.id", "", "at least 1"),
        ("priority", "SOON", "STAT, HIGH, ROUTINE"), ("colour", "red", "not known here"),
        ("requested_procedures", "x", "must be a list"), ("requested_procedures.0", 1, "must be an object"),
        ("requested_procedures.0.steps.0.modality", "ct", "A to Z"),
        ("requested_procedures.0.steps.0.station_ae_titles", ["CT\\1"], "16 ASCII characters"),
        ("requested_procedures.0.study_instance_uid", "a", "digits and dots"),
        ("requested_procedures.0.comments", "\x01", "no control, direction or zero-width"),
        ("patient.birth_date", "1970-02-30", "no date of a calendar"),
        ("requested_procedures.0.steps.0.scheduled_start", "2025-02-30T09:30:00", "no time of a calendar"),
        ("requested_procedures.0.steps", [{}] * 101, "at most 100 items"),
        ("patient.birth_date", "2999-01-01", "year must lie between 1800 and 2199"),
        ("patient.birth_date", "2999-1-1", "written as 1970-01-31"),
        ("requested_procedures.0.steps.0.scheduled_start", "9999-12-31T23:59:59", "year must lie between 1800 and 2199"),
        ("requested_procedures.0.steps.0.scheduled_start", "2999-01-01", "written as 2025-12-01T09:30:00"),
    ],
)  # fmt: skip
def test_what_is_wanted_is_said_in_our_words(path, value, words):
    with pytest.raises(InvalidValue) as refused:
        placed(at(path, value))
    assert words in refused.value.text
    assert not any(theirs in refused.value.text for theirs in ("Input should", "String should", "pattern"))


def test_every_pattern_of_a_body_has_its_words():
    for kind in rest_orders.Body.__subclasses__():
        patterns = re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', json.dumps(kind.model_json_schema()))
        assert {json.loads(f'"{one}"') for one in patterns} <= set(rest_orders.PATTERNS)


def test_all_that_is_wrong_with_a_body_is_told_at_once_and_only_so_much():
    body = at("priority", "SOON", at("patient.sex", "X"))
    with pytest.raises(InvalidValue) as refused:
        placed(body)
    told = [(refused.value.place, refused.value.text), *refused.value.also]
    assert {place for place, _ in told} == {"priority", "patient.sex"}
    with pytest.raises(MissingField) as refused:
        placed({"accession_number": "ACC1"})
    assert [refused.value.place, *(place for place, _ in refused.value.also)] == [
        "patient.id", "patient.name", "requested_procedures",
    ]  # fmt: skip
    with pytest.raises(InvalidValue) as refused:
        placed({f"x{n}": n for n in range(1_000)})
    assert len(refused.value.also) == FAULTS_MAX - 1


@pytest.mark.parametrize(
    ("name", "pn"),
    [("山田 太郎", "=山田^太郎"), ("山田^太郎", "=山田^太郎"), ("YAMADA^TARO", "YAMADA^TARO"),
     ("ヤマダ　タロウ", "YAMADA^TARO==ヤマダ^タロウ")],
)  # fmt: skip
def test_a_name_in_one_text_is_the_group_that_its_script_says(name, pn):
    assert placed(at("patient.name", name)).patient.name == pn
    said = rest_orders.demographics(rest_orders.change(json.dumps({"patient": {"name": name}})), KNOWN, SITE)
    assert said.name == pn


def test_nothing_is_found_by_a_number_with_nul():
    keys = rest_orders.keys(b'{"accession_number": "a\\u0000b", "patient": {"id": "1"}}')
    assert _bounded(keys) == {("patient", "1")}


def test_a_refusal_advises_in_the_words_of_its_road():
    told = _in_words(DuplicateKey("order", f"exists already; {CHANGE}", err="103"), "change it by PATCH")
    assert (type(told), told.place, told.text, told.err) == (
        DuplicateKey, "order", "exists already; change it by PATCH", "103",
    )  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"{}", b"\r\n\r\n{}\r\n\r\n", '{"a": "髙"}'.encode()])
def test_the_journal_keeps_what_a_request_does_byte_for_byte(body):
    request = Request("PATCH", "/api/v1/orders/17", body, {"if-match": '"17.1"'})
    assert request_of(request.raw()) == request
    assert request.raw().endswith(b"\r\n\r\n" + body)


def test_and_its_answer():
    reply = Reply(201, "application/json", '{"a": "山田\r\n\r\n"}', {"Location": "/api/v1/orders/17"})
    assert reply.raw().startswith(b"HTTP/1.1 201 Created\r\n")
    assert reply_of(reply.raw()) == reply


TWICE = [Has({**dict.fromkeys(rest_orders.PROCEDURE_KEYS, ""), "id": one}, ("S1", f"S{one}")) for one in ("RP1", "RP2")]


def brought_back(**body: str) -> OrderCommand:
    return rest_orders.brought_back(rest_orders.body(rest_orders.BringBack, json.dumps(body)), KNOWN, TWICE)


def test_what_comes_back_is_the_order_a_procedure_or_a_step():
    assert brought_back(reason="x").procedures == ()
    assert [one.requested_procedure_id for one in brought_back(reason="x", id="RP2").procedures] == ["RP2"]
    (procedure,) = brought_back(reason="x", sps_id="SRP1").procedures
    assert (procedure.requested_procedure_id, [one.sps_id for one in procedure.steps]) == ("RP1", ["SRP1"])
    (procedure,) = brought_back(reason="x", sps_id="S1", id="RP2").procedures
    assert (procedure.requested_procedure_id, [one.sps_id for one in procedure.steps]) == ("RP2", ["S1"])


@pytest.mark.parametrize(
    ("body", "place"),
    [({}, "reason"), ({"reason": " "}, "reason"), ({"reason": "x", "sps_id": "S1"}, "id"),
     ({"reason": "x", "sps_id": "S9"}, "sps_id"), ({"reason": "x", "id": "RP9"}, "id"),
     ({"reason": "x", "sps_id": "SRP1", "id": "RP2"}, "sps_id")],
)  # fmt: skip
def test_which_step_comes_back_is_never_guessed(body, place):
    with pytest.raises(BrokerError) as refused:
        brought_back(**body)
    assert refused.value.place == place
