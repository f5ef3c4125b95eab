"""Who may knock, while all is well, while nothing can be asked, and while somebody knocks all the time."""

import socket

import pytest
from sqlmodel import select

from broker import access, clock, db, site
from broker.errors import DatabaseAway
from broker.model.site import UnknownPeer
from broker.model.work import AuditEvent

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    access.forget()
    monkeypatch.setattr(access, "CACHE_SECONDS", 0.0)
    yield
    access.forget()


def add(ae_title: str, **fields: object) -> None:
    db.run(site.add_node, ae_title, host="127.0.0.1", port=104, modality="CT", actor="test", now=clock.now(), **fields)


@pytest.fixture
def away(monkeypatch):
    """Call it, and nothing can be read or written any more."""

    def fail(*_args: object, **_kwargs: object) -> None:
        raise db.NoTurn("away")

    def go() -> None:
        monkeypatch.setattr(db, "read", fail)
        monkeypatch.setattr(db, "run", fail)

    return go


def written() -> list[AuditEvent]:
    return list(
        db.read(lambda session: session.exec(select(AuditEvent).where(AuditEvent.action == "peer.refuse")).all())
    )


def test_a_node_is_known_as_soon_as_it_is_added():
    assert access.find_node("CT1") is None
    add("CT1")
    assert access.find_node("CT1").ae_title == "CT1"


def test_what_titles_stand_for_is_known_as_soon_as_the_node_is():
    assert access.directory().kind("CTOLD") == ""
    add("CT1", aliases=["CTOLD"], groups=["CTPOOL"])
    assert access.directory().shown("CTOLD") == ("CT1",)
    assert access.directory().means("CTPOOL") == {"CTPOOL", "CT1", "CTOLD"}
    known = access.directory()
    assert access.directory() is known  # the same as long as the nodes are: who caches by it keeps what it has
    add("CT2", groups=["CTPOOL"])
    assert access.directory().shown("CTPOOL") == ("CT1", "CT2")


@pytest.mark.parametrize("title", ["CTOLD", "CTPOOL"])
def test_an_alias_and_a_group_are_names_in_orders_and_nobody_may_call_by_them(title):
    add("CT1", aliases=["CTOLD"], groups=["CTPOOL"])
    assert access.find_node("CT1").habits.aliases == {"CTOLD"}
    assert access.find_node(title) is None


def test_while_the_database_is_away_the_last_known_titles_stand_for_what_they_did(away):
    add("CT1", aliases=["CTOLD"])
    assert access.directory().shown("CTOLD") == ("CT1",)
    away()
    assert access.directory().shown("CTOLD") == ("CT1",)
    access.forget()
    with pytest.raises(DatabaseAway):
        access.directory()


def test_while_the_database_is_away_the_last_known_nodes_count(away, capsys):
    add("CT1")
    assert access.find_node("CT1") is not None
    away()
    for _ in range(3):
        assert access.find_node("CT1").ae_title == "CT1"
        assert access.find_node("STRANGER") is None
    assert capsys.readouterr().out.count("nodes.stale") == 1


def test_where_nothing_was_ever_read_nobody_is_called_unknown(away):
    away()
    with pytest.raises(DatabaseAway):
        access.find_node("CT1")


def test_a_refusal_that_cannot_be_written_is_no_error(away):
    away()
    assert access.note_refusal("STRANGER", "192.0.2.1", "BROKER", "unknown AE title") is None


def test_the_same_refusal_is_written_once_in_a_while():
    for _ in range(20):
        access.note_refusal("STRANGER", "192.0.2.1", "BROKER", "unknown AE title")
    assert len(written()) == 1


def test_titles_that_change_all_the_time_do_not_fill_the_audit_trail(capsys, monkeypatch):
    titles = [f"S{n}" for n in range(600)]
    for title in titles * 2:
        access.note_refusal(title, "192.0.2.1", "BROKER", "unknown AE title")
    assert len(written()) <= access.REFUSALS_WRITTEN_MAX
    assert len(access._refused_at) <= access.REFUSALS_WRITTEN_MAX
    monkeypatch.setattr(access, "REFUSAL_SECONDS_BETWEEN", 0.0)
    access.note_refusal("LATER", "192.0.2.1", "BROKER", "unknown AE title")
    assert "peer.refusals_not_written" in capsys.readouterr().out
    assert db.read(lambda session: session.exec(select(UnknownPeer).where(UnknownPeer.ae_title == "LATER")).first())


def test_an_address_needs_nobody_to_look_it_up(monkeypatch):
    def fail(*_args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert access.addresses("192.0.2.7") == {"192.0.2.7"}
    assert access.addresses("2001:DB8::1") == {"2001:db8::1"}
    assert access.addresses("nobody.invalid") == frozenset()


def test_a_name_that_cannot_be_looked_up_now_is_what_it_was(monkeypatch):
    assert "127.0.0.1" in access.addresses("localhost")

    def fail(*_args: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    access._addresses.cache_clear()
    assert "127.0.0.1" in access.addresses("localhost")
