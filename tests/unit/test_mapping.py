"""A profile says where a sender says what; its faults are told with their lines before any message meets them."""

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError, ConfigError, InvalidValue, MissingField
from broker.ris_bridge.hl7 import message, orders_in, road
from broker.ris_bridge.mapping import paths, profile, trial
from broker.ris_bridge.mapping.profile import Group
from broker.ris_bridge.mapping.targets import TARGETS

SITE = Site(patient_id_issuer="HOSP")
BASE = 'name = "mine"\nextends = "ihe-rad4-2.3.1"\n'
PID = "PID|1||0000012345^^^HOSP^PI||YAMADA^TARO||19700101|M"
ORC = "ORC|NW|P1^HIS|F1^RIS||SC||^^^20251201093000||20251201085500"
OBR = "OBR|1|P1^HIS|F1^RIS|CTCHEST^胸部CT^99LOCAL||||||||||||||ACC1|RP1|SPS1||||CT"


def parsed(*segments: str, kind: str = "ORM^O01") -> message.Message:
    head = f"MSH|^~\\&|HIS|HOSP1|C|D|20251201085500||{kind}|1|P|2.5.1||||||UNICODE UTF-8"
    return message.parse("\r".join((head, *segments)).encode(), Limits(), "ASCII")


def made(text: str) -> profile.Profile:
    return profile.parse(BASE + text)


def order(text: str, orc: str = ORC, obr: str = OBR, *more: str, site: Site = SITE, kind: str = "ORM^O01"):
    (command,) = orders_in.to_commands(parsed(PID, *more, orc, obr, kind=kind), site, made(text))
    return command


def step(text: str, orc: str = ORC, obr: str = OBR, *more: str):
    return order(text, orc, obr, *more).procedures[0].steps[0]


def field(segment: str, number: int, value: str) -> str:
    fields = segment.split("|")
    fields += [""] * (number + 1 - len(fields))
    fields[number] = value
    return "|".join(fields)


def rule(to: str, *sources: str, **more: str) -> str:
    said = "".join(f"{name} = {value}\n" for name, value in more.items())
    return f'[[field]]\nto = "{to}"\nfrom = {list(sources)}\n{said}'


# What is shipped


@pytest.mark.parametrize("name", profile.shipped_names())
def test_a_shipped_profile_is_without_fault_and_warning(name):
    assert profile.look(profile.shipped_text(name))[1] == []
    assert profile.shipped(name).name == name


def test_each_order_message_has_its_profile():
    names = {kind: profile.for_type(kind).name for kind in ("ORM^O01", "OMI^O23", "OMG^O19")}
    assert names == {"ORM^O01": "ihe-rad4-2.3.1", "OMI^O23": "ihe-rad4-2.5.1", "OMG^O19": "ihe-rad4-2.5.1"}
    assert profile.for_type("ADT^A08") is None


def test_a_japanese_order_without_numbers_gets_derived_ones():
    """A25; conformance.md 5.9: the HIS sends no ADT, JJ1017 in OBR-4, and leaves the numbers to us."""
    bare = "OBR|1|P1^HIS||60000002000000000000000000000000^胸部単純CT^JJ1017-32"
    (command,) = orders_in.to_commands(
        parsed(PID, "ORC|NW|P1^HIS|||||||20251201085500", "TQ1|1||||||20251201093000", bare, kind="OMG^O19"),
        SITE, profile.shipped("jahis"),
    )  # fmt: skip
    (procedure,) = command.procedures
    assert (command.accession_number, procedure.requested_procedure_id, procedure.steps[0].sps_id) == ("", "", "")
    assert set(vars(command.policies).values()) == {"derive"}
    assert (procedure.steps[0].modality, procedure.steps[0].start_time) == ("CT", "093000")
    assert command.patient.identifiers[0].value == "0000012345"


# Fields


@pytest.mark.parametrize(
    ("sources", "obr", "description"),
    [(["OBR-21"], field(OBR, 21, "骨盤"), "骨盤"), (["OBR-21", "OBR-4.2"], OBR, "胸部CT"),
     (["OBR-21[2]"], field(OBR, 21, "一~二~三"), "二"), (["OBR-21[4]"], field(OBR, 21, "一~二"), None),
     (["OBR-21.2.3"], field(OBR, 21, "a^b&c&造影"), "造影"), (["OBR-21.*"], field(OBR, 21, "a^b"), "a^b"),
     (["ZXX-3"], OBR, None), (["OBR-21"], field(OBR, 21, '""'), "")],
)  # fmt: skip
def test_the_first_source_that_says_something_counts(sources, obr, description):
    assert step(rule("step.description", *sources), ORC, obr).description == description


def test_a_segment_of_the_sender_itself_is_read_like_any_other():
    said = order(rule("step.PreMedication", "ZXR-2") + rule("procedure.SpecialNeeds", "ZPA-1"), ORC, OBR + "\rZXR|1|前投薬",
                 "ZPA|車椅子")  # fmt: skip
    assert said.procedures[0].steps[0].attributes["PreMedication"] == "前投薬"
    assert said.procedures[0].attributes["SpecialNeeds"] == "車椅子"


def test_several_values_are_taken_where_the_attribute_holds_them():
    text = rule("step.ScheduledStationName", "OBR-21[*]") + rule("step.station_ae_titles", "OBR-22")
    said = step(text, ORC, field(field(OBR, 21, "CT室1~CT室2"), 22, "CT1~CT2"))
    assert said.attributes["ScheduledStationName"] == ["CT室1", "CT室2"]
    assert said.station_ae_titles == ("CT1", "CT2")


TABLE = '[tables.rooms]\n"CT室1" = "CT1"\n"CT*" = "CT9"\n"MR*" = "MR1~MR2"\n'


@pytest.mark.parametrize(
    ("said", "titles"),
    [("CT室1", ("CT1",)), ("CT室5", ("CT9",)), ("MR", ("MR1~MR2",)), ("US", None), ('""', ()), ("CT室1~CT室7", ("CT1", "CT9"))],
)  # fmt: skip
def test_a_code_table_turns_the_senders_codes_into_ours(said, titles):
    text = rule("step.station_ae_titles", "OBR-21", table='"rooms"') + TABLE.replace('"MR1~MR2"', '"MR1~MR2"')
    assert step(text, ORC, field(OBR, 21, said)).station_ae_titles == titles


def test_a_code_table_gives_whole_codes():
    text = rule("step.ScheduledProtocolCodeSequence", "OBR-21.4", table='"jj"')
    text += '[tables.jj]\nCX = "6000000200000000^胸部単純CT^JJ1017-16M"\n'
    (code,) = step(text, ORC, field(OBR, 21, "a^b^c^CX")).attributes["ScheduledProtocolCodeSequence"]
    assert (code["CodeValue"], code["CodeMeaning"]) == ("6000000200000000", "胸部単純CT")


@pytest.mark.parametrize(
    ("condition", "holds"),
    [("OBR-24 = CT", True), ("OBR-24 = MR|CT", True), ("OBR-24 = MR", False), ("OBR-24 != CT", False),
     ("MSH-4 ~ HOSP*", True), ("MSH-4 !~ HOSP?", False), ("OBR-44", False), ("!OBR-44", True), ("ZDS", False),
     ("!ZDS", True), ("PV1-2 != I", True)],
)  # fmt: skip
def test_a_field_counts_under_its_conditions(condition, holds):
    text = rule("step.description", "OBR-18", when=f'["{condition}"]')
    assert step(text).description == ("ACC1" if holds else None)


def test_a_default_counts_for_new_orders_alone():
    text = rule("step.PreMedication", "OBR-21", default='"なし"')
    assert step(text).attributes["PreMedication"] == "なし"
    assert step(text, ORC.replace("NW", "XO")).attributes["PreMedication"] is None


def test_what_a_profile_says_of_a_field_stands_in_place_of_what_is_below():
    assert order(rule("order.accession_number", "OBR-20")).accession_number == "SPS1"
    assert step('[[field]]\nto = "step.modality"\n').modality is None


def test_a_table_of_the_same_name_adds_to_the_one_below():
    urgent = field(ORC, 7, "^^^20251201093000^^XX")
    assert order('[tables.priority]\nXX = "HIGH"\n', urgent).priority == "HIGH"
    assert order('[tables.priority]\nXX = "HIGH"\n', field(ORC, 7, "^^^^^S")).priority == "STAT"
    assert order("", urgent).priority == "ROUTINE"


def test_a_value_that_fits_no_attribute_is_refused_with_the_place_of_its_source():
    with pytest.raises(InvalidValue) as refused:
        order(rule("order.accession_number", "OBR-21"), ORC, field(OBR, 21, "A" * 17))
    assert (refused.value.err, refused.value.place) == ("102", "OBR^1^21^1")


@pytest.mark.parametrize("said", ["HEART,LUNG", "A\\E\\B", "A" * 65, ","])
def test_a_label_that_no_device_can_name_is_refused_with_the_place_of_its_source(said):
    with pytest.raises(InvalidValue, match="without commas") as refused:
        step(rule("step.label", "OBR-21"), ORC, field(OBR, 21, said))
    assert (refused.value.err, refused.value.place) == ("102", "OBR^1^21")


@pytest.mark.parametrize(("said", "label"), [(" 救急 ER ", "救急 ER"), ('""', ""), ("", None)])
def test_a_label_that_a_device_can_name_is_taken(said, label):
    assert step(rule("step.label", "OBR-21"), ORC, field(OBR, 21, said)).label == label


def test_a_table_makes_a_label_of_what_is_none():
    text = rule("step.label", "OBR-21", table='"t"') + '[tables.t]\n"HEART,LUNG" = "THORAX"\n'
    assert step(text, ORC, field(OBR, 21, "HEART,LUNG")).label == "THORAX"


def test_every_target_can_be_read_from_a_field():
    """No target whose reader, keyword or length is unknown: it would fail with the first message that says it."""
    said = {"step.start": "20251201093000", "order.at": "20251201093000", "procedure.study_instance_uid": "1.2.3"}
    for name, target in TARGETS.items():
        value = said.get(name, "20251201" if "Date" in name or "date" in name else "A1")
        site_field = field(OBR, 50, value)
        text = BASE + rule(name, "OBR-50" if target.level not in ("visit", "patient") else "ZVV-1")
        text += '[identity]\naccession_number = "derive"\nrequested_procedure_id = "derive"\nsps_id = "derive"\n'
        msg = parsed(PID, f"ZVV|{value}", ORC, site_field)
        assert len(orders_in.to_commands(msg, SITE, profile.parse(text))) == 1, name


# Stations


STATIONS = """
[[station]]
when = ["step.modality = CT"]
ae_titles = ["CT1", "CT2"]
location = "1F"

[[station]]
priority = 10
when = ["step.modality = CT", "PV1-2 = I"]
ae_titles = ["CT3"]
station_name = "病棟CT"

[[station]]
priority = 20
always = true
when = ["ORC-18 = OLDCT"]
ae_titles = ["NEWCT"]
"""


def test_the_station_rule_of_the_highest_priority_that_fits_counts():
    """A26"""
    assert (step(STATIONS).station_ae_titles, step(STATIONS).attributes["ScheduledProcedureStepLocation"]) == (
        ("CT1", "CT2"), "1F",
    )  # fmt: skip
    inside = step(STATIONS, ORC, OBR, "PV1|1|I")
    assert (inside.station_ae_titles, inside.attributes["ScheduledStationName"]) == (("CT3",), ["病棟CT"])
    assert step(STATIONS, ORC, field(OBR, 24, "MR")).station_ae_titles is None


@pytest.mark.parametrize(("named", "titles"), [("CT7", ("CT7",)), ("OLDCT", ("NEWCT",))])
def test_a_station_that_the_message_names_stands_unless_a_rule_is_for_always(named, titles):
    said = step(STATIONS, field(ORC, 18, named))
    assert said.station_ae_titles == titles
    assert said.attributes.get("ScheduledProcedureStepLocation") is None


def test_a_change_that_names_no_station_moves_none():
    assert step(STATIONS, ORC.replace("NW", "XO")).station_ae_titles is None
    assert step(STATIONS, field(ORC.replace("NW", "XO"), 18, "OLDCT")).station_ae_titles == ("NEWCT",)


def test_a_station_rule_may_tell_the_modality():
    text = '[[station]]\nwhen = ["OBR-4 ~ CT*"]\nmodality = "CT"\nae_titles = ["CT1"]\n'
    assert step(text, ORC, field(OBR, 24, "")).modality == "CT"
    assert step(text, ORC, field(OBR, 24, "MR")).modality == "MR"


@pytest.mark.parametrize(
    ("first", "second", "dead"),
    [([], ["OBR-24 = CT"], True), (["OBR-24 = CT|MR"], ["OBR-24 = CT"], True), (["OBR-24 = CT"], ["OBR-24 = CT|MR"], False),
     (["OBR-24 = CT"], ["OBR-24 = CT", "PV1-2 = I"], True), (["OBR-24 ~ C*"], ["OBR-24 = CT"], True),
     (["OBR-24"], ["OBR-24 = CT"], True), (["OBR-24 != MR"], ["OBR-24 = CT"], True),
     (["OBR-24 = MR"], ["OBR-24 = CT", "OBR-24 = US"], True), (["PV1-2 = I"], ["PV1-2 = O"], False)],
)  # fmt: skip
def test_a_rule_that_can_never_speak_is_told(first, second, dead):
    """B1 row 9"""
    text = "".join(f'[[station]]\nwhen = {when}\nae_titles = ["X{n}"]\n' for n, when in enumerate((first, second)))
    found = [(one.line, one.warning) for one in profile.look(BASE + text)[1]]
    assert found == ([(6, True)] if dead else [])


def test_a_rule_for_always_is_not_dead_below_one_that_waits_for_no_name():
    text = '[[station]]\nae_titles = ["A"]\n[[station]]\nalways = true\nwhen = ["ORC-18 = B"]\nae_titles = ["C"]\n'
    assert profile.look(BASE + text)[1] == []


# Identity and control


@pytest.mark.parametrize(
    ("identifier", "number"), [("accession_number", 18), ("requested_procedure_id", 19), ("sps_id", 20)]
)
@pytest.mark.parametrize(
    ("policy", "site", "outcome"),
    [("", "", "reject"), ("generate", "", "generate"), ("derive", "", "derive"), ("reject", "derive", "reject"),
     ("", "derive", "derive"), ("", "generate", "generate"), ("generate", "derive", "generate")],
)  # fmt: skip
def test_what_becomes_of_a_missing_number(identifier, number, policy, site, outcome):
    """A25: the profile says, else the site, else it is refused."""
    text = f'[identity]\n{identifier} = "{policy}"\n' if policy else ""
    rules = SITE.model_copy(update={f"missing_{identifier}": site})
    if outcome == "reject":
        with pytest.raises(MissingField) as refused:
            order(text, ORC, field(OBR, number, ""), site=rules)
        assert (refused.value.err, refused.value.place) == ("101", f"OBR^1^{number}")
        return
    assert getattr(order(text, ORC, field(OBR, number, ""), site=rules).policies, identifier) == outcome


@pytest.mark.parametrize(
    ("segments", "refused"), [((), False), (("ZDS|",), True), (("ZDS|1.2.3^RIS^Application^DICOM",), False)]
)
def test_a_study_uid_may_be_left_to_us_but_not_announced_and_empty(segments, refused):
    msg = parsed(PID, ORC, OBR, *segments)
    if refused:
        with pytest.raises(MissingField) as error:
            orders_in.to_commands(msg, SITE, made(""))
        assert error.value.place == "ZDS^1^1"
    else:
        orders_in.to_commands(msg, SITE, made(""))
    with pytest.raises(MissingField):
        orders_in.to_commands(parsed(PID, ORC, OBR), SITE, made('[identity]\nstudy_instance_uid = "reject"\n'))


def test_numbers_without_authority_are_those_of_their_source():
    text = '[identity]\naccession_issuer = "RIS2"\npatient_id_issuer = "CLINIC"\n'
    (command,) = orders_in.to_commands(parsed(PID.replace("^^^HOSP^PI", ""), ORC, OBR), SITE, made(text))
    assert (command.accession_issuer, command.patient.identifiers[0].issuer) == ("RIS2", "CLINIC")


def test_a_profile_says_what_becomes_of_known_and_unknown_orders():
    assert (order("").known, order("").unknown) == ("refuse", "refuse")
    said = order('[identity]\nknown = "change"\nunknown = "place"\n')
    assert (said.known, said.unknown) == ("change", "place")


def test_an_order_control_may_be_off_or_mean_something_else():
    """B1 row 2"""
    text = '[controls]\nenabled = ["NW", "CA"]\n[controls.meanings]\nNW_CA = "CA"\nZN = "NW"\n'
    assert order(text).control == "NW"
    assert order(text, field(ORC, 5, "CA")).control == "CA"
    assert order(text, ORC.replace("NW", "ZN")).control == "NW"
    with pytest.raises(InvalidValue) as refused:
        order(text, ORC.replace("NW", "XO"))
    assert (refused.value.err, refused.value.place) == ("103", "ORC^1^1")


def test_a_profile_says_what_a_message_is():
    text = '[[message]]\ntype = "ORU^R01"\nwhen = ["OBR-4 = ARRIVAL"]\nmeans = "arrive"\n'
    text += '[[message]]\ntype = "ADT"\nmeans = "ignore"\n'
    rules = made(text)
    assert rules.means("ORU^R01", Group.of(parsed("OBR|1|||ARRIVAL").segments)) == "arrive"
    assert rules.means("ORU^R01", Group.of(parsed("OBR|1|||CT").segments)) is None
    assert rules.means("ADT^A08", Group.of([])) == "ignore"


# Faults


@pytest.mark.parametrize(
    ("text", "line", "about"),
    [('[[field]]\nto = "step.modality"\nfrom = ["OBR-24"]\n[[field]]\nto = "step.colour"\n', 7, "no such target"),
     ('[[field]]\nto = "step.modality"\nfrom = ["OBR.24"]\n', 5, "path"),
     ('[[field]]\nto = "step.modality"\nfrom = ["OBR-24"]\ntable = "t"\n', 6, "no such table: t"),
     ('[[field]]\nto = "step.modality"\nfrom = ["OBR-24"]\ntable = "t"\n[tables.t]\nA = "CT"\nB = "ct scan"\n', 9, "modality"),
     ('[[field]]\nto = "step.modality"\nfrom = ["OBR-24"]\nwhen = ["OBR-24 is CT"]\n', 6, "condition"),
     ('[[field]]\nto = "step.modality"\nfrom = ["OBR-24[*]"]\n', 5, "one value"),
     ('[[field]]\nto = "step.start"\nfrom = ["OBR-24"]\ndefault = "20251201"\n', 6, "neither a table nor a default"),
     ('[[field]]\nto = "step.modality"\ndefault = "a b c"\n', 5, "modality"),
     ('[[field]]\nto = "step.modality"\nform = ["OBR-24"]\n', 5, "no such key"),
     ('[[field]]\nto = "step.label"\ndefault = "HEART,LUNG"\n', 5, "without commas"),
     ('[[field]]\nto = "step.label"\nfrom = ["OBR-24"]\ntable = "t"\n[tables.t]\nCT = "A,B"\n', 8, "without commas"),
     ("[[station]]\nae_titles = ['TOO LONG AN AE TITLE']\n", 4, "AE title"), ("[[station]]\npriority = 1\n", 3, "says nothing"),
     ('[identity]\nknown = "maybe"\n', 4, "refuse"), ('[identity]\nsps = "derive"\n', 4, "no such key"),
     ('[controls.meanings]\nZZ = "QQ"\n', 4, "NW"), ('[[message]]\ntype = "oru"\nmeans = "report"\n', 4, "match"),
     ("[tables\n", 3, "TOML"), ('colour = "red"\n', 3, "no such key"), ("[[field]]\nto = 3\n", 4, "string")],
)  # fmt: skip
def test_a_fault_is_told_with_its_line(text, line, about):
    found, problems = profile.look(BASE + text)
    assert found is None
    assert [problem.line for problem in problems] == [line]
    assert about in problems[0].text
    with pytest.raises(ConfigError) as refused:
        made(text)
    assert f"line {line}" in refused.value.place


def test_all_faults_are_told_at_once():
    text = '[[field]]\nto = "a.b"\n[[field]]\nto = "c.d"\n[[station]]\nmodality = "x"\n'
    assert [problem.line for problem in profile.look(BASE + text)[1]] == [4, 6, 8]


def test_faults_of_every_kind_are_told_at_once_each_with_its_line():
    """Somebody who writes a profile mends them in one go, not one for each run."""
    text = """colour = "red"
messages = ["ORM^O01", "orders"]
[[field]]
default = "CT"
[[field]]
to = "step.modality"
frm = ["OBR-24"]
[[field]]
to = "step.nothing"
from = ["OBR-24"]
[[field]]
to = "step.description"
from = "OBR-4"
table = "nowhere"
[[field]]
to = "step.start"
from = ["OBR-x"]
when = ["what?"]
[[station]]
priority = "high"
ae_titles = ["TOO LONG A TITLE FOR ONE"]
[[message]]
type = "ORU"
means = "nothing"
[identity]
known = "maybe"
unknown = "maybe"
[controls]
enabled = ["NW", "ZZ"]
[controls.meanings]
X = "Y"
[tables.sections]
RAD = 1
"""
    found, problems = profile.look(BASE + text)
    assert found is None
    lines = [3, 4, 5, 9, 11, 15, 16, 19, 20, 22, 23, 26, 28, 29, 31, 33, 35]
    assert [one.line for one in problems if not one.warning] == lines
    with pytest.raises(ConfigError) as refused:
        made(text)
    assert "line 3" in refused.value.place


def test_a_profile_whose_base_is_wrong_tells_its_own_faults_too():
    text = '[[field]]\nto = "a.b"\n[[field]]\nto = "step.modality"\ntable = "of the base"\n[[field]]\nto = "step.start"\nfrom = ["x"]\n'
    for extends, line in (('"nobody"', 2), ("7", 2)):
        _, problems = profile.look(f'name = "own"\nextends = {extends}\n{text}')
        assert [one.line for one in problems] == [line, 4, 10]
    _, problems = profile.look(f'name = "O W N"\n{text}')
    assert [one.line for one in problems] == [1, 3, 6, 9]


@pytest.mark.parametrize(
    "wrong", ["tables = 1", "field = 1", "field = [1]", "identity = 1", "controls = []", "name = 1", "[tables]\nx = 1"]
)
def test_what_is_no_table_at_all_is_told_once(wrong):
    _, problems = profile.look(wrong if "name" in wrong else f'name = "own"\n{wrong}\n')
    assert len(problems) == 1


def test_the_faults_that_are_told_have_a_limit():
    _, problems = profile.look(BASE + '[[field]]\nto = "a.b"\n' * 1_000)
    assert (len(problems), problems[-1].text) == (profile.FAULTS_MAX + 1, "and 900 more faults; mend these first")


def test_profiles_that_stand_on_each_other_are_refused():
    texts = {"a": 'name = "a"\nextends = "b"\n', "b": 'name = "b"\nextends = "a"\n'}
    (problem,) = profile.look(texts["a"], texts.get)[1]
    assert (problem.line, "a -> b -> a" in problem.text) == (2, True)
    (problem,) = profile.look('name = "a"\nextends = "c"\n', texts.get)[1]
    assert problem.text == "no such profile: c"


def test_a_table_that_nothing_uses_is_told():
    assert [(one.line, one.warning) for one in profile.look(BASE + '[tables.x]\nA = "B"\n')[1]] == [(3, True)]


@pytest.mark.parametrize(
    ("text", "line", "about", "warning"),
    [
        ('[[station]]\nae_titles = ["CT1"]\nwhen = ["step.modalty = CT"]', 5, "step.modalty", False),
        ('[[station]]\nae_titles = ["CT1"]\nwhen = ["!order.priority"]', 5, "step.modality, step.description", False),
        ('[[station]]\nae_titles = ["CT1"]\nwhen = ["OBR-24 == CT"]', 5, "=, !=, ~ or !~", False),
        ('[[station]]\nae_titles = ["CT1"]\nwhen = ["OBR-24 =~ CT"]', 5, "=, !=, ~ or !~", False),
        ('messages = ["ORM^O01", "FOO^O99"]', 3, "FOO^O99", True),
        ('messages = ["ORM^O77"]', 3, "ORM^O01", True),
        ('[[message]]\ntype = "ORU^R99"\nmeans = "report"', 4, "ORU^R99", True),
        (rule("step.modality", "OBR-24", "col:MOD"), 5, "col:MOD", True),
        (rule("step.modality", "OBR-24", when='["col:MOD = CT"]'), 6, "col:MOD", True),
        (rule("step.modality", "MSH-500"), 5, "MSH-500", True),
        ('[[station]]\nae_titles = ["CT1"]\nwhen = ["OBR-200"]', 5, "OBR-200", True),
    ],
)
def test_what_can_never_work_is_told_with_its_line(text, line, about, warning):
    found, problems = profile.look(f"{BASE}{text}\n")
    assert [(one.line, one.warning) for one in problems] == [(line, warning)]
    assert about in problems[0].text
    assert (found is not None) == warning


@pytest.mark.parametrize(
    "text",
    ['messages = ["ORM", "DFT^P03"]\n[[message]]\ntype = "DFT^P03"\nmeans = "ignore"\n',
     rule("patient.id", "col:ID") + rule("step.modality", "OBR-24", "col:MOD", when='["col:MOD != X"]'),
     rule("step.modality", "MSH-200", "OBR-199"),
     '[[station]]\nae_titles = ["CT1"]\nwhen = ["procedure.code_scheme = A", "step.start_time ~ 09*", "OBR-4 = =a|<c>", "OBR-5 = a=b"]\n'],
)  # fmt: skip
def test_what_may_work_is_told_by_nobody(text):
    assert profile.look(BASE + text)[1] == []


def test_fields_are_counted_up_to_the_limit_of_the_site():
    text = BASE + rule("step.modality", "ZZZ-300")
    assert (len(profile.look(text)[1]), profile.look(text, fields_max=400)[1]) == (1, [])


def test_what_can_never_work_is_told_beside_a_base_that_is_not_there():
    text = 'name = "own"\nextends = "nobody"\nmessages = ["FOO^O99"]\n' + rule("step.modality", "OBR-24", "MSH-500")
    text += '[[station]]\nae_titles = ["CT1"]\nwhen = ["step.modalty = CT", "OBR-24 == CT"]\n'
    problems = profile.look(text)[1]
    assert [(one.line, one.warning) for one in problems] == [(2, False), (9, False), (9, False), (3, True), (6, True)]


def test_a_column_is_not_odd_where_the_base_that_may_name_the_patients_is_not_there():
    text = 'name = "own"\nextends = "nobody"\n' + rule("step.modality", "col:MOD")
    assert [one.line for one in profile.look(text)[1]] == [2]


def test_a_station_rule_with_a_fault_makes_no_other_one_dead():
    rules = '[[station]]\nae_titles = ["CT1"]\nwhen = ["OBR-24 == CT"]\n[[station]]\nae_titles = ["CT2"]\n'
    assert [one.line for one in profile.look(BASE + rules)[1]] == [5]


def test_the_types_that_a_profile_may_name_are_those_that_are_read():
    assert set(road.READERS) == profile.TYPES


# A column


def test_a_row_is_read_by_the_names_of_its_columns():
    row = paths.row(["ID", "Name", "Code"], ["12", "山田^太郎", "A1^胸部^99L~B2^腹部^99L"], 7)
    scope = Group.of([row])
    text = rule("step.description", "col:Name") + rule("step.ScheduledProtocolCodeSequence", "col:Code")
    fields, attributes = made(text + rule("step.sps_id", "col:Nothing", "col:ID")).said("step", scope, SITE, new=True)
    assert (fields["sps_id"], fields["description"]) == ("12", "山田^太郎")
    assert [one["CodeValue"] for one in attributes["ScheduledProtocolCodeSequence"]] == ["A1", "B2"]
    with pytest.raises(BrokerError) as refused:
        made(rule("step.modality", "col:Name")).said("step", scope, SITE, new=True)
    assert refused.value.place == "line 7, Name"


# Trying it


def test_a_trial_tells_the_source_of_each_value_and_what_is_not_used():
    """B1 row 8: mapped, dropped, passed over."""
    msg = parsed(PID, "PV1|1|I|7W", field(ORC, 18, "CT1"), field(field(OBR, 27, "^^^20251202"), 15, "spine"))
    tried = trial.try_message(msg, made(""), SITE)
    ((title, values),) = tried.items
    sources = {one.keyword: one.source for one in values}
    assert title == "NW ACC1 SPS1"
    assert (sources["Modality"], sources["ScheduledStationAETitle"], sources["AccessionNumber"]) == (
        "OBR-24", "ORC-18", "OBR-18",
    )  # fmt: skip
    assert sources["ScheduledProcedureStepStartTime"] == "ORC-7.4"
    assert sources["StudyInstanceUID"] == "made here (derive)"
    assert ("OBR-27", "step.start", "ORC-7.4") in tried.passed
    assert tried.dropped == ["PV1-2", "OBR-15"]
    assert ("PID-5", "the program") in tried.used


def test_a_trial_of_a_message_that_is_refused_says_why():
    tried = trial.try_message(parsed(PID, ORC, field(OBR, 18, "")), made(""), SITE)
    assert (tried.items, tried.error[:12]) == ([], "101 OBR^1^18")


def test_a_trial_names_the_station_rule_and_the_default():
    text = STATIONS + rule("step.PreMedication", "OBR-21", default='"none"')
    ((_, values),) = trial.try_message(parsed(PID, ORC, OBR), made(text), SITE).items
    sources = {one.keyword: one.source for one in values}
    assert (sources["ScheduledStationAETitle"], sources["PreMedication"]) == ("station rule of line 4", "default")


# Several values, and dates


@pytest.mark.parametrize(("said", "status"), [("B6", 3), ("A2~B6", 3), ("A2", None), ("A2~A3", None), ("~B6", 3)])
def test_the_first_repetition_that_the_table_knows_counts(said, status):
    """5.4, PV1-15: a pregnant patient has other ambulatory statuses, too."""
    assert order("", ORC, OBR, f"PV1|1|O{'|' * 13}{said}").attributes["PregnancyStatus"] == status


@pytest.mark.parametrize(("source", "room"), [("OBR-21", "B"), ("OBR-21[1]", None), ("OBR-21[2]", "B")])
def test_a_repetition_that_is_named_stays_the_one_that_is_named(source, room):
    text = rule("step.ScheduledProcedureStepLocation", source, table='"t"') + '[tables.t]\nY = "B"\n'
    assert step(text, ORC, field(OBR, 21, "X~Y")).attributes["ScheduledProcedureStepLocation"] == room


@pytest.mark.parametrize(
    ("said", "date"),
    [("19700111", "19700111"), ("1970-01-11", "19700111"), ("1970/1/11", "19700111"), ("1970-1-11", "19700111"),
     ("1970/01/11 09:30", "19700111"), ('""', ""), ("", None)],
)  # fmt: skip
def test_a_date_is_read_by_its_parts(said, date):
    attributes = order(rule("visit.LastMenstrualDate", "PV1-44"), ORC, OBR, f"PV1|1|O{'|' * 42}{said}").attributes
    assert attributes["LastMenstrualDate"] == date


@pytest.mark.parametrize(
    "said", ["1970111", "1970/111", "1970-1/11", "70/1/11", "1970/13/1", "1970-01", "1970011", "0001-01-01"]
)
def test_what_could_be_two_dates_is_refused(said):
    """1970111 is the 11th of January or the 1st of November."""
    with pytest.raises(InvalidValue) as refused:
        order(rule("visit.LastMenstrualDate", "PV1-44"), ORC, OBR, f"PV1|1|O{'|' * 42}{said}")
    assert (refused.value.err, refused.value.place) == ("102", "PV1^1^44")


def test_a_deleted_code_is_not_looked_for_elsewhere():
    text = rule("step.ScheduledProtocolCodeSequence", "OBR-44", "OBR-4")
    assert step(text, ORC, field(OBR, 44, '""')).attributes["ScheduledProtocolCodeSequence"] == []


def test_a_priority_without_a_table_is_read_in_either_case():
    text = rule("order.priority", "OBR-5")
    assert [order(text, ORC, field(OBR, 5, said)).priority for said in ("stat", "High", "x")] == [
        "STAT", "HIGH", "ROUTINE",
    ]  # fmt: skip


def test_another_table_knows_its_codes_as_they_are_written():
    text = rule("step.modality", "OBR-5", table='"t"') + '[tables.t]\nct = "MR"\nCT = "CT"\n'
    assert [step(text, ORC, field(OBR, 5, said)).modality for said in ("ct", "CT", "Ct")] == ["MR", "CT", None]
