"""Objects that no database takes as they are, or that say far too much: kept, held, and harmless to all others."""

import pytest
from sqlmodel import col, select

from broker import db
from broker.model.images import Instance, ReconciliationCase, Study
from tests.house import House, eventually
from tests.objects import ct, encoded
from tests.wire.test_store import bytes_of, data_set, send

pytestmark = pytest.mark.filterwarnings("ignore")
POISON = {"Modality": "C\0TX", "PatientID": "1\x002", "AccessionNumber": "A\0C", "PatientName": "YAMADA\0^TARO"}


def held(broker: House) -> list[tuple[str, str]]:
    """(state of the study, kind of its open case)"""
    query = select(Study.state, ReconciliationCase.kind).where(ReconciliationCase.study_pk == Study.pk)
    return db.read(lambda session: list(session.exec(query.where(col(ReconciliationCase.state) != "RESOLVED")).all()))


def test_a_nul_inside_a_text_waits_for_a_person_and_stops_nothing(broker):
    """PostgreSQL refuses it in every text."""
    sent = [ct(**{keyword: value}) for keyword, value in POISON.items()]
    for ds in sent:
        assert send(broker, ds) == 0x0000
    assert eventually(lambda: len(held(broker)) == len(sent))
    assert held(broker) == [("IN_REVIEW", "study")] * len(sent)
    broker.restart()
    assert send(broker, ct()) == 0x0000
    for ds in sent:
        (instance,) = broker.rows(Instance, sop_instance_uid=ds.SOPInstanceUID)
        assert data_set(bytes_of(broker, instance)) == encoded(ds)
        assert instance.facts["undecodable"]
