"""What a sender is told, in the mode that it asks for (conformance.md 5.5, 5.8)."""

import pytest

from broker.config import Limits
from broker.errors import BrokerError, InvalidValue, NoRoom, NotAllowed, Unsupported
from broker.mwl.commands import OrderCommand, Outcome, ProcedureCommand
from broker.ris_bridge.hl7 import ack, batch, message, order_answer
from broker.sim.ris import omi
from tests.world import order, today

WRONG = InvalidValue("IPC^1^3", "is no UID", err="102")
FOREIGN = Unsupported("MSH^1^9", err="200")


def head(accept: str = "", application: str = "", version: str = "2.5.1", kind: str = "OMI^O23^OMI_O23"):
    line = f"MSH|^~\\&|HIS|HOSP|BROKER|X|1||{kind}|ID7|P|{version}|||{accept}|{application}"
    return message.header(f"{line}\r".encode(), "ASCII")


def told(accept: str, application: str, error: BrokerError | None = None, **more: object) -> list[str]:
    """MSA-1 of each message, in their order."""
    raw = ack.answer(head(accept, application), error, now=today(), **more)
    messages = raw.decode().split(ack.BETWEEN.decode()) if raw else []
    for one in messages:
        assert "|ID7" in one
        assert ("\rERR|" in one) == (one.split("\rMSA|")[1][1] in "ER")
    return [one.split("\rMSA|")[1][:2] for one in messages]


@pytest.mark.parametrize(
    ("accept", "application", "well", "wrong", "foreign"),
    [
        ("", "", "AA", "AE", "AR"), ('""', "", "AA", "AE", "AR"),
        ("AL", "AL", "CA AA", "CA AE", "CR"), ("AL", "", "CA", "CE", "CR"), ("AL", "NE", "CA", "CE", "CR"),
        ("AL", "SU", "CA AA", "CE", "CR"), ("AL", "ER", "CA", "CA AE", "CR"),
        ("", "AL", "AA", "AE", "AR"), ("NE", "AL", "AA", "AE", "AR"), ("NE", "ER", "", "AE", "AR"),
        ("NE", "SU", "AA", "", ""), ("NE", "NE", "", "", ""),
        ("SU", "AL", "CA AA", "CA AE", "AR"), ("SU", "NE", "CA", "", ""), ("SU", "SU", "CA AA", "", ""),
        ("ER", "AL", "AA", "AE", "CR"), ("ER", "NE", "", "CE", "CR"), ("ER", "ER", "", "AE", "CR"),
        ("er", " al", "AA", "AE", "CR"), ("XX", "AL", "AA", "AE", "AR"),
    ],
)  # fmt: skip
def test_each_mode_lets_out_what_table_0155_says(accept, application, well, wrong, foreign):
    assert told(accept, application) == well.split()
    assert told(accept, application, WRONG) == wrong.split()
    assert told(accept, application, FOREIGN) == foreign.split()


@pytest.mark.parametrize(("accept", "application", "said"), [("", "", "AE"), ("AL", "AL", "CE"), ("NE", "AL", "AE")])
def test_our_own_trouble_is_never_a_rejection_and_never_an_acceptance(accept, application, said):
    assert told(accept, application, NoRoom("message"), taken=False) == [said]


@pytest.mark.parametrize(("accept", "application", "place"), [("XX", "", "MSH^1^15"), ("AL", "YES", "MSH^1^16")])
def test_a_wish_that_is_not_in_the_table_is_an_error(accept, application, place):
    with pytest.raises(InvalidValue) as refused:
        ack.check(head(accept, application))
    assert (refused.value.place, refused.value.err) == (place, "103")


def test_nobody_is_asked_to_answer_an_answer():
    accepted, answered = ack.answer(head("AL", "AL"), None, now=today()).decode().split(ack.BETWEEN.decode())
    assert accepted.split("\r")[0].endswith("|P|2.5.1")
    assert answered.split("\r")[0].endswith("|P|2.5.1|||NE|NE")
    assert ack.answer(head(), None, now=today()).decode().split("\r")[0].endswith("|P|2.5.1")


@pytest.mark.parametrize(
    ("version", "kind", "said"),
    [("2.2", "ORM^O01", "ACK^O01"), ("2.3.1", "ORM^O01", "ACK^O01"), ("2.5", "OMG^O19^OMG_O19", "ACK^O19^ACK"),
     ("2.5.1", "ADT", "ACK"), ("2.2", "ADT", "ACK"), ("2.8", "OMI^O23^OMI_O23", "ACK^O23^ACK")],
)  # fmt: skip
def test_the_type_of_an_acknowledgement_follows_the_version(version, kind, said):
    raw = ack.answer(head(version=version, kind=kind), WRONG, now=today()).decode()
    assert f"|{said}|" in raw.split("\r")[0]
    assert ("|102^Data type error^HL70357|E|" if version >= "2.5" else "ERR|IPC^1^3^102&Data type error&HL70357") in raw


def test_an_error_says_repetition_and_component_where_they_are_known():
    raw = ack.answer(head(), InvalidValue("PID^1^3^2^4", err="102"), now=today()).decode()
    assert "\rERR||PID^1^3^2^4|102^" in raw


def test_a_sender_that_may_not_is_told_its_own_delimiters_back():
    request = message.header(b"MSH$%~\\&$HIS$HOSP$$$1$$ADT%A08$ID7$P$2.5.1\r", "ASCII")
    raw = ack.answer(request, NotAllowed("MSH^1^3"), now=today())
    assert b"\rMSA$AR$ID7$" in raw
    assert b"\rERR$$MSH%1%3$207%" in raw


# Order responses


def asked(*controls: str, kind: str = "OMI^O23^OMI_O23") -> tuple[bytes, message.Message]:
    """A message with an order group for each ORC-1."""
    first, *more = [omi(order(f"ACC{n}"), control) for n, control in enumerate(controls)]
    raw = first + b"".join(one[one.index(b"ORC|") :] for one in more)
    raw = raw.replace(b"OMI^O23^OMI_O23", kind.encode())
    return raw, message.parse(raw, Limits(), "")


def command(control: str, n: int) -> OrderCommand:
    return OrderCommand(
        control,  # type: ignore[arg-type]
        place=f"ORC^{n + 1}",
        procedures=(ProcedureCommand(placer_number=f"PACC{n}", filler_number=f"FACC{n}"),),
    )


@pytest.mark.parametrize(
    ("kind", "wanted", "control", "said"),
    [("OMI^O23^OMI_O23", False, "NW", ""), ("OMI^O23^OMI_O23", True, "NW", "ORI^O24"), ("ORM^O01", True, "NW", "ORR^O02"),
     ("OMG^O19^OMG_O19", True, "CA", "ORG^O20"), ("OMG^O19^OMG_O19", False, "SN", "ORG^O20"),
     ("ORM^O01", False, "SS", "ORR^O02"), ("ADT^A08", True, "NW", "")],
)  # fmt: skip
def test_an_order_response_is_given_where_it_is_wanted_or_asked_for(kind, wanted, control, said):
    assert order_answer.kind(asked(control, kind=kind)[1], wanted) == said


def test_every_order_group_gets_its_own_reply_with_its_numbers():
    raw, msg = asked("NW", "CA", "SS")
    outcomes = [Outcome(1), Outcome(2, "UC", "IP"), Outcome(3, "SC", "SC")]
    commands = [command("NW", 0), command("CA", 1), command("SS", 2)]
    lines = order_answer.lines(raw, msg.header, "~ISO IR87", commands, outcomes, None)
    assert [line[:6] for line in lines if line[0] == "ORC"] == [
        ["ORC", "OK", "PACC0^HIS", "FACC0^RIS", "", ""], ["ORC", "UC", "PACC1^HIS", "FACC1^RIS", "", "IP"],
        ["ORC", "SC", "PACC2^HIS", "FACC2^RIS", "", "SC"],
    ]  # fmt: skip
    assert [line[0] for line in lines] == ["ORC", "OBR", "IPC"] * 3
    assert lines[1][1:4] == ["1", "PACC0^HIS", "FACC0^RIS"]


def test_groups_of_one_order_share_its_outcome_and_are_told_apart_by_their_numbers():
    raw, msg = asked("XO", "CA", "XO")
    both = OrderCommand(
        "XO",
        place="ORC^1",
        procedures=(
            ProcedureCommand(placer_number="PACC0", filler_number="FACC0"),
            ProcedureCommand(placer_number="PACC2", filler_number="FACC2"),
        ),
    )
    outcomes = [Outcome(1, "OK", "SC"), Outcome(2, "UC", "IP")]
    lines = order_answer.lines(raw, msg.header, "~ISO IR87", [both, command("CA", 1)], outcomes, None)
    assert [(line[1], line[5]) for line in lines if line[0] == "ORC"] == [("OK", "SC"), ("UC", "IP"), ("OK", "SC")]


@pytest.mark.parametrize("stated", [b"", b"^HIS", b'""'])
def test_a_number_that_was_assigned_here_is_told(stated):
    raw, msg = asked("SN")
    raw = raw.replace(b"ORC|SN|PACC0^HIS|", b"ORC|SN|" + stated + b"|")
    outcome = Outcome(1, "NA", placer_number="B|1", placer_issuer="BROKER")
    (orc, *_) = order_answer.lines(raw, msg.header, "~ISO IR87", [command("SN", 0)], [outcome], None)
    assert orc[:4] == ["ORC", "NA", "B\\F\\1^BROKER", "FACC0^RIS"]


def test_an_order_that_was_refused_is_unable_in_its_own_word():
    raw, msg = asked("NW", "CA", "HD", "SS")
    lines = order_answer.lines(raw, msg.header, "~ISO IR87", [], [], WRONG)
    assert [line[1] for line in lines if line[0] == "ORC"] == ["UA", "UC", "UH", ""]


@pytest.mark.parametrize("error", [None, WRONG])
def test_an_order_response_parses_in_a_foreign_library(error):
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.parser import parse_message

    raw, msg = asked("NW", "NW")
    lines = order_answer.lines(raw, msg.header, "~ISO IR87", [], [], error)
    answer = ack.answer(msg.header, error, now=today(), msg=msg, kind="ORI^O24", lines=lines).decode("iso2022_jp")
    parsed = parse_message(answer, validation_level=VALIDATION_LEVEL.TOLERANT)
    assert parsed.msh.msh_9.value == "ORI^O24^ORI_O24"
    groups = parsed.ori_o24_response.ori_o24_order
    assert [group.orc.orc_1.value for group in groups] == (["UA", "UA"] if error else ["OK", "OK"])
    assert [group.ipc.ipc_1.value for group in groups] == ["ACC0^RIS", "ACC1^RIS"]


# Batches


def batch_of(*messages: bytes, count: str = "", file: bool = False) -> bytes:
    inside = b"BHS|^~\\&|HIS|HOSP|BROKER|HOSP|1||||B7\r" + b"".join(messages) + b"BTS|" + count.encode() + b"\r"
    return b"FHS|^~\\&|HIS|HOSP|BROKER|HOSP|1||||F7\r" + inside + b"FTS|1\r" if file else inside


FIRST, SECOND = omi(order("ACC001")), omi(order("ACC002"))


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_a_batch_is_split_into_its_messages_byte_for_byte(file, end):
    raw = batch_of(FIRST, SECOND, count="2", file=file).replace(b"\r", end)
    assert batch.begins(raw)
    found = batch.split(raw, 9)
    assert found.messages == [one.replace(b"\r", end) for one in (FIRST, SECOND)]
    assert found.problems == []


@pytest.mark.parametrize("raw", [FIRST + SECOND, b"\r\n" + FIRST + b"\r\n\r\n" + SECOND])
def test_a_file_of_messages_without_envelope_is_split_too(raw):
    assert not batch.begins(raw)
    assert [one.strip() for one in batch.split(raw, 9).messages] == [FIRST.strip(), SECOND.strip()]
    assert batch.split(FIRST, 9).messages == [FIRST]


def test_what_somebody_typed_begins_no_message():
    typed = FIRST.replace(b"|R^Routine", b"|R^Rou\nMSH|^~\\&|tine")
    assert batch.split(batch_of(typed), 9).messages == [typed]


@pytest.mark.parametrize(
    ("raw", "place"),
    [(batch_of(FIRST, count="2"), "BTS^1^1"), (batch_of(FIRST, count="x"), "BTS^1^1"),
     (batch_of(FIRST).replace(b"BTS|\r", b""), "BTS^1"),
     (batch_of(FIRST, file=True).replace(b"FTS|1\r", b""), "FTS^1"),
     (batch_of(FIRST, file=True).replace(b"FTS|1\r", b"FTS|3\r"), "FTS^1^1")],
)  # fmt: skip
def test_a_trailer_that_is_wrong_is_a_problem_of_the_batch_and_of_no_message(raw, place):
    found = batch.split(raw, 9)
    assert found.messages == [FIRST]
    assert [problem.place for problem in found.problems] == [place]


def test_too_many_messages_and_what_is_no_batch_are_refused():
    with pytest.raises(InvalidValue):
        batch.split(batch_of(FIRST, SECOND), 1)
    with pytest.raises(InvalidValue):
        batch.split(b"hello\r" + FIRST, 9)


def test_the_answer_is_a_batch_like_the_one_that_came():
    found = batch.split(batch_of(FIRST, SECOND, count="2", file=True), 9)
    answers = [b"MSH|1\rMSA|CA|1\r" + ack.BETWEEN + b"MSH|2\rMSA|AA|1\r", b""]
    lines = batch.answer(found, answers, now=today(), default_set="").decode().split("\r")
    assert [line[:5] for line in lines] == ["FHS|^", "BHS|^", "MSH|1", "MSA|C", "MSH|2", "MSA|A", "BTS|2", "FTS|1", ""]
    assert lines[0].startswith("FHS|^~\\&|BROKER|HOSP|HIS|HOSP|")
    assert (lines[0].split("|")[11], lines[1].split("|")[11]) == ("F7", "B7")


def test_the_last_answer_of_a_miscounted_batch_is_about_its_own_control_id():
    found = batch.split(batch_of(FIRST, count="2"), 9)
    lines = batch.answer(found, [b"MSH|1\rMSA|AA|1\r"], now=today(), default_set="").decode().split("\r")
    assert lines[4].startswith("MSA|AE|B7|")
    assert lines[5].startswith("ERR||BTS^1^1|100^")
    assert lines[6] == "BTS|2"


def test_a_batch_of_which_nothing_was_looked_at_is_answered_as_a_whole():
    raw = batch_of(FIRST, file=True)
    lines = batch.refusal(raw, InvalidValue("message", "too many", err="100"), now=today(), default_set="").decode()
    assert [line[:3] for line in lines.split("\r")] == ["FHS", "MSH", "MSA", "ERR", "FTS", ""]
    assert "\rMSA|AE|F7|" in lines
