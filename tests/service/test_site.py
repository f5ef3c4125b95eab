"""Devices, senders and intakes as an administrator changes them: only what is said, checked like new ones, audited."""

import datetime as dt

import pytest
from sqlmodel import select

from broker import clock, db, site
from broker.dicom import tree
from broker.errors import BrokerError, ConfigError, DuplicateKey, InvalidValue, UnknownKey
from broker.model.site import Intake, MappingProfile, Node, Sender
from broker.model.work import AuditEvent
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.ris_bridge.mapping import store

pytestmark = pytest.mark.usefixtures("database")
WHO = {"actor": "test"}


def told(what, name: str, **fields: object) -> str:
    return db.run(what, name, now=clock.now(), **WHO, **fields)


def sender() -> Sender:
    return db.read(lambda session: session.exec(select(Sender)).one())


def audited() -> list[dict]:
    query = select(AuditEvent).where(AuditEvent.action == "site.change").order_by(AuditEvent.pk)
    return [one.detail for one in db.read(lambda session: session.exec(query).all())]


def test_of_a_sender_only_what_is_said_is_changed_and_it_is_audited():
    told(site.add_sender, "his", application="HIS", messages=["ORM"], order_responses=True)
    assert told(site.change_sender, "his", character_set="CP932", messages=["ORM", "ADT^A08"]) == "changed"
    row = sender()
    assert (row.application, row.messages, row.character_set) == ("HIS", ["ORM", "ADT^A08"], "CP932")
    assert row.order_responses
    assert audited()[1:] == [
        {"change": "changed", "values": {"messages": [["ORM"], ["ORM", "ADT^A08"]], "character_set": ["", "CP932"]}}
    ]
    assert told(site.change_sender, "his", character_set="CP932") == "unchanged"
    assert told(site.change_sender, "his", messages=[], character_set="") == "changed"
    assert (sender().messages, sender().character_set, len(audited())) == ([], "", 3)


def test_of_an_intake_only_what_is_said_is_changed_and_another_url_begins_anew():
    url = "https://ris/feed?key=SECRET"
    told(site.add_intake, "in", kind="poll", url=url, format="json", secret_file="/etc/s")
    db.run(lambda session: setattr(session.exec(select(Intake)).one(), "cursor", "17"))
    assert told(site.change_intake, "in", every_seconds=60) == "changed"
    (row,) = db.read(site.intakes)
    assert (row.url, row.secret_file, row.every_seconds, row.cursor) == (url, "/etc/s", 60, "17")
    told(site.change_intake, "in", url="https://ris/new?key=SECRET")
    assert db.read(site.intakes)[0].cursor == ""
    assert "SECRET" not in str(audited())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mapping": "nobody"}, "sender his mapping: no such profile: nobody"),
        ({"character_set": "KLINGON"}, "sender his character_set: no such character set: KLINGON; known are UNICODE UTF-8"),
        ({"character_set": "UNICODE UTF-8~ISO IR87"}, "no such character set"),
        ({"messages": ["ORM", "FOO", "ORM^O99"]}, "sender his messages: no such message is read: FOO, ORM^O99; known are ADT^A01"),
        ({"messages": ["orm"]}, "must be a message type"), ({"address": "a b"}, "is not an address"),
        ({}, "sender his: says nothing that is to change"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_is_known_and_changes_nothing(fields, said):
    told(site.add_sender, "his", application="HIS")
    with pytest.raises(InvalidValue) as refused:
        told(site.change_sender, "his", **fields)
    assert said in str(refused.value)
    assert (len(audited()), sender().messages, sender().character_set) == (1, [], "")
    if fields:
        with pytest.raises(InvalidValue):
            told(site.add_sender, "other", **fields)


def test_what_is_not_there_cannot_be_changed():
    for what in (site.change_sender, site.change_intake):
        with pytest.raises(UnknownKey):
            told(what, "nobody", mapping="jahis")


@pytest.mark.parametrize(
    "character_set", ["UNICODE UTF-8", "~ISO IR87", "ISO-2022-JP", "CP932", "8859/1", "ISO 2022 IR 87"]
)
def test_every_character_set_that_can_be_read_is_taken(character_set):
    assert told(site.add_sender, "his", character_set=character_set) == "added"
    assert told(site.add_intake, "in", kind="folder", path="/a", character_set=character_set) == "added"


def test_a_sender_may_send_what_its_profile_ignores():
    text = 'name = "mine"\nextends = "ihe-rad4-2.3.1"\n[[message]]\ntype = "DFT^P03"\nmeans = "ignore"\n'
    db.run(store.put, text, now=clock.now(), **WHO)
    assert told(site.add_sender, "his", messages=["ORM", "DFT^P03"], mapping="mine") == "added"
    db.run(store.put, text.replace("DFT^P03", "BAR"), now=clock.now(), **WHO)
    assert told(site.change_sender, "his", messages=["ORM", "BAR^P01"]) == "changed"
    with pytest.raises(InvalidValue):
        told(site.add_sender, "other", messages=["DFT^P04"], mapping="mine")


def test_what_stands_there_already_does_not_stop_a_start(tmp_path):
    db.run(lambda session: session.add(Sender(name="his", messages=["FOO"], character_set="KLINGON")))
    db.run(lambda session: session.add_all([Intake(name=name, kind="folder", path="/a") for name in "ab"]))
    file = tmp_path / "site.toml"
    file.write_text(db.read(site.export), "utf-8")
    outcomes = db.run(site.apply, site.read_file(file), now=clock.now(), **WHO)
    assert {outcome for _, outcome in outcomes} == {"unchanged"}
    assert told(site.change_sender, "his", application="HIS") == "changed"


def test_a_profile_in_use_that_has_a_fault_by_now_does_not_stop_a_start(tmp_path):
    text = 'name = "mine"\n[[station]]\nae_titles = ["CT1"]\nwhen = ["OBR-24 == CT"]\n'
    db.run(lambda session: session.add(MappingProfile(name="mine", version=1, text=text, active=True)))
    file = tmp_path / "site.toml"
    file.write_text(db.read(site.export), "utf-8")
    assert db.run(site.apply, site.read_file(file), now=clock.now(), **WHO) == [("mapping mine", "unchanged")]
    file.write_text(db.read(site.export).replace("CT1", "CT2"), "utf-8")
    with pytest.raises(ConfigError):
        db.run(site.apply, site.read_file(file), now=clock.now(), **WHO)


def test_an_address_with_a_mask_that_stands_for_nothing_is_refused():
    told(site.add_intake, "in", kind="poll", url="https://ris/feed?key=SECRET", format="json")
    assert told(site.change_intake, "in", url="https://ris/feed?key=***", every_seconds=60) == "changed"
    assert db.read(site.intakes)[0].url == "https://ris/feed?key=SECRET"
    with pytest.raises(InvalidValue):
        told(site.change_intake, "in", url="https://other/feed?key=***")


def test_a_folder_has_one_intake():
    told(site.add_intake, "a", kind="folder", path="/orders/in")
    for path in ("/orders/in", "/orders//in/", "//orders/./in"):
        with pytest.raises(DuplicateKey) as refused:
            told(site.add_intake, "b", kind="folder", path=path)
        assert str(refused.value).startswith("intake b path: is watched by the intake a already")
    told(site.add_intake, "b", kind="folder", path="/orders/in/ct")
    with pytest.raises(DuplicateKey):
        told(site.change_intake, "b", path="/orders/in")
    assert told(site.change_intake, "a", path="/orders/in/") == "changed"
    told(site.add_intake, "c", kind="poll", url="https://ris/", format="json")
    told(site.add_intake, "d", kind="poll", url="https://ris/", format="json")


def test_a_site_file_may_exchange_folders_and_not_double_one(tmp_path):
    def applied(**paths: str) -> list[tuple[str, str]]:
        file = tmp_path / "site.toml"
        text = "".join(f'[[intake]]\nname = "{name}"\nkind = "folder"\npath = "{at}"\n' for name, at in paths.items())
        file.write_text(text, "utf-8")
        return db.run(site.apply, site.read_file(file), now=clock.now(), **WHO)

    applied(a="/one", b="/two")
    assert applied(a="/two", b="/one") == [("intake a", "changed"), ("intake b", "changed")]
    with pytest.raises(BrokerError, match="is watched by"):
        applied(c="/one")
    assert [row.name for row in db.read(site.intakes)] == ["a", "b"]


def node(ae_title: str, **fields: object) -> str:
    return told(site.add_node, ae_title, any_address=True, **fields)


def stored(ae_title: str = "CT1") -> Node:
    return db.read(site.node, ae_title)


def test_of_a_node_only_what_is_said_is_changed_and_it_is_audited():
    node("CT1", modality="CT", aliases=["CTOLD"], sees=["own"])
    assert told(site.change_node, "CT1", profile="asks-for-today", sees=None, hide=[]) == "changed"
    row = stored()
    assert (row.modality, row.aliases, row.profile, row.sees, row.hide) == ("CT", ["CTOLD"], "asks-for-today", None, [])
    values = {"profile": ["", "asks-for-today"], "sees": [["own"], None], "hide": [None, []]}
    assert audited()[1:] == [{"change": "changed", "values": values}]
    assert told(site.change_node, "CT1", hide=[]) == "unchanged"
    with pytest.raises(InvalidValue, match="with today_is_window needs days_before and days_after"):
        told(site.change_node, "CT1", profile="", quirks=["today_is_window"])
    with pytest.raises(UnknownKey):
        told(site.change_node, "CT9", modality="MR")
    with pytest.raises(DuplicateKey, match="broker node change changes them"):
        node("CT1", modality="MR")


@pytest.mark.parametrize(
    ("ae_title", "fields", "said"),
    [
        ("CT1", {"aliases": ["CT2"]}, "node CT1 aliases: CT2 is the node CT2 itself"),
        ("CT1", {"aliases": ["CTNEW"]}, "node CT1 aliases: CTNEW is an alias of the node CT2 already"),
        ("CT1", {"aliases": ["POOL"]}, "node CT1 aliases: POOL is a group, in which the node CT2 is"),
        ("CT1", {"groups": ["CT2"]}, "node CT1 groups: CT2 is the node CT2 itself"),
        ("CT1", {"groups": ["CTNEW"]}, "node CT1 groups: CTNEW is an alias of the node CT2 already"),
        ("CTNEW", {}, "node CTNEW: CTNEW is an alias of the node CT2 already"),
        ("POOL", {}, "node POOL: POOL is a group, in which the node CT2 is"),
    ],
)
def test_a_title_stands_for_one_thing(ae_title, fields, said):
    node("CT2", aliases=["CTNEW"], groups=["POOL"])
    with pytest.raises(DuplicateKey) as refused:
        node(ae_title, **fields)
    assert said in str(refused.value)
    assert [row.ae_title for row in db.read(site.nodes)] == ["CT2"]
    if fields:
        node(ae_title, groups=["POOL"])  # a group is for several
        with pytest.raises(DuplicateKey):
            told(site.change_node, ae_title, **{"groups": [], **fields})
        assert stored(ae_title).aliases == []


def test_a_site_file_may_exchange_aliases_and_not_double_one(tmp_path):
    def applied(**aliases: str) -> list[tuple[str, str]]:
        file = tmp_path / "site.toml"
        text = "".join(
            f'[[node]]\nae_title = "{one}"\nany_address = true\naliases = ["{to}"]\n' for one, to in aliases.items()
        )
        file.write_text(text, "utf-8")
        return db.run(site.apply, site.read_file(file), now=clock.now(), **WHO)

    applied(CT1="A", CT2="B")
    assert applied(CT1="B", CT2="A") == [("node CT1", "changed"), ("node CT2", "changed")]
    with pytest.raises(DuplicateKey, match="B is an alias of the node CT1 already"):
        applied(CT3="B")
    assert [row.ae_title for row in db.read(site.nodes)] == ["CT1", "CT2"]


def test_a_site_with_all_that_a_node_can_say_is_exported_and_imported(tmp_path):
    node(
        "CT1", modality="CT", profile="asks-for-today", aliases=["CTOLD"], groups=["POOL"], sees=["own", "ae:MR1"],
        labels=["救急"], hide=["STARTED"], started_hours=1.5, finished_hours=0, matches_max=20, days_before=2, days_after=3,
        character_sets_also=["ISO_IR 192"], lengths={"RequestedProcedureDescription": 16}, requires=["AccessionNumber"],
        quirks=["omit_empty"], expire_days=3, idle_days=0.5, mpps_strict=True,
    )  # fmt: skip
    before, file = stored(), tmp_path / "site.toml"
    file.write_text(db.read(site.export), "utf-8")
    entries = site.read_file(file)
    assert db.run(site.apply, entries, now=clock.now(), **WHO) == [("node CT1", "unchanged")]
    told(site.remove_node, "CT1")
    assert db.run(site.apply, entries, now=clock.now(), **WHO) == [("node CT1", "added")]
    own = {"pk", "created_at", "updated_at"}
    assert stored().model_dump(exclude=own) == before.model_dump(exclude=own)


def asked(*, station: str = "", charset: str = "\\ISO 2022 IR 87", ae_title: str = "CT1", times: int = 12) -> None:
    """Recorded as often, an hour apart at the most."""
    step: tree.Tree = {0x00400001: ("AE", station)}
    keys: tree.Tree = {
        tree.CHARSET: ("CS", "ISO_IR 192"), 0x00100010: ("PN", "=山田*"), 0x00400100: ("SQ", [step]),
    }  # fmt: skip
    dataset, at = tree.write(keys, tree.EXPLICIT_LE, ("ISO_IR 192",)), dt.datetime(2025, 12, 1, 3, tzinfo=dt.UTC)

    def write(session) -> None:
        kept, answer = (
            WorklistKeys(digest=f"{ae_title}{station}", dataset=dataset, character_set=charset),
            WorklistAnswer(digest=f"{ae_title}{station}"),
        )
        session.add_all([kept, answer])
        session.flush()
        session.add(
            WorklistQuery(
                ae_title=ae_title,
                keys_pk=kept.pk,
                answer_pk=answer.pk,
                first_at=at,
                last_at=at + dt.timedelta(hours=1),
                times=times,
            )
        )

    db.run(write)


def test_what_a_devices_queries_say_is_proposed_and_one_word_accepts_it(settings):
    node("CT1", profile="ascii-only")
    node("CT2")
    asked()
    asked(ae_title="CT2", times=3)
    (one,) = db.read(site.suggestions, "CT1", settings)
    assert (one.name, one.evidence) == ("asks-without-station", "12 of 12 queries since 2025-12-01 12:00")
    assert db.read(site.suggestions, "CT2", settings) == []
    taken = db.run(site.accept, "CT1", [], settings, now=clock.now(), **WHO)
    assert (taken, stored().profile) == (["asks-without-station"], "ascii-only,asks-without-station")
    assert audited()[-1] == {
        "change": "changed", "values": {"profile": ["ascii-only", "ascii-only,asks-without-station"]},
        "accepted": {"asks-without-station": "12 of 12 queries since 2025-12-01 12:00"},
    }  # fmt: skip
    assert db.run(site.accept, "CT1", [], settings, now=clock.now(), **WHO) == []
    assert len(audited()) == 3


def test_of_several_proposals_those_are_accepted_that_are_named(settings):
    node("CT1")
    asked(charset="ISO_IR 100")
    assert [one.name for one in db.read(site.suggestions, "CT1", settings)] == ["asks-without-station", "character-set"]
    with pytest.raises(
        InvalidValue, match="do not propose asks-for-today; what is proposed now: asks-without-station, character-set"
    ):
        db.run(site.accept, "CT1", ["character-set", "asks-for-today"], settings, now=clock.now(), **WHO)
    db.run(site.accept, "CT1", ["character-set"], settings, now=clock.now(), **WHO)
    assert (stored().character_set, stored().profile) == ("ISO_IR 100", "")
    with pytest.raises(UnknownKey):
        db.read(site.suggestions, "CT9", settings)


def test_only_the_last_queries_count_and_a_record_that_cannot_be_read_is_left_out(settings):
    settings = settings.model_copy(update={"limits": settings.limits.model_copy(update={"list_items_max": 1})})
    node("CT1")
    asked(station="CT1")
    db.run(
        lambda session: setattr(
            session.exec(select(WorklistQuery)).one(), "last_at", dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
        )
    )
    asked()
    assert [one.name for one in db.read(site.suggestions, "CT1", settings)] == ["asks-without-station"]
    db.run(lambda session: [setattr(row, "dataset", b"?") for row in session.exec(select(WorklistKeys))])
    assert db.read(site.suggestions, "CT1", settings) == []
