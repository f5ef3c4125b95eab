"""Messages of several order groups, through the inbox: each group means what it would mean alone."""

import random
from collections.abc import Sequence

import pytest
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import select

from broker import db
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.ris_bridge import effects
from broker.ris_bridge.hl7 import road

PID = "PID|1||{patient}^^^HOSP^PI||YAMADA^TARO||19700101|M"
STREAMS = 6
STEPS = (1, 2, 3)


def group(order: str, n: int, control: str, status: str = "", at: str = "", start: str = "") -> tuple[str, ...]:
    """The n-th step of an order; the first two are of one procedure."""
    orc = f"ORC|{control}|{order}P{n}|||{status}||^^^{start}||{at}"
    procedure = 1 if n < 3 else 2
    code = f"CT{n}^CT{n}^L" if control == "NW" else ""  # a procedure has that of its first group
    obr = f"OBR|1|{order}P{n}||{code}||||||||||||||{order}|RP{procedure}|S{n}||||CT"
    return orc, obr


def message(order: str, number: int, at: str, *groups: tuple[str, ...]) -> bytes:
    head = f"MSH|^~\\&|HIS|HOSP|C|D|{at}||ORM^O01|{order}.{number}|P|2.3.1||||||UNICODE UTF-8"
    segments = (segment for one in groups for segment in one)
    return "\r".join((head, PID.format(patient=order), *segments)).encode()


def send(raw: bytes, settings) -> bytes:
    reply = road.receive(raw, "127.0.0.1", settings)
    assert reply is not None
    return reply.raw


def steps(order: str) -> dict[str, tuple[str, str, str]]:
    query = select(ScheduledStep).join(ImagingOrder).where(ImagingOrder.accession_number == order)
    found = db.read(lambda session: session.exec(query).all())
    return {one.sps_id: (one.status, one.start_date, one.start_time) for one in found}


def placed(order: str, settings, *statuses: str) -> None:
    groups = [group(order, n, "NW", status, start="20251210093000") for n, status in enumerate(statuses, 1)]
    assert b"MSA|AA" in send(message(order, 0, "20251201090000", *groups), settings)


def statuses(order: str) -> list[str]:
    return [status for _, (status, *_) in sorted(steps(order).items())]


@pytest.mark.parametrize(
    ("control", "first", "second", "become"),
    [("SC", "CM", "SC", ["COMPLETED", "SCHEDULED"]), ("SC", "SC", "CM", ["SCHEDULED", "COMPLETED"]),
     ("XO", "CA", "", ["CANCELED", "SCHEDULED"]), ("XO", "", "CA", ["SCHEDULED", "CANCELED"]),
     ("XO", "HD", "IP", ["ON_HOLD", "ARRIVED"])],
)  # fmt: skip
def test_each_group_reaches_its_own_step(database, settings, control, first, second, become):
    placed("A", settings, "SC", "SC")
    groups = [group("A", n, control, status) for n, status in ((1, first), (2, second))]
    assert b"MSA|AA" in send(message("A", 1, "20251201100000", *groups), settings)
    assert statuses("A") == become


@pytest.mark.parametrize(
    ("said", "become"),
    [(("IP", "SC"), ["ARRIVED", "SCHEDULED"]), (("SC", "IP"), ["SCHEDULED", "ARRIVED"]),
     (("SC", "IP", "IP"), ["SCHEDULED", "ARRIVED", "ARRIVED"])],
)  # fmt: skip
def test_a_new_order_of_which_a_part_has_begun_is_taken_and_taken_again(database, settings, said, become):
    placed("A", settings, *said)
    assert statuses("A") == become
    groups = [group("A", n, "NW", status, start="20251210093000") for n, status in enumerate(said, 1)]
    assert b"MSA|AA" in send(message("A", 1, "20251201093000", *groups), settings)
    assert statuses("A") == become


def test_each_group_is_as_old_as_it_says(database, settings):
    """A late message of two groups: one is older than what is known, and one is not."""
    placed("A", settings, "SC", "SC")
    noon = [group("A", n, "XO", start="20251210120000") for n in (1, 2)]
    send(message("A", 1, "20251201120000", *noon), settings)
    late = [group("A", n, "XO", at=f"202512011{n}3000", start=f"202512101{n + 4}0000") for n in (1, 2)]
    send(message("A", 2, "20251201140000", *late), settings)
    assert {name: time for name, (_, _, time) in steps("A").items()} == {"S1": "120000", "S2": "160000"}


def stream(seed: int) -> list[tuple[str, list[tuple[int, str, str, str, str]]]]:
    """Messages of an order that is known: (time, groups as (step, control, status, time, start))."""
    draw = random.Random(seed)
    made = []
    for hour in range(1, 7):
        groups = []
        for n in sorted(draw.sample(STEPS, draw.randint(1, 3))):
            control = draw.choice(("XO", "XO", "SC", "HD", "RL"))
            status = draw.choice({"XO": ("", "", "IP", "HD"), "SC": ("SC", "IP", "HD", "A")}.get(control, ("",)))
            at = draw.choice(("", f"20251202{hour:02}{draw.randint(0, 59):02}00"))
            start = f"20251210{draw.randint(8, 17):02}0000" if control == "XO" else ""
            groups.append((n, control, status, at, start))
        made.append((f"20251202{hour:02}{draw.randint(0, 59):02}30", groups))
    draw.shuffle(made)
    return made


def tell(order: str, seed: int, settings, *, together: bool) -> None:
    placed(order, settings, "SC", "SC", "SC")
    number = 1
    for at, groups in stream(seed):
        for part in [groups] if together else [[one] for one in groups]:
            said = [group(order, n, control, status, time, start) for n, control, status, time, start in part]
            assert b"MSA|AA" in send(message(order, number, at, *said), settings)
            number += 1


@pytest.mark.parametrize("seed", range(STREAMS))
def test_groups_of_one_message_mean_what_each_would_mean_in_a_message_of_its_own(database, settings, seed):
    """Whatever their controls, states and times, and in whatever order the messages come."""
    for order, together in (("A", True), ("B", False)):
        tell(order, seed, settings, together=together)
    assert steps("A") == steps("B")


# Trouble


@pytest.mark.parametrize("ours", [True, False])
def test_a_value_that_no_row_can_hold_is_the_messages_fault_and_not_the_databases(
    database, settings, monkeypatch, ours
):
    """It is answered and journalled: closing without an answer would make its sender try for ever."""

    def fails(*_: object) -> None:
        fault = OverflowError("date value out of range")
        raise (OperationalError if ours else StatementError)("bad", "INSERT", {}, fault)

    monkeypatch.setattr(effects, "carry_out", fails)
    reply = road.receive(message("A", 1, "20251201090000", group("A", 1, "NW")), "127.0.0.1", settings)
    journalled: Sequence[Message] = db.read(lambda session: session.exec(select(Message)).all())
    if ours:
        assert reply is None
        assert journalled == []
    else:
        assert b"MSA|AE" in reply.raw
        assert [one.state for one in journalled] == ["REJECTED"]


def test_a_change_that_says_only_the_day_is_not_older_than_the_order_of_that_morning(database, settings):
    """Many senders write a date into ORC-9: midnight is not meant."""
    send(message("A", 0, "20251201090000", group("A", 1, "NW", start="20251210093000")), settings)
    moved = group("A", 1, "XO", at="20251201", start="20251210140000")
    assert b"MSA|AA" in send(message("A", 1, "20251201100000", moved), settings)
    assert steps("A")["S1"][2] == "140000"


def test_a_message_that_contradicts_itself_about_a_step_changes_nothing(database, settings):
    placed("A", settings, "SC")
    both = [group("A", 1, "XO", start=f"202512101{hour}0000") for hour in (1, 2)]
    answer = send(message("A", 1, "20251201100000", *both), settings)
    assert b"MSA|AE" in answer and b"ERR|OBR^2^20^102" in answer and b"own ID" in answer
    assert steps("A")["S1"][2] == "093000"
