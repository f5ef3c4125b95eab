"""Senders and intakes as an administrator changes them: only what is said, checked like new ones, and audited."""

import pytest
from sqlmodel import select

from broker import clock, db, site
from broker.errors import BrokerError, ConfigError, DuplicateKey, InvalidValue, UnknownKey
from broker.model.site import Intake, MappingProfile, Sender
from broker.model.work import AuditEvent
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
