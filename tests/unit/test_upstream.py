"""Another provider's worklist without a database: what an entry says, what an answer is, when it is asked."""

import contextlib
import datetime as dt
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker import clock
from broker.config import Limits, Settings, Site
from broker.dicom import dimse, find_client, pdu, tree
from broker.dicom.find_client import REJECTIONS, Answers, Bounds, Provider
from broker.dicom.service import Response
from broker.errors import BrokerError, ConfigError
from broker.model.upstream import Upstream, UpstreamEntry
from broker.mwl.commands import Identifier
from broker.ris_bridge import upstream, upstream_effect, upstream_item, upstream_road
from broker.ris_bridge.upstream import Heard, Listing
from broker.ris_bridge.upstream_effect import Voice
from broker.ris_bridge.upstream_item import Reads
from broker.site_toml import emit, parse
from tests.providers import MWL, Scripted, final, item, pending

AT = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
READS = Reads(Site(), Limits())


def entry(raw: bytes, **reads: object) -> upstream_item.Entry:
    return upstream_item.entry(raw, replace(READS, **reads), AT)


# What an entry says


def test_an_entry_is_an_order_that_is_known_by_its_issuers():
    command = entry(
        item(OtherPatientIDsSequence=[{"PatientID": "7", "IssuerOfPatientID": "NHS"}, {"PatientID": "8"}])
    ).command
    assert (command.control, command.known, command.at) == ("NW", "change", AT)
    assert (command.accession_number, command.accession_issuer, command.is_issuer_assumed) == ("ACC001", "RIS", False)
    assert command.patient.identifiers == (Identifier("0000012345", "HOSP"), Identifier("7", "NHS"))


def test_the_issuers_of_the_provider_stand_in_for_those_that_an_entry_does_not_name():
    bare = item(IssuerOfPatientID=None, IssuerOfAccessionNumberSequence=None)
    site = Site(patient_id_issuer="SITE", accession_issuer="SITE")
    for reads, issuer in (({"patient_id_issuer": "N", "accession_issuer": "N"}, "N"), ({}, "SITE")):
        command = entry(bare, site=site, **reads).command
        assert (command.accession_issuer, command.patient.identifiers[0].issuer) == (issuer, issuer)
    assert command.is_issuer_assumed


def test_a_universal_id_names_an_issuer_and_is_kept_whole():
    entity = {"UniversalEntityID": "1.2.392.9", "UniversalEntityIDType": "ISO"}
    command = entry(item(IssuerOfAccessionNumberSequence=[entity])).command
    assert command.accession_issuer == "1.2.392.9"
    assert command.attributes["IssuerOfAccessionNumberSequence"] == [entity]


@pytest.mark.parametrize(
    ("name", "pn"),
    [
        ("YAMADA^TARO=山田^太郎=やまだ^たろう", "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"),
        ("=山田^太郎", "=山田^太郎"),
        ("山田^太郎", "=山田^太郎"),
        ("SMITH^ANNA^M^DR^JR", "SMITH^ANNA^M^DR^JR"),
    ],
)
def test_a_name_stands_as_other_roads_bring_it(name, pn):
    assert entry(item(PatientName=name, character_set="ISO_IR 192")).command.patient.name == pn


@pytest.mark.parametrize(
    "character_set", ["\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87", "ISO_IR 192", "GB18030"]
)
def test_text_is_read_in_the_set_that_the_entry_names_whatever_the_provider_is_told_to_use(character_set):
    for default in ("", "ISO_IR 100", "\\ISO 2022 IR 87"):
        found = entry(item(PatientName="YAMADA^TARO=山田^太郎", character_set=character_set), character_set=default)
        assert found.command.patient.name == "YAMADA^TARO=山田^太郎"


def test_text_in_a_set_that_is_not_named_is_read_by_the_providers_and_never_guessed():
    raw = item(character_set="\\ISO 2022 IR 87")
    head = tree.write({tree.CHARSET: ("CS", "\\ISO 2022 IR 87")}, tree.IMPLICIT_LE, ("",))
    assert raw.startswith(head)
    bare = raw[len(head) :]
    with pytest.raises(BrokerError, match="the character_set of the provider"):
        entry(bare)
    with_length = b"\x08\0\0\0\x04\0\0\0" + (40).to_bytes(4, "little") + bare
    for one in (bare, with_length):
        assert "山田^太郎" in entry(one, character_set="\\ISO 2022 IR 87").command.patient.name


def test_a_start_in_another_zone_is_that_of_the_site():
    raw = item(TimezoneOffsetFromUTC="+0000", step={"ScheduledProcedureStepStartDate": "20251201",
                                                    "ScheduledProcedureStepStartTime": "233015.5"})  # fmt: skip
    step = entry(raw).step
    assert (step.start_date, step.start_time) == ("20251202", "083015")


@pytest.mark.parametrize(
    ("said", "kept"), [("0930", "093000"), ("09", "090000"), ("09:30:15", "093015"), ("235960", "235959"), ("", None)]
)
def test_a_time_is_whole_whatever_its_precision(said, kept):
    assert entry(item(step={"ScheduledProcedureStepStartTime": said or None})).step.start_time == kept


@pytest.mark.parametrize("said", ["2460", "9", "0960", "ab"])
def test_a_time_that_is_none_refuses_the_entry(said):
    with pytest.raises(BrokerError, match=r"\(0040,0003\): is no time"):
        entry(item(step={"ScheduledProcedureStepStartTime": said}))


def test_an_identifier_is_never_cut_and_a_text_is():
    long = "x" * 80
    assert len(entry(item(RequestedProcedureDescription=long)).procedure.description) == 64
    for name in ("AccessionNumber", "RequestedProcedureID", "PatientID", "PlacerOrderNumberImagingServiceRequest"):
        for bad in (long, "A\\B", "A\x07B"):
            with pytest.raises(BrokerError, match="is longer than"):
                entry(item(**{"accession": bad} if name == "AccessionNumber" else {name: bad}))


def test_what_cannot_be_kept_is_left_out_and_named():
    found = entry(item(PatientWeight="heavy", SmokingStatus="sometimes", LastMenstrualDate="20251399",
                       ReasonForRequestedProcedureCodeSequence=[{"CodeMeaning": "x"}]))  # fmt: skip
    assert found.left_out == ("PatientWeight", "LastMenstrualDate", "SmokingStatus") or set(found.left_out) == {
        "PatientWeight", "LastMenstrualDate", "SmokingStatus",
    }  # fmt: skip
    assert "ReasonForRequestedProcedureCodeSequence" not in found.procedure.attributes


def test_of_an_item_of_a_sequence_what_no_worklist_returns_is_left_aside():
    code = {"CodeValue": "1", "CodingSchemeDesignator": "99L", "CodeMeaning": "x"}
    found = entry(item(step={"ScheduledProtocolCodeSequence": [{**code, "ContextIdentifier": "9"}]}))
    assert found.step.attributes["ScheduledProtocolCodeSequence"] == [code]


@pytest.mark.parametrize(("said", "kept"), [("STAT", "STAT"), ("high", "HIGH"), ("soon", "ROUTINE"), (None, None)])
def test_a_priority_is_one_of_the_defined_terms(said, kept):
    assert entry(item(RequestedProcedurePriority=said)).command.priority == kept


@pytest.mark.parametrize("name", ["accession_number", "requested_procedure_id", "sps_id", "study_instance_uid"])
def test_a_site_that_rejects_what_has_no_number_rejects_it_here(name):
    lacking = {
        "accession_number": item(""), "requested_procedure_id": item(RequestedProcedureID=None),
        "sps_id": item(step={"ScheduledProcedureStepID": None}), "study_instance_uid": item(StudyInstanceUID=None),
    }[name]  # fmt: skip
    assert entry(lacking).command.control == "NW"
    with pytest.raises(BrokerError, match="is required"):
        entry(lacking, site=Site(**{f"missing_{name}": "reject"}))


def test_the_label_of_the_provider_stands_before_that_of_the_entry():
    raw = item(WorklistLabel="THEIRS")
    assert (entry(raw).step.label, entry(raw).command.label) == ("THEIRS", "")
    assert (entry(raw, label="OURS").step.label, entry(raw, label="OURS").command.label) == (None, "OURS")


@pytest.mark.parametrize("label", ["HEART,LUNG", "A\\B", "A\x07B", "x" * 65])
def test_a_label_that_no_node_can_name_is_left_out(label):
    found = entry(item(WorklistLabel=label))
    assert (found.step.label, found.left_out) == (None, ("WorklistLabel",))
    assert entry(item(WorklistLabel=label), label="OURS").left_out == (), "which is not looked at then"


def test_several_items_of_one_step_are_the_identifiers_as_they_came():
    parts = [item(), item(step={"ScheduledStationAETitle": "CT2"})]
    assert upstream_item.parted(upstream_item.joined(parts)) == parts
    assert upstream_item.joined(parts[:1]) == parts[0]
    assert entry(upstream_item.joined(parts)).step.station_ae_titles == ("CT1", "CT2")
    for bad in (b"\xfe\xff\x00\xe0", upstream_item.ITEM + b"\x00\x00\x00\x00x"):
        with pytest.raises(BrokerError):
            entry(bad)


@pytest.mark.parametrize("other", [{"PatientSex": "F"}, {"PatientWeight": "7"}, {"step": {"Modality": "MR"}}])
def test_one_step_that_is_listed_with_two_contents_is_refused(other):
    with pytest.raises(BrokerError, match="listed twice"):
        entry(upstream_item.joined([item(), item(**other)]))


def test_two_items_without_a_step_id_are_not_taken_for_one():
    parts = [
        item(step={"ScheduledProcedureStepID": None, "ScheduledStationAETitle": title}) for title in ("CT1", "CT2")
    ]
    with pytest.raises(BrokerError, match="listed twice"):
        entry(upstream_item.joined(parts))


def test_numbers_that_an_entry_does_not_have_are_the_same_each_time():
    policies = entry(item()).command.policies
    assert (policies.requested_procedure_id, policies.sps_id, policies.study_instance_uid) == ("derive",) * 3


@pytest.mark.parametrize(("said", "kept"), [("M", "M"), ("f", "F"), ("O", "O"), ("X", None), (None, None)])
def test_a_sex_is_one_of_the_defined_terms(said, kept):
    assert entry(item(PatientSex=said)).command.patient.sex == kept


def test_escapes_of_a_set_that_is_not_named_are_no_text():
    for named in ("ISO_IR 6", "ISO_IR 100", "ISO_IR 192"):
        with pytest.raises(BrokerError, match="in which set its text is"):
            entry(item(character_set=named, raw_as="\\ISO 2022 IR 87"))


@pytest.mark.parametrize(
    ("said", "fits", "is_still"),
    [
        ({}, True, True),
        ({"PatientSex": "F"}, False, False),
        ({"PatientSex": None}, True, True),
        ({"step": {"Modality": "MR"}}, False, False),
        ({"step": {"Modality": None}}, True, True),
        ({"step": {"ScheduledStationAETitle": "CT2"}}, True, False),
        ({"step": {"ScheduledProcedureStepStartDate": "20200101"}}, False, False),
    ],
)
def test_what_was_not_asked_for_is_seen_by_the_values_that_are_told(said, fits, is_still):
    source = Upstream(name="n", host="h", port=1, ae_title="A", modality="CT", station_ae_title="CT1",
                      keys={"PatientSex": "M"})  # fmt: skip
    asked = upstream.question(source, Settings(), clock.now()).asked
    found = upstream_item.read(item(**said), READS)
    assert upstream_item.is_asked_for(found, asked) == fits
    assert upstream_item.is_asked_for(found, asked, but=()) == is_still


def test_what_reads_the_same_bytes_otherwise_has_another_digest():
    others = [replace(READS, **{name: "X"}) for name in ("patient_id_issuer", "accession_issuer", "character_set")]
    assert len({one.digest for one in (READS, *others, replace(READS, site=Site(accession_issuer="Y")))}) == 5
    for one in (replace(READS, label="X"), replace(READS, site=Site(name="X", language="en"))):
        assert one.digest == READS.digest


# The question


def test_the_question_asks_for_all_that_an_order_carries_and_for_nothing_else():
    source = Upstream(name="n", host="h", port=1, ae_title="A", modality="CT", station_ae_title="CT1", days_before=-1,
                      days_after=3, keys={"InstitutionName": "北"})  # fmt: skip
    question = upstream.question(source, Settings(), AT)
    asked = tree.read(question.identifier, tree.IMPLICIT_LE, Limits())
    ((_, (step,)),) = [asked.pop(0x00400100)]
    values = {tag: value for one in (asked, step) for tag, (_, value) in one.items() if value}
    assert values == {0x00080005: "ISO_IR 192", 0x00080060: "CT", 0x00080080: "北", 0x00400001: "CT1",
                      0x00400002: "-20251204"}  # fmt: skip
    assert {0x00080201, 0x0040A390, 0x00080052} & asked.keys() == set()
    assert len(asked) > 60
    assert asked[0x00080080][1] == "北", "of the item, not of its step"
    assert question.provider.calling == "BROKER"


def test_days_without_borders_are_not_asked_for():
    source = Upstream(name="n", host="h", port=1, ae_title="A", days_before=-1, days_after=-1)
    asked = upstream.question(source, Settings(), AT).asked
    assert asked[0x00400100][1][0][0x00400002] == ("DA", "")
    assert tree.CHARSET not in asked


# When it is asked, and what it came to


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 60), (2, 60), (3, 120), (4, 240), (6, 900), (1_000_000, 900)]
)  # fmt: skip
def test_after_some_failures_each_further_one_doubles_the_wait(failures, seconds):
    assert upstream.pause(failures, 60, Limits()) == seconds
    assert upstream.pause(failures, 3600, Limits()) == 3600


def test_no_pause_is_as_long_as_a_wait_that_only_a_wrong_clock_can_have_told():
    longest = 24 * 3600
    with pytest.raises(ValueError, match="upstream_retry_seconds_max"):
        Limits(upstream_retry_seconds_max=longest + 1)
    pause = upstream.pause(1_000_000, longest, Limits(upstream_retry_seconds_max=longest))
    assert dt.timedelta(seconds=pause) < upstream.WAIT_MAX


@pytest.mark.parametrize(("lease", "question", "seconds"), [(60, 15, 60), (60, 45, 90)])
def test_a_turn_is_as_long_as_any_lease_and_longer_than_its_question(lease, question, seconds):
    assert upstream._lease(Limits(lease_seconds=lease, upstream_seconds_max=question)) == seconds


def test_the_breaker_is_half_open_when_its_time_has_come():
    now = clock.now()
    source = Upstream(name="n", host="h", port=1, ae_title="A", failures=3, next_at=now)
    assert upstream.breaker(source, Limits(), now) == "half-open"
    assert upstream.breaker(source, Limits(), now - dt.timedelta(seconds=1)) == "open"


@pytest.mark.parametrize(
    ("known", "outcome"),
    [
        (None, "new"), ({}, "unchanged"), ({"digest": "other"}, "changed"), ({"refusal": "no"}, "refused"),
        ({"refusal": "no", "digest": "other"}, "changed"), ({"gone_at": AT}, "changed"),
    ],
)  # fmt: skip
def test_an_entry_is_new_changed_or_as_it_was(known, outcome):
    row = (
        None
        if known is None
        else UpstreamEntry(**{"upstream_pk": 1, "identity": "a", "digest": "d", "last_at": AT, **known})
    )
    assert upstream.outcome_of(Heard("a", b"", "d"), row) == outcome
    assert upstream.outcome_of(Heard("a", b"", "d", over=True), row) == "over"


def test_only_an_answer_that_is_whole_lacks_something():
    known = {name: UpstreamEntry(upstream_pk=1, identity=name, missed=2, last_at=AT) for name in "ab"}
    known["c"] = UpstreamEntry(upstream_pk=1, identity="c", missed=2, last_at=AT, gone_at=AT)
    source = Upstream(name="n", host="h", port=1, ae_title="A", gone_after=3)
    seen = Heard("a", b"", "")
    assert upstream.gone_of(Listing([seen]), known, source) == ["b"]
    assert upstream.gone_of(Listing([seen], error="x"), known, source) == []
    assert upstream.gone_of(Listing([seen, Heard("z", b"", "", unreadable=True)]), known, source) == []
    source.gone_after = 4
    assert upstream.gone_of(Listing([seen]), known, source) == []


def test_an_answer_in_another_order_is_the_same():
    source = Upstream(name="n", host="h", port=1, ae_title="A")
    parts = [item(), item(step={"ScheduledStationAETitle": "CT2"}), item("ACC002")]
    asked = upstream.question(source, Settings(), clock.now()).asked
    first, second = (
        {(one.identity, one.raw) for one in upstream.listing_of(Answers(raws), source, asked, Settings()).entries}
        for raws in (parts, parts[::-1])
    )
    assert first == second
    assert len(first) == 2


def test_where_a_list_stands_before_a_name_the_time_tells_whose_word_it_is():
    row = upstream_effect.ImagingOrder(
        patient_pk=1, accession_number="A",
        said={"born": "1", "listed:born": "1 north", "X": "2", "listed:X": "2 far north", "Y": "3", "listed:Y": "2 north"},
    )  # fmt: skip
    for stronger, may in ((set(), True), ({"far"}, True), ({"far north"}, False)):
        assert upstream_effect._may_replace(row, "X", Voice("west", "3", frozenset(stronger))) == may
    assert not upstream_effect._may_replace(row, "Y", Voice("west", "4")), "somebody said it since"
    assert not upstream_effect._may_replace(row, "Z", Voice("west", "4"))


@pytest.mark.parametrize(
    ("missing", "seen", "few"), [(5, 0, False), (6, 0, True), (6, 6, False), (7, 6, True), (40, 60, False)]
)
def test_more_than_some_and_more_than_half_are_not_believed_to_be_gone_at_once(missing, seen, few):
    assert upstream.are_few(missing, seen) == few


def test_what_no_order_carries_does_not_make_another_entry():
    def digest(**said: object) -> str:
        return upstream_road.digest(item(**said), READS)

    assert digest(InstanceCreationTime="100000", step={"ContentTime": "1"}) == digest(InstanceCreationTime="100001")
    others = [{}, {"RequestingService": "X"}, {"step": {"Modality": "MR"}}, {"TimezoneOffsetFromUTC": "+0100"},
              {"character_set": "ISO_IR 192"}]  # fmt: skip
    assert len({digest(**said) for said in others}) == 5
    assert upstream_road.digest(b"\xff" * 9, READS) != upstream_road.digest(b"\xff" * 8, READS)


def test_the_road_finds_a_refused_entry_by_what_can_be_read_of_it():
    keys = upstream_road.ROAD.keys(item("ACC001", StudyInstanceUID="1.2.x"))
    assert {("accession", "ACC001"), ("study", "1.2.x"), ("patient", "0000012345")} == keys
    assert upstream_road.ROAD.keys(b"\xff\xff") == frozenset()


# The site file

FILE = """[[upstream]]
name = "north"
host = "10.0.0.9"
port = 104
ae_title = "WLM"
modality = "CT"
days_before = -1
keys = {InstitutionName = "NORTH", PatientSex = "M"}
label = "north"
character_set = "\\\\ISO 2022 IR 87"
gone = "cancel"
"""


def test_a_site_file_says_it_and_is_written_back():
    assert emit(parse(FILE, "site.toml")) == FILE


@pytest.mark.parametrize(
    ("line", "instead", "error"),
    [
        ('host = "10.0.0.9"', 'host = ""', "host"),
        ("port = 104", "port = 0", "port"),
        ('ae_title = "WLM"', 'ae_title = "TOO LONG A TITLE!"', "ae_title"),
        ('PatientSex = "M"', 'ScheduledProtocolCodeSequence = "M"', "keyword"),
        ('PatientSex = "M"', 'SpecificCharacterSet = "M"', "keyword"),
        ('PatientSex = "M"', 'PatientBirthDate = "19709999"', "PatientBirthDate"),
        ("ISO 2022 IR 87", "SJIS", "0008,0005"),
        ('gone = "cancel"', 'gone = "forget"', "gone"),
        ("days_before = -1", "days_before = -2", "days_before"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(line, instead, error):
    assert line in FILE
    with pytest.raises(ConfigError, match=error):
        parse(FILE.replace(line, instead), "site.toml")


# What comes over the wire


@pytest.fixture
def provider() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def ask(provider: Scripted, seconds: float = 1) -> Answers:
    source = Upstream(name="n", host="127.0.0.1", port=provider.port, ae_title="WLM")
    question = upstream.question(source, Settings(), clock.now())
    return find_client.ask(question.provider, MWL, question.identifier, Bounds(seconds, 5, 100_000, Limits()))


def huge(wire, command, context) -> None:
    wire.send(b"\x04\x00\xff\xff\xff\xff")


def long_item(wire, command, context) -> None:
    head = dimse.response(command, Response(0xFF00, b"follows"), dimse_n=False)
    wire.send(pdu.p_data(context, head, is_command=True, peer_bytes_max=0))
    part = pdu.p_data(context, b"\0" * 30_000, is_command=False, peer_bytes_max=0)
    for _ in range(100):
        wire.send(part[:11] + b"\0" + part[12:])  # none is the last


def long_command(wire, command, context) -> None:
    part = pdu.p_data(context, b"\0" * 30_000, is_command=True, peer_bytes_max=0)
    for _ in range(100):
        wire.send(part[:11] + b"\1" + part[12:])


def no_identifier(wire, command, context) -> None:
    wire.send(final(command, context, 0xFF00))


def twice(wire, command, context) -> None:
    wire.send(pdu.p_data(context, item(), is_command=False, peer_bytes_max=0))


def another_message(wire, command, context) -> None:
    wire.send(final(replace(command, message_id=7), context, 0))


def another_context(wire, command, context) -> None:
    wire.send(final(command, context + 2, 0))


def nonsense(wire, command, context) -> None:
    wire.send(pdu.p_data(context, b"\xff" * 40, is_command=True, peer_bytes_max=0))


def cut(wire, command, context) -> None:
    wire.send(b"\x04\x00\x00\x00\x00\x03\x00\x00\x00")


def abort(wire, command, context) -> None:
    wire.send(pdu.abort())


def stall(wire, command, context) -> None:
    wire.send(b"\x04\x00\x00\x00\x01\x00")
    time.sleep(3)


def drip(wire, command, context) -> None:
    for byte in pending(command, context, item()):
        wire.send(bytes([byte]))
        time.sleep(0.05)


def test_the_time_for_an_answer_is_counted_once_for_its_head_and_its_body(provider):
    sent, is_over = [], threading.Event()

    def late_and_slow(wire, command, context) -> None:
        time.sleep(0.9)
        with contextlib.suppress(pdu.Gone):
            for byte in b"\x04\x00\x00\x00\x10\x00" + bytes(30):
                wire.send(bytes([byte]))
                sent.append(byte)
                time.sleep(0.1 if len(sent) > 6 else 0)
        is_over.set()

    provider.play = late_and_slow
    assert ask(provider, 1).error == "gave no answer in 1 seconds"
    assert is_over.wait(10)
    assert len(sent) < 15, "what is left of the second, and not another one"


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (huge, "broke the protocol: PDU of 4294967295 bytes"),
        (long_item, "has more than 100000 bytes of answers: ask for less (modality, station, days)"),
        (long_command, "broke the protocol: more than 65536 bytes of a command or identifier"),
        (no_identifier, "broke the protocol: an answer without its identifier, or a final one with it"),
        (twice, "broke the protocol: fragments out of order"),
        (another_context, "broke the protocol: fragments out of order"),
        (another_message, "broke the protocol: a command that answers nothing"),
        (nonsense, "broke the protocol: a command set cannot be read"),
        (cut, "broke the protocol: PDV header cut"),
        (abort, "ended the association before its last answer"),
        (drip, "gave no answer in 0.3 seconds"),
        (stall, "gave no answer in 0.3 seconds"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
def test_a_provider_that_breaks_the_rules_ends_its_answer(provider, play, error):
    provider.play = play
    begun = time.monotonic()
    answers = ask(provider, 0.3 if play in (drip, stall) else 5)
    assert answers.identifiers == []
    assert answers.error == error
    assert time.monotonic() - begun < 2


def test_a_provider_that_offers_no_worklist_is_told_of(provider):
    provider.offer_nothing()
    assert ask(provider).error == "offers no worklist (the SOP class was not accepted)"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (0x0000, ""), (0xA700, "too many answers"), (0xA701, "too many answers"), (0xA900, "these keys"),
        (0xC123, "could not"), (0xFE00, "cancelled"), (0x0122, "no worklist"), (0x0124, "not permit"),
        (0x0001, "could not"),
    ],
)  # fmt: skip
def test_each_final_status_is_told_in_words(provider, status, word):
    provider.status, provider.entries = status, [item()]
    answers = ask(provider)
    assert answers.identifiers == [item()]
    assert answers.error == "" if status == 0 else answers.error.startswith(f"status {status:04X}: ")
    assert word in answers.error


def test_as_many_answers_as_are_allowed_are_all_and_one_more_is_too_many(provider):
    provider.entries = [item()] * 5
    assert ask(provider) == Answers(provider.entries)
    provider.entries = [item()] * 6
    answers = ask(provider)
    assert len(answers.identifiers) == 5
    assert answers.error == "has more than 5 answers: ask for less (modality, station, days)"


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (pdu.reject(1, 1, 3), f"refused the association: {REJECTIONS[1, 3]}"),
        (pdu.reject(1, 1, 7), f"refused the association: {REJECTIONS[1, 7]}"),
        (pdu.reject(2, 3, 9), "refused the association: reason 3/9"),
        (pdu.abort(), "ended the association at once"),
        (b"\x02\x00\x00\x00\x00\x04abcd", "broke the protocol: A-ASSOCIATE-AC cannot be decoded"),
        (b"\x05\x00\x00\x00\x00\x04abcd", "broke the protocol: PDU type 05 in answer to A-ASSOCIATE-RQ"),
        (b"GET / HT", "broke the protocol: PDU type 47"),
    ],
)
def test_a_provider_that_takes_no_association_is_told_of(provider, refusal, error):
    provider.refusal = refusal
    assert ask(provider).error == error


def test_a_provider_that_cannot_be_reached_is_told_of(provider):
    provider.close()
    assert ask(provider).error == "cannot be connected to: Connection refused"
    nowhere = Provider("no-such-host.invalid", 104, "A", "B")
    assert find_client.ask(nowhere, MWL, b"", Bounds(5, 1, 1, Limits())).error.startswith("its host is not known: ")
