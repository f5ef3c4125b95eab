"""What a report says becomes what a command says: whose it is, how far it is, and what it holds."""

import base64

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError
from broker.mwl.commands import OrderCommand, ReportCommand, VisitCommand
from broker.ris_bridge.hl7 import message, reports_in
from broker.ris_bridge.mapping import profile as profiles

SITE = Site(patient_id_issuer="HOSP", accession_issuer="RIS")
PID = "PID|1||0000012345^^^HOSP^PI||YAMADA^TARO||19700101|M"
ORC = "ORC|RE|P1^HIS|F1^RIS"
OBR = "OBR|1|P1^HIS|R1^RIS|CTCHEST^胸部CT^99LOCAL||||||||||||||ACC1||||20251201101500|||F"
TEXT = "OBX|1|TX|FIND^所見^99LOCAL||異常なし||||||F"
PDF = base64.b64encode(b"%PDF-1.7 invented").decode()
DOCUMENT = f"OBX|2|ED|PDF^PDF^99LOCAL||RIS^application^PDF^Base64^{PDF}||||||F"


def parsed(*segments: str) -> message.Message:
    head = "MSH|^~\\&|A|B|C|D|20251201102000||ORU^R01|1|P|2.5.1||||||UNICODE UTF-8"
    return message.parse("\r".join((head, *segments)).encode(), Limits(), "ASCII")


def commands(*segments: str, profile=None):
    return reports_in.to_commands(parsed(*segments), SITE, profile)


def report(*segments: str) -> ReportCommand:
    (command,) = commands(PID, *segments)
    assert isinstance(command, ReportCommand)
    return command


def with_field(segment: str, number: int, value: str) -> str:
    fields = segment.split("|")
    fields += [""] * (number + 1 - len(fields))
    fields[number] = value
    return "|".join(fields)


def refusal(*segments: str) -> tuple[str, str]:
    with pytest.raises(BrokerError) as refused:
        commands(*segments)
    assert "invented" not in str(refused.value) and "異常" not in str(refused.value)
    return refused.value.err, refused.value.place


# Whose it is


def test_an_accession_number_gets_no_issuer_that_nobody_has_named():
    """OBR-18 has no room for one: the service looks for the order by the number, then."""
    (made,) = reports_in.to_commands(parsed(PID, ORC, OBR, TEXT), Site(patient_id_issuer="HOSP"))
    assert (made.order.accession_number, made.order.accession_issuer) == ("ACC1", "")


def test_a_report_names_its_order_by_every_number_that_it_states():
    made = report(ORC, OBR, TEXT)
    order = made.order
    assert (order.control, order.accession_number, order.accession_issuer) == ("note", "ACC1", "RIS")
    (procedure,) = order.procedures
    assert (procedure.placer_number, procedure.placer_issuer) == ("P1", "HIS")
    assert (procedure.filler_number, procedure.filler_issuer) == ("F1", "RIS")
    assert order.patient.identifiers[0].value == "0000012345"
    assert (made.number, made.issuer, made.title) == ("R1", "RIS", "胸部CT")
    assert (made.issued_at.hour, made.issued_at.minute, made.at.minute) == (10, 15, 20)


@pytest.mark.parametrize(
    "segment",
    ["OBX|2|HD|113014^DICOM Study^DCM||1.2.3", "OBX|2|HD|113014^DICOM Study^DCM||^1.2.3^ISO", "ZDS|1.2.3^RIS"],
)
def test_a_study_that_is_named_finds_the_order_and_is_no_text(segment):
    made = report(with_field("OBR|1", 25, "F"), TEXT, segment)
    assert made.order.procedures[0].study_instance_uid == "1.2.3"
    assert made.text == "異常なし"


def test_an_order_by_its_accession_number_alone():
    made = report(with_field("OBR|1|||CT||||||||||||||ACC1", 25, "F"), TEXT)
    assert (made.order.accession_number, made.order.procedures, made.number, made.title) == ("ACC1", (), "", "CT")


@pytest.mark.parametrize(
    ("segments", "said"),
    [((OBR, TEXT), ("100", "PID")), ((PID, TEXT), ("100", "OBR")), ((PID, OBR, PID, OBR), ("100", "PID^2")),
     ((PID, with_field("OBR|1|||X", 25, "F"), TEXT), ("101", "OBR^1^2")),
     ((PID, OBR, "OBX|1|HD|113014||1.02.3"), ("102", "OBX^1^5")),
     ((PID, with_field(OBR, 3, "R" * 65), TEXT), ("102", "OBR^1^3^1"))],
)  # fmt: skip
def test_a_report_that_names_no_order_or_nobody_is_refused(segments, said):
    assert refusal(*segments) == said


# How far it is


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("F", "final"),
        ("C", "amended"),
        ("P", "preliminary"),
        ("R", "preliminary"),
        ("A", "preliminary"),
        ("X", "cancelled"),
    ],
)
def test_the_status_of_a_report(said, status):
    assert report(with_field(OBR, 25, said), TEXT).status == status


@pytest.mark.parametrize("said", ["O", "I", "S"])
def test_where_there_are_no_results_yet_the_order_is_noted_and_nothing_kept(said):
    (command,) = commands(PID, with_field(OBR, 25, said), TEXT)
    assert isinstance(command, OrderCommand)
    assert (command.control, command.accession_number, command.patient.identifiers[0].value) == (
        "note", "ACC1", "0000012345",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("results", "status"),
    [(("F", "F"), "final"), (("F", "P"), "preliminary"), (("C", "F"), "amended"), (("X", "X"), "cancelled")],
)
def test_without_a_status_of_its_own_that_of_all_its_results(results, status):
    assert report(with_field(OBR, 25, ""), *(with_field(TEXT, 11, one) for one in results)).status == status


@pytest.mark.parametrize(("obr", "obx", "err"), [("", "", "101"), ("", "W", "101"), ("Q", "F", "103")])
def test_a_report_of_no_status_is_refused(obr, obx, err):
    assert refusal(PID, with_field(OBR, 25, obr), with_field(TEXT, 11, obx)) == (err, "OBR^1^25")
    assert refusal(PID, with_field(OBR, 25, obr), *((TEXT,) if obr else ())) == (err, "OBR^1^25")


# What it holds


def test_text_keeps_its_lines():
    made = report(OBR, "OBX|1|FT|A||一\\.br\\二~三~~四", "OBX|2|TX|A||5 ^ 6 \\T\\ 7 \\X0D\\八", 'OBX|3|TX|A||""')
    assert made.text == "一\n二\n三\n\n四\n5 ^ 6 & 7\n八"


def test_several_observations_stand_under_their_names():
    made = report(
        OBR, TEXT, "NTE|1||再確認", "OBX|2|TX|DIAG^診断||正常", "OBX|3|NM|D||12.5|mm", "OBX|4|CWE|C||1^良性^L~2"
    )
    assert made.text == "所見\n異常なし\n再確認\n\n診断\n正常\n\nD\n12.5 mm\n\nC\n良性\n2"


def test_a_pdf_is_kept_as_it_is():
    folded = DOCUMENT.replace(PDF, PDF[:8] + "\\.br\\" + PDF[8:])
    for document in (
        DOCUMENT,
        folded,
        DOCUMENT.replace("^application^PDF", "^AP^PDF"),
        DOCUMENT.replace("^Base64", "^base64"),
    ):
        made = report(OBR, TEXT, document)
        assert (made.document, made.text, made.place) == (b"%PDF-1.7 invented", "異常なし", "OBX^2^5")


@pytest.mark.parametrize(
    "data", ["%%%%", PDF[:-1], base64.b64encode(b"<html>invented").decode(), "", "ﾊﾟ" + PDF, PDF + "=="]
)
def test_a_document_that_is_no_pdf_in_base64_is_refused(data):
    assert refusal(PID, OBR, TEXT, DOCUMENT.replace(PDF, data)) == ("102", "OBX^2^5")


def test_another_encoding_of_a_document_is_refused():
    assert refusal(PID, OBR, DOCUMENT.replace("Base64", "Hex")) == ("102", "OBX^1^5")


def test_a_second_pdf_in_one_report_is_refused():
    assert refusal(PID, OBR, DOCUMENT, DOCUMENT) == ("102", "OBX^2^5")
    assert refusal(PID, OBR, DOCUMENT, OBR, DOCUMENT) == ("102", "OBX^2^5")


def test_another_object_is_named_where_something_else_is_there_and_refused_where_it_is_all():
    image = DOCUMENT.replace("^application^PDF", "^image^JPEG")
    assert report(OBR, TEXT, image).text == "所見\n異常なし\n\n[JPEG]"
    assert report(OBR, image, DOCUMENT).text == "[JPEG]"
    assert refusal(PID, OBR, image) == ("102", "OBX^1^5")


def test_a_result_of_very_many_values_is_refused_and_text_of_very_many_lines_is_not():
    many = "~".join("12" for _ in range(reports_in.VALUES_MAX + 1))
    assert refusal(PID, OBR, f"OBX|1|NM|A||{many}") == ("102", "OBX^1^5")
    assert report(OBR, f"OBX|1|TX|A||{many}").text.count("\n") == reports_in.VALUES_MAX


def test_a_pointer_to_a_report_stands_in_its_text():
    assert report(OBR, "OBX|1|RP|URL^報告書||https://ris.invalid/r/7^RIS^TEXT").text == "https://ris.invalid/r/7"


def test_a_report_that_is_cancelled_needs_no_content():
    made = report(with_field(OBR, 25, "X"))
    assert (made.status, made.text, made.document) == ("cancelled", "", b"")


# Several


def test_groups_of_different_numbers_are_different_reports():
    second = OBR.replace("R1", "R2").replace("ACC1", "ACC2").replace("P1", "P2")
    made = commands(PID, ORC, OBR, TEXT, ORC.replace("1^", "2^"), second, TEXT)
    assert [(one.number, one.order.accession_number) for one in made] == [("R1", "ACC1"), ("R2", "ACC2")]
    assert [one.order.procedures[0].filler_number for one in made] == ["F1", "F2"]


def test_two_numbers_on_one_order_are_two_reports():
    made = commands(PID, OBR, TEXT, OBR.replace("R1", "R2"), TEXT)
    assert [(one.number, one.order.accession_number) for one in made] == [("R1", "ACC1"), ("R2", "ACC1")]


@pytest.mark.parametrize("number", ["R1^RIS", ""])
def test_groups_of_one_number_or_of_one_order_without_a_number_are_parts_of_one_report(number):
    first = with_field(OBR, 3, number)
    second = with_field(with_field(with_field(first, 4, "CTABD^腹部CT"), 25, "P"), 22, "20251201110000")
    made = report(first, TEXT, second, "OBX|1|TX|FIND||胆石", DOCUMENT)
    assert (made.status, made.title) == ("preliminary", "胸部CT / 腹部CT")
    assert made.text == "胸部CT\n異常なし\n\n腹部CT\n胆石"
    assert (made.document[:5], made.issued_at.hour) == (b"%PDF-", 11)


def test_groups_without_a_number_of_two_orders_are_two_reports():
    first, second = (with_field(with_field("OBR|1", 18, one), 25, "F") for one in ("ACC1", "ACC2"))
    assert [one.order.accession_number for one in commands(PID, first, TEXT, second, TEXT)] == ["ACC1", "ACC2"]


# What a profile may say that it is


def own(means: str) -> profiles.Profile:
    return profiles.parse(
        f'name = "own"\n[[message]]\ntype = "ORU^R01"\nwhen = ["OBX-3 = ARRIVAL"]\nmeans = "{means}"\n'
    )


@pytest.mark.parametrize("event", ["arrive", "unarrive"])
def test_a_notice_of_arrival_is_one_where_the_profile_says_so(event):
    segments = (PID, with_field("PV1|1|O|7W", 19, "V1^^^HOSP"), ORC, OBR, "OBX|1|TX|ARRIVAL||1")
    (command,) = commands(*segments, profile=own(event))
    assert isinstance(command, VisitCommand)
    assert (command.event, command.cause) == (event, "ORU^R01")
    assert (command.visit.value, command.order.accession_number) == ("V1", "ACC1")
    assert isinstance(commands(PID, ORC, OBR, TEXT, profile=own(event))[0], ReportCommand)
    assert isinstance(commands(*segments)[0], ReportCommand), "nobody guesses"


def test_a_profile_may_say_that_it_is_nothing_to_us_and_not_that_it_is_an_order():
    notice = (PID, OBR, "OBX|1|TX|ARRIVAL||1")
    assert commands(*notice, profile=own("ignore")) == []
    with pytest.raises(BrokerError) as refused:
        commands(*notice, profile=own("order"))
    assert refused.value.err == "201"


@pytest.mark.parametrize(
    ("said", "time"),
    [("20251201", "10:20"), ("2025120110", "10:20"), ("2025120109", "09:00"), ("20251201101500", "10:15"), ("20251130", "00:00")],
)  # fmt: skip
def test_a_report_of_which_only_the_day_is_said_was_issued_when_the_message_of_that_day_was_made(said, time):
    """Else a final report of today is older than the preliminary one of this morning."""
    assert f"{report(ORC, with_field(OBR, 22, said), TEXT).issued_at:%H:%M}" == time


@pytest.mark.parametrize("kind", ["application^octet-stream", "AP^Octet-stream", "application^", "^"])
def test_a_pdf_under_a_name_for_any_bytes_is_a_pdf(kind):
    """Table 0291: Octet-stream is an object of any kind."""
    made = report(ORC, OBR, DOCUMENT.replace("application^PDF", kind))
    assert made.document.startswith(b"%PDF-")
    other = base64.b64encode(b"PK invented").decode()
    assert refusal(PID, ORC, OBR, DOCUMENT.replace("application^PDF", kind).replace(PDF, other)) == ("102", "OBX^1^5")


def test_a_report_that_names_two_orders_is_refused_and_one_with_a_number_of_its_own_is_not():
    assert refusal(PID, ORC, with_field(OBR, 2, "P2^HIS"), TEXT) == ("102", "OBR^1^2")
    assert report(ORC, OBR, TEXT).number == "R1"
