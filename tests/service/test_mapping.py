"""Profiles of the site: versions, one of each in use, seen by the next message; nothing is tried on real rows."""

import datetime as dt

import pytest
from sqlmodel import delete, select

from broker import clock, db, site
from broker.errors import BrokerError, ConfigError, DuplicateKey, InvalidValue, UnknownKey
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, Report, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.model.site import MappingProfile, Sender
from broker.model.work import AuditEvent
from broker.ris_bridge.hl7 import road
from broker.ris_bridge.mapping import profile, store, trial

MINE = 'name = "mine"\nextends = "ihe-rad4-2.3.1"\n'
ROOM = MINE + '[[field]]\nto = "step.ScheduledProcedureStepLocation"\nfrom = ["OBR-21"]\n'
PID = "PID|1||0000012345^^^HOSP^PI||YAMADA^TARO||19700101|M"
OBR = "OBR|1|{p}^HIS|F1^RIS|CTCHEST^胸部CT^99LOCAL||||||||||||||{a}|RP1|SPS1|CT室1|||CT"


def put(text: str) -> tuple[str, int, str]:
    return db.run(store.put, text, now=clock.now(), actor="test")


def order_message(number: int, application: str = "HIS") -> bytes:
    head = f"MSH|^~\\&|{application}|HOSP|C|D|2025120108550{number}||ORM^O01|M{number}|P|2.3.1||||||UNICODE UTF-8"
    orc = f"ORC|NW|P{number}^HIS|F1^RIS||SC||^^^20251201093000"
    return "\r".join((head, PID, orc, OBR.format(p=f"P{number}", a=f"ACC{number}"))).encode()


def send(raw: bytes, settings) -> bytes:
    return road.receive(raw, "127.0.0.1", settings).raw


def register(mapping: str) -> None:
    db.run(site.add_sender, "his", now=clock.now(), actor="test", application="HIS", mapping=mapping)


def journalled() -> list[Message]:
    return list(db.read(lambda session: session.exec(select(Message).order_by(Message.pk)).all()))


def test_each_change_is_a_version_and_the_same_text_is_none(database):
    assert [put(MINE), put(MINE), put(ROOM), put(MINE)] == [
        ("mine", 1, "added"), ("mine", 1, "unchanged"), ("mine", 2, "changed"), ("mine", 3, "changed"),
    ]  # fmt: skip
    assert [(row.version, row.active) for row in db.read(store.rows)] == [(3, True), (2, False), (1, False)]
    said = db.read(
        lambda session: session.exec(
            select(AuditEvent).where(AuditEvent.subject == "mapping:mine").order_by(AuditEvent.pk)
        ).all()
    )
    assert [(one.actor, one.detail["version"]) for one in said] == [("test", 1), ("test", 2), ("test", 3)]


def test_an_earlier_version_comes_back(database):
    put(MINE), put(ROOM), put(MINE + "\n")
    back = [db.run(store.rollback, "mine", to, now=clock.now(), actor="test") for to in (None, None, 3)]
    assert back == [2, 1, 3]
    for to in (None, 9):
        name = "none" if to is None else "mine"
        with pytest.raises(UnknownKey):
            db.run(store.rollback, name, to, now=clock.now(), actor="test")
    assert [row.version for row in db.read(store.rows) if row.active] == [3]
    put(ROOM)
    assert db.read(store.text_of, "mine") == ROOM
    assert db.read(store.text_of, "mine", 1) == MINE


def test_a_profile_with_a_fault_is_not_taken_and_a_shipped_one_not_changed(database):
    for text in (MINE + "[tables", 'name = "jahis"\n', 'name = "other"\nextends = "nobody"\n'):
        with pytest.raises((ConfigError, DuplicateKey)):
            put(text)
    assert db.read(store.rows) == []


def test_a_change_below_is_refused_where_it_breaks_what_stands_on_it(database):
    put(MINE + '[tables.t]\nA = "CT"\n')
    put('name = "above"\nextends = "mine"\n[[field]]\nto = "step.modality"\nfrom = ["OBR-5"]\ntable = "t"\n')
    with pytest.raises(ConfigError) as refused:
        put(MINE)
    assert refused.value.place == "mapping above"
    with pytest.raises(ConfigError):
        put(MINE.replace("ihe-rad4-2.3.1", "above"))


def test_the_next_message_is_read_by_the_new_version(database, settings):
    """No restart: the version in use is asked for with each message."""
    register("")
    db.run(lambda session: setattr(session.exec(select(Sender)).one(), "mapping", "mine"))
    assert b"MSA|AE" in send(order_message(1), settings)  # no such profile: told, and looked at again later
    put(MINE)
    assert b"MSA|AA" in send(order_message(1), settings)
    put(ROOM)
    assert b"MSA|AA" in send(order_message(2), settings)
    db.run(store.rollback, "mine", None, now=clock.now(), actor="test")
    assert b"MSA|AA" in send(order_message(3), settings)
    assert [row.mapping for row in journalled()] == ["mine v1", "mine v2", "mine v1"]


def test_a_change_below_is_seen_by_what_stands_on_it(database):
    put(MINE)
    put('name = "above"\nextends = "mine"\n')
    first = db.read(store.load, "above")
    assert db.read(store.load, "above") is first
    put(ROOM)
    targets = {filled.target.text for filled in db.read(store.load, "above").levels["step"]}
    assert "step.ScheduledProcedureStepLocation" in targets
    assert "step.ScheduledProcedureStepLocation" not in {one.target.text for one in first.levels["step"]}


def test_who_has_no_profile_is_read_by_the_shipped_one_of_the_type(database, settings):
    assert b"MSA|AA" in send(order_message(1, "OTHER"), settings)
    assert [row.mapping for row in journalled()] == ["ihe-rad4-2.3.1"]


def test_a_profile_reads_its_own_messages_alone(database):
    put(MINE.replace('.1"\n', '.1"\nmessages = ["OMG^O19"]\n'))
    mine = db.read(store.load, "mine")
    names = [profile.for_sender(mine, kind).name for kind in ("OMG^O19", "ORM^O01")]
    assert names == ["mine", "ihe-rad4-2.3.1"]
    assert profile.for_sender(mine, "ADT^A08") is None


def test_a_message_that_its_profile_ignores_is_answered_and_changes_nothing(database, settings):
    put(MINE)
    register("mine")
    put(MINE + '[[message]]\ntype = "ORM"\nwhen = ["OBR-24 = CT"]\nmeans = "ignore"\n')
    assert b"MSA|AA" in send(order_message(1), settings)
    (row,) = journalled()
    assert (row.state, row.became, row.mapping) == ("APPLIED", "ignored by its profile", "mine v2")
    assert db.read(lambda session: session.exec(select(ImagingOrder)).all()) == []


# Whose numbers are those without an authority

NORTH = MINE + 'messages = ["{}"]\n[identity]\npatient_id_issuer = "NORTH"\naccession_issuer = "NORTHACC"\n'


def said_by(application: str, kind: str, *segments: str, minute: int) -> bytes:
    head = f"MSH|^~\\&|{application}|HOSP|C|D|2025120109{minute:02}00||{kind}|{application}{minute}|P|2.5.1"
    return "\r".join((head + "||||||UNICODE UTF-8", *segments)).encode()


def everyone() -> list[tuple[str, str, str, bool]]:
    """Number, issuer and name of each patient, and whether the number is in use."""
    query = select(PatientIdentifier, Patient).join(Patient, PatientIdentifier.patient_pk == Patient.pk)
    found = db.read(lambda session: session.exec(query).all())
    return sorted((one.value, one.issuer, who.name, not one.retired) for one, who in found)


@pytest.mark.parametrize("own", ["ORM^O01", "OMI^O23"])
def test_every_message_of_a_sender_speaks_of_its_own_patients(database, settings, own):
    """Two hospitals count their patients from 1; whichever messages the profile reads, the numbers are that sender's."""
    settings = settings.model_copy(update={"site": settings.site.model_copy(update={"patient_id_issuer": "HOSP"})})
    put(NORTH.format(own))
    db.run(site.add_sender, "north", now=clock.now(), actor="test", application="NORTH", mapping="mine")

    def tell(kind: str, *segments: str, minute: int, by: str = "NORTH") -> None:
        answer = send(said_by(by, kind, *segments, minute=minute), settings)
        assert b"MSA|AA" in answer, answer

    tanaka, yamada = "PID|1||1||TANAKA^KEN||19500505|M", "PID|1||1||YAMADA^TARO||19700101|M"
    for minute, (by, pid, number) in enumerate((("HIS", yamada, "H"), ("NORTH", tanaka, "N"))):
        obr = f"OBR|1|P{number}||CT^CT^L||||||||||||||ACC1|RP1|SPS1||||CT"
        orc = f"ORC|NW|P{number}|||||^^^20251203093000"
        tell("ORM^O01", pid, orc, obr, minute=minute, by=by)
    tell("ADT^A08", tanaka.replace("KEN", "KENJI"), minute=2)
    assert everyone() == [("1", "HOSP", "YAMADA^TARO", True), ("1", "NORTH", "TANAKA^KENJI", True)]
    tell("ADT^A10", tanaka, "PV1|1|O", "ORC|SC|PN", "OBR|1|PN" + "|" * 16 + "ACC1", minute=3)
    tell("SIU^S13", f"SCH|A1{'|' * 25}PN", tanaka, "RGS|1", "AIS|1|||20251204100000", minute=4)
    result = "OBR|1|PN|R1|CT^CT" + "|" * 14 + "ACC1||||20251204110000|||F"
    tell("ORU^R01", tanaka, "ORC|RE|PN", result, "OBX|1|TX|D||正常||||||F", minute=5)
    orders = db.read(lambda session: session.exec(select(ImagingOrder).order_by(ImagingOrder.pk)).all())
    assert [one.accession_issuer for one in orders] == [settings.site.accession_issuer, "NORTHACC"]
    steps = db.read(lambda session: session.exec(select(ScheduledStep).order_by(ScheduledStep.pk)).all())
    assert [(one.status, one.start_date) for one in steps] == [("SCHEDULED", "20251203"), ("ARRIVED", "20251204")]
    assert [one.order_pk for one in db.read(lambda session: session.exec(select(Report)).all())] == [orders[1].pk]
    tell("ADT^A40", tanaka.replace("|1||T", "|2||T"), "MRG|1", minute=6)
    assert everyone() == [
        ("1", "HOSP", "YAMADA^TARO", True), ("1", "NORTH", "TANAKA^KEN", False), ("2", "NORTH", "TANAKA^KEN", True),
    ]  # fmt: skip


# Before and after


def test_the_last_messages_are_compared_and_nothing_is_stored(database, settings):
    """A20"""
    for number in (1, 2, 3):
        send(order_message(number), settings)
    send(order_message(4).replace(b"|CT", b"|C T*"), settings)
    before = [(row.state, row.became) for row in journalled()]
    found = db.read(trial.diff, profile.parse(ROOM), 3, settings)
    assert (found.looked_at, found.counts) == (3, {"changed": 2, "refused alike": 1})
    assert found.differences[0].lines == [
        "order 1 procedure 1 step 1 ScheduledProcedureStepLocation: not said -> CT室1"
    ]
    assert [(row.state, row.became) for row in journalled()] == before
    assert db.read(trial.diff, profile.parse(MINE), 10, settings).counts == {"same": 3, "refused alike": 1}


def test_what_would_be_refused_or_taken_newly_is_told(database, settings):
    send(order_message(1), settings)
    send(order_message(2).replace(b"ACC2", b""), settings)
    text = MINE + '[identity]\naccession_number = "derive"\n[controls]\nenabled = ["NW"]\n'
    assert db.read(trial.diff, profile.parse(text), 10, settings).counts == {"same": 1, "newly taken": 1}
    counts = db.read(trial.diff, profile.parse(MINE + '[controls]\nenabled = ["XO"]\n'), 10, settings).counts
    assert counts == {"newly refused": 1, "changed": 1}


def test_only_messages_of_senders_that_name_the_profile_are_compared(database, settings):
    put(MINE)
    register("mine")
    send(order_message(1), settings), send(order_message(2, "OTHER"), settings)
    found = db.read(trial.diff, profile.parse(ROOM), 10, settings)
    assert [one.message_pk for one in found.differences] == [1]
    assert found.looked_at == 1


def test_what_a_sender_says_is_compared_with_its_own_issuers_before_and_after(database, settings):
    put(NORTH.format("OMI^O23"))
    register("mine")
    send(order_message(1), settings)
    assert db.read(trial.diff, profile.parse(NORTH.format("ORM^O01")), 10, settings).counts == {"same": 1}


def test_messages_of_one_sender_are_compared_by_its_entry_or_its_name_in_the_message(database, settings):
    register("")
    for number, application in ((1, "HIS"), (2, "OTHER"), (3, "HIS")):
        send(order_message(number, application), settings)

    def compared(sender: str) -> list[int]:
        found = db.read(trial.diff, profile.parse(ROOM), 10, settings, sender=sender)
        assert found.looked_at == len(found.differences)
        return [one.message_pk for one in found.differences]

    assert (compared("his"), compared("OTHER|HOSP"), compared("HIS|HOSP"), compared("")) == (
        [3, 1], [2], [3, 1], [3, 2, 1],
    )  # fmt: skip
    with pytest.raises(UnknownKey):
        compared("NOBODY")


def test_of_a_profile_that_a_sender_names_no_other_messages_are_compared(database, settings):
    put(MINE), register("mine")
    send(order_message(1, "OTHER"), settings)
    assert db.read(trial.diff, profile.parse(ROOM), 10, settings).looked_at == 0
    assert db.read(trial.diff, profile.parse(ROOM), 10, settings, sender="OTHER|HOSP").looked_at == 1


def test_messages_of_an_intake_are_compared_by_its_name(database, settings):
    db.run(site.add_intake, "in", now=clock.now(), actor="test", kind="folder", path="/a")
    road.receive(order_message(1, "OTHER"), "folder:in", settings), send(order_message(2, "OTHER"), settings)
    found = db.read(trial.diff, profile.parse(ROOM), 10, settings, sender="in")
    assert [one.message_pk for one in found.differences] == [1]


def test_messages_that_the_profile_would_not_read_are_not_compared(database, settings):
    for number in (1, 2):
        send(order_message(number), settings)
    send(order_message(3).replace(b"ORM^O01", b"OMG^O19"), settings)
    text = MINE + 'messages = ["OMG"]\n' + ROOM.removeprefix(MINE)
    found = db.read(trial.diff, profile.parse(text), 10, settings)
    assert (found.looked_at, [one.type for one in found.differences]) == (1, ["OMG^O19"])
    text += '[[message]]\ntype = "ORM"\nmeans = "ignore"\n'
    found = db.read(trial.diff, profile.parse(text), 10, settings)
    assert found.counts == {"changed": 1, "no longer read": 2}


def test_what_is_read_newly_or_no_longer_is_told_in_one_line_and_without_what_is_ours_alone(database, settings):
    put(MINE + '[[message]]\ntype = "ORM"\nmeans = "ignore"\n'), register("mine")
    send(order_message(1), settings)
    (one,) = db.read(trial.diff, profile.parse(MINE), 10, settings).differences
    assert (one.outcome, len(one.lines)) == ("newly read", 1)
    (line,) = one.lines
    assert line.startswith("read newly: order 1: control NW, accession_number ACC1, ")
    assert "procedure 1 step 1 modality CT" in line
    own = ("is_issuer_assumed", "begun", "known", "unknown", "policies", "place", "not said", "replaces")
    assert not any(f" {word} " in line for word in own)
    put(MINE)
    (one,) = db.read(
        trial.diff, profile.parse(MINE + '[[message]]\ntype = "ORM"\nmeans = "ignore"\n'), 1, settings
    ).differences
    assert (one.outcome, one.lines) == ("no longer read", ["read no longer: " + line.removeprefix("read newly: ")])


def test_what_differs_for_us_alone_is_no_difference(database, settings):
    send(order_message(1), settings)
    text = MINE + '[identity]\nknown = "change"\nunknown = "place"\nsps_id = "derive"\n'
    assert db.read(trial.diff, profile.parse(text), 10, settings).counts == {"same": 1}


def test_a_number_that_is_not_said_before_and_after_is_no_difference(database, settings):
    send(order_message(1), settings)
    text = MINE + '[[field]]\nto = "procedure.filler_number"\nfrom = ["ZZZ-1"]\n'
    (one,) = db.read(trial.diff, profile.parse(text), 10, settings).differences
    assert one.lines and all(line.endswith(" -> not said") for line in one.lines)
    assert not any("not said -> not said" in line for line in one.lines)


def test_who_names_a_profile_is_known_also_through_one_that_stands_on_it(database):
    put(MINE), put('name = "above"\nextends = "mine"\n')
    assert db.read(store.users, "mine") == []
    register("above")
    db.run(site.add_intake, "in", now=clock.now(), actor="test", kind="folder", path="/a", mapping="mine")
    assert db.read(store.users, "mine") == ["sender his", "intake in"]
    assert db.read(store.users, "above") == ["sender his"]


def test_a_message_of_the_journal_can_be_tried(database, settings):
    send(order_message(1), settings)
    msg = db.read(trial.message_of, 1, settings)
    ((title, _),) = trial.try_message(msg, profile.parse(ROOM), settings.site).items
    assert title == "NW ACC1 SPS1"
    with pytest.raises(UnknownKey):
        db.read(trial.message_of, 9, settings)


# The site file


def test_the_site_file_carries_profiles_and_the_same_file_changes_nothing(database, tmp_path):
    put(MINE.replace("mine", "zbase"))
    put(ROOM.replace("ihe-rad4-2.3.1", "zbase") + "# it's 'quoted' \\ here\n")
    text = db.read(site.export)
    assert text.index("[mapping.zbase]") < text.index("[mapping.mine]")
    file = tmp_path / "site.toml"
    file.write_text(text, "utf-8")
    assert {outcome for _, outcome in _import(file)} == {"unchanged"}
    file.write_text(text.replace("OBR-21", "OBR-22"), "utf-8")
    assert dict(_import(file))["mapping mine"] == "changed"
    assert db.read(store.text_of, "mine").count("OBR-22") == 1
    odd = 'name = "odd"\r\ndescription = "\'\'\'"\r\n'
    put(odd)
    file.write_text(db.read(site.export), "utf-8", newline="")
    assert {outcome for _, outcome in _import(file)} == {"unchanged"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("[mapping.x]\ntext = 'name = \"y\"'\n", "mapping x"), ("[mapping.x]\ntext = 'a'\ntxt = 'a'\n", "line 3"),
     ("[mapping.x]\ntext = 'name = '\n", "line 1"), ("[[mapping]]\nname = 'x'\n", "line 1")],
)  # fmt: skip
def test_a_site_file_with_a_wrong_profile_is_refused_whole(database, tmp_path, text, said):
    file = tmp_path / "site.toml"
    file.write_text(f"{text}\n[[sender]]\nname = 'his'\n", "utf-8")
    with pytest.raises(BrokerError) as refused:
        _import(file)
    assert said in str(refused.value)
    assert db.read(site.senders) == []


def _import(file) -> list[tuple[str, str]]:
    now = dt.datetime.now(dt.UTC)
    return db.run(site.apply, site.read_file(file), now=now, actor="test")


def applied(folder, text: str) -> list[tuple[str, str]]:
    file = folder / "site.toml"
    file.write_text(text, "utf-8")
    return _import(file)


def test_a_sender_or_an_intake_that_names_an_unknown_profile_is_refused(database, tmp_path):
    with pytest.raises(InvalidValue) as refused:
        register("mine")
    assert (refused.value.place, "no such profile: mine" in refused.value.text) == ("sender his mapping", True)
    with pytest.raises(InvalidValue) as refused:
        db.run(site.add_intake, "in", now=clock.now(), actor="test", kind="folder", path="/a", mapping="mine")
    assert refused.value.place == "intake in mapping"
    text = '[[sender]]\nname = "his"\nmapping = "mine"\n'
    with pytest.raises(InvalidValue) as refused:
        applied(tmp_path, text)
    assert (refused.value.place, db.read(site.senders)) == ("sender his mapping", [])
    text += f"[mapping.mine]\ntext = '''\n{MINE}'''\n"  # wherever in the file it stands
    assert applied(tmp_path, text) == [("mapping mine", "added"), ("sender his", "added")]
    assert db.run(site.add_sender, "north", now=clock.now(), actor="test", mapping="jahis") == "added"


def test_a_sender_that_names_an_unknown_profile_already_does_not_stop_the_site_file(database, tmp_path):
    put(MINE), register("mine")
    db.run(lambda session: session.exec(delete(MappingProfile)))
    text = '[[sender]]\nname = "his"\napplication = "HIS"\nmapping = "mine"\n'
    assert applied(tmp_path, text) == [("sender his", "unchanged")]
