"""JJ1017: what becomes of a code of an order, and what modality its first digit says (conformance.md 5.9)."""

import pytest
from structlog.testing import capture_logs

from broker.config import Limits
from broker.errors import InvalidValue
from broker.ris_bridge.hl7 import message, values

CHEST = "6000000200000000"  # 16M
DETAIL = "0101000000000000"  # 16S


def ipc(code: str) -> message.Segment:
    head = "MSH|^~\\&|A|B|C|D|1||OMI^O23|1|P|2.5||||||UNICODE UTF-8\r"
    return message.parse(f"{head}IPC|A|R|1.2|S||{code}".encode(), Limits(), "").first("IPC")


def codes(code: str) -> list | None:
    return values.codes(ipc(code), 6)


@pytest.mark.parametrize(
    ("scheme", "designator"),
    [("JJ1017-32", "JJ1017-16M"), ("JJ1017", "JJ1017-16M"), ("JJ1017-16M", "JJ1017-16M"), ("", "JJ1017-16M"),
     ("JJ1017-16M/H01", "JJ1017-16M/H01"), ("JJ1017-32/H01", "JJ1017-16M/H01"), ("JJ1017-32/HOSP1", "JJ1017-16M/HOSP1")],
)  # fmt: skip
def test_32_characters_are_a_code_and_its_imaging_conditions(scheme, designator):
    assert codes(f"{CHEST}{DETAIL}^胸部単純CT^{scheme}") == [
        {
            "CodeValue": CHEST, "CodingSchemeDesignator": designator, "CodeMeaning": "胸部単純CT",
            "ProtocolContextSequence": [
                {
                    "ValueType": "CODE",
                    "ConceptNameCodeSequence": [
                        {"CodeValue": "123016", "CodingSchemeDesignator": "DCM", "CodeMeaning": "Imaging Conditions"}
                    ],
                    "ConceptCodeSequence": [
                        {"CodeValue": DETAIL, "CodingSchemeDesignator": "JJ1017-16S", "CodeMeaning": DETAIL}
                    ],
                }
            ],
        }
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "designator"),
    [("JJ1017-16M", "JJ1017-16M"), ("JJ1017", "JJ1017-16M"), ("jj1017-32", "JJ1017-16M"), ("JJ1017-16M/H01", "JJ1017-16M/H01"),
     ("", "99LOCAL"), ("99XYZ", "99XYZ"), ("JJ1017-16S", "JJ1017-16S")],
)  # fmt: skip
def test_16_characters_are_the_code_alone(scheme, designator):
    (code,) = codes(f"{CHEST}^胸部^{scheme}")
    assert code == {"CodeValue": CHEST, "CodingSchemeDesignator": designator, "CodeMeaning": "胸部"}


@pytest.mark.parametrize(
    "code",
    [f"{CHEST}{DETAIL}"[:31], f"{CHEST}{DETAIL}0", CHEST[:15], "6", f"I{CHEST[1:]}", f"{CHEST[:-1]}O", f"{CHEST}{DETAIL[:-1]}I",
     f"f{CHEST[1:]}", "６" * 16],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["JJ1017-32", "JJ1017-16M/H01"])
def test_what_is_no_such_code_is_dropped_and_its_text_kept(code, scheme):
    segment = ipc(f"{code}^胸部単純CT^{scheme}")
    with capture_logs() as logs:
        assert values.codes(segment, 6) == []
    assert values.shown(segment, 6, "ScheduledProcedureStepDescription", 2) == "胸部単純CT"
    assert logs == [{"event": "hl7.code_dropped", "place": "IPC^1^6", "log_level": "warning"}]


def test_of_several_codes_only_the_wrong_one_is_dropped():
    (code,) = codes(f"{CHEST}{DETAIL}0^a^JJ1017-32~{CHEST}{DETAIL}^b^JJ1017-32")
    assert code["CodeMeaning"] == "b"


def test_a_site_whose_name_does_not_fit_into_the_scheme_has_no_code():
    assert codes(f"{CHEST}^胸部^JJ1017-16M/HOSPITAL") == []


def test_a_code_of_another_scheme_that_is_too_long_is_refused():
    for code in (f"{CHEST}{DETAIL}^x^99XYZ", f"{CHEST}0^x^", f"{CHEST}^x^{'9' * 17}"):
        with pytest.raises(InvalidValue) as error:
            codes(code)
        assert error.value.err == "102"


def test_no_code_says_nothing_and_a_null_says_delete():
    assert codes("") is None
    assert codes("^胸部^JJ1017-32") is None
    assert codes('""') == []


@pytest.mark.parametrize(
    ("digit", "modality"),
    [("1", "CR"), ("2", "RF"), ("3", "XA"), ("6", "CT"), ("7", "MR"), ("8", "NM"), ("9", "US"), ("F", "MG"),
     *((digit, None) for digit in "045ABCDEGHZ")],
)  # fmt: skip
def test_the_first_digit_says_the_modality_where_it_says_one(digit, modality):
    for code in (f"{digit}{CHEST[1:]}^x^JJ1017-16M", f"{digit}{CHEST[1:]}{DETAIL}^x^JJ1017-32/H01"):
        assert values.modality_of(codes(code)) == modality


def test_a_code_of_another_scheme_says_no_modality():
    assert values.modality_of(codes(f"{CHEST}^x^99XYZ")) is None
    assert values.modality_of(codes(f"{CHEST}^x^99XYZ~7{CHEST[1:]}^x^JJ1017-16M")) == "MR"
    assert values.modality_of(codes(f"{CHEST}^x^JJ1017-16S")) is None
    assert values.modality_of([]) is values.modality_of(None) is None
