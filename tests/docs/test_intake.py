"""The statements about REST and FHIR name what there is, and nothing else."""

import json
import re
from pathlib import Path
from typing import get_args

from broker.config import Settings
from broker.ris_bridge import rest_orders, rest_road
from broker.ris_bridge.fhir import orders_in, plan, resources, values
from broker.ris_bridge.fhir.elements import ServiceRequest

DOCS = Path(__file__).parent.parent.parent / "docs" / "conformance"
REST, FHIR = ((DOCS / name).read_text("utf-8") for name in ("rest.md", "fhir.md"))


def cells(text: str, first: str) -> list[list[str]]:
    """Rows of the table whose first heading is that."""
    table = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    assert table
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table[1].strip().split("\n")]


def test_every_request_for_an_order_is_in_the_statement():
    documented = {tuple(row[0].strip("`").split(" ")) for row in cells(REST, "request")}
    places = {f"{method} {rest_road.ORDERS}" + ("" if (method, action) == ("POST", "") else "/{id}")
              + (f"/{action}" if action else "") for method, action in rest_road.ACTIONS}  # fmt: skip
    assert {" ".join(one) for one in documented} == places | {f"GET {rest_road.ORDERS}/{{id}}"}


def test_the_example_of_an_order_is_one_and_shows_every_field():
    example = re.search(r"```json\n(.*?)```", REST, re.S)
    assert example
    body = json.loads(example[1])
    rest_orders.placed(rest_orders.new(example[1]), Settings().site)
    procedure = body["requested_procedures"][0]
    for model, shown in (
        (rest_orders.OrderBody, body), (rest_orders.PatientBody, body["patient"]), (rest_orders.ProcedureBody, procedure),
        (rest_orders.StepBody, procedure["steps"][0]), (rest_orders.Code, procedure["code"]),
        (rest_orders.Name, body["patient"]["name"]),
    ):  # fmt: skip
        assert model.model_fields.keys() == shown.keys(), model


def test_every_resource_and_interaction_is_in_the_statement():
    documented = {row[0]: tuple(row[1:]) for row in cells(FHIR, "resource")}
    assert documented == {
        kind: (", ".join(interactions), ", ".join(names) or "–", resources.IN_TRANSACTION[kind])
        for kind, (interactions, names) in resources.CAPABILITIES.items()
    }
    statement = resources.capabilities(Settings())
    assert {one["type"] for one in statement["rest"][0]["resource"]} == documented.keys()


def test_every_status_of_a_request_is_in_the_statement():
    words = {row[0]: row[1:] for row in cells(FHIR, "ServiceRequest.status")}
    documented = {status: said for statuses, said in words.items() for status in statuses.split(", ")}
    assert documented.keys() == set(get_args(ServiceRequest.model_fields["status"].annotation))
    for n, table in enumerate((plan.NEW, plan.KNOWN)):
        assert {status for status, said in documented.items() if said[n] != "refused"} == table.keys()


def test_names_and_words_that_are_ours_are_in_the_statement():
    for word in (orders_in.AE_TITLE, orders_in.PROCEDURE_ID, orders_in.STEP_ID, values.SCHEME, values.UID,
                 *orders_in.PRIORITY, *values.GROUPS):  # fmt: skip
        assert word in FHIR, word
    for status in plan.ENDS:
        assert status in FHIR, status
