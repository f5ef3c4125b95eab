"""Who may come in, and what a stranger is told: DCMTK and pynetdicom against a running broker."""

import subprocess

import pytest
from pynetdicom import AE, build_context
from pynetdicom.sop_class import ModalityWorklistInformationFind

from broker.model.site import UnknownPeer
from tests.house import eventually


def echoscu(broker, calling: str, called: str) -> tuple[int, str]:
    command = ["echoscu", "-v", "-aet", calling, "-aec", called, "127.0.0.1", str(broker.ports["dicom"])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stderr


def test_a_known_device_is_answered(broker):
    status, said = echoscu(broker, "CT1", "BROKER")
    assert status == 0
    assert "Success" in said


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [("STRANGER", "BROKER", "Calling AE Title Not Recognized"), ("CT1", "OTHER", "Called AE Title Not Recognized")],
)
def test_a_stranger_is_rejected_with_the_right_reason_and_listed(broker, calling, called, reason):
    status, said = echoscu(broker, calling, called)
    assert status != 0
    assert reason in said
    (row,) = eventually(lambda: broker.rows(UnknownPeer))
    assert (row.ae_title, row.called, row.address) == (calling, called, "127.0.0.1")


def test_a_known_title_from_another_address_is_rejected(broker):
    from broker import access, clock, db, site

    db.run(site.add_node, "FAR1", host="192.0.2.1", port=104, actor="test", now=clock.now())
    access.forget()
    assert "Calling AE Title Not Recognized" in echoscu(broker, "FAR1", "BROKER")[1]


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (b"\x01\x01\x01\x01", b"\x01\x01\x00\x01"),
        (b"\x01\x01\x01\x00", b"\x01\x01\x00\x00"),
        (b"\x01\x01\x01", b"\x01\x01\x00"),
    ],
)
def test_extended_negotiation_is_answered_in_the_length_that_was_asked(broker, asked, answered):
    """MWL-31"""
    from pydicom.uid import UID
    from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = UID(ModalityWorklistInformationFind), asked
    ae = AE("CT1")
    ae.requested_contexts = [build_context(ModalityWorklistInformationFind)]
    association = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER", ext_neg=[item])
    replies = association.acceptor.sop_class_extended
    association.release()
    assert replies == {ModalityWorklistInformationFind: answered}
