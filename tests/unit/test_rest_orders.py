"""The order body of the contract: what does not fit DICOM is refused at its field, without its value."""

import copy
import json

import pytest

from broker.errors import InvalidValue
from broker.ris_bridge import rest_orders

BODY = {
    "accession_number": "ACC1",
    "patient": {"id": "1", "name": {"alphabetic": "YAMADA^TARO"}},
    "requested_procedures": [{"id": "RP1", "steps": [
        {"sps_id": "S1", "modality": "CT", "station_ae_titles": ["CT1"], "scheduled_start": "2025-12-01T09:30:00+09:00"}
    ]}],
}  # fmt: skip


def test_the_body_of_the_contract_is_read():
    assert rest_orders.read(json.dumps(BODY)).requested_procedures[0].steps[0].sps_id == "S1"


@pytest.mark.parametrize(
    ("path", "value"),
    [("accession_number", "A" * 17), ("accession_number", "A\\B"), ("patient.name.alphabetic", "A=B"),
     ("patient.id", "1\n2"), ("requested_procedures.0.placer_order_number", "P" * 65),
     ("requested_procedures.0.steps.0.station_ae_titles.0", "CT\\1"), ("requested_procedures.0.steps.0.modality", "ＣＴ"),
     ("requested_procedures.0.reason", "x" * 65), ("priority", "SOON")],
)  # fmt: skip
def test_a_value_that_no_attribute_can_hold_is_refused_by_name(path, value):
    body = copy.deepcopy(BODY)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    holder = body
    for part in parents:
        holder = holder[part]
    holder[last] = value
    with pytest.raises(InvalidValue) as refused:
        rest_orders.read(json.dumps(body))
    assert refused.value.place == path
    assert value not in str(refused.value)
