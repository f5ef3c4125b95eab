"""SIGTERM: who has begun is answered, who is idle is told, and nothing that was answered is lost."""

import threading
import time
from collections.abc import Iterator

import pytest

from broker import db
from broker.dicom import pdu
from broker.model.images import Instance
from tests import raw
from tests.apart import Apart
from tests.objects import ct
from tests.trouble import locked


@pytest.fixture
def apart(database_url, tmp_path) -> Iterator[Apart]:
    broker = Apart(database_url, tmp_path)
    yield broker
    broker.close()


def test_an_object_in_work_is_answered_and_kept_and_an_idle_device_is_told(premises, apart, database_url):
    port = apart.ports["dicom"]
    with raw.associated(port, raw.CT) as sender, raw.associated(port, raw.CT) as idle:
        ds = ct()
        with locked(premises._database, "instance"):
            sender.send(raw.store(ds))
            time.sleep(0.5)
            apart.terminate()
            time.sleep(1)
        assert sender.status() == (0x0000, "")
        assert sender.read()[0] == idle.read()[0] == pdu.ABORT
    apart.process.join(20)
    assert apart.process.exitcode == 0
    db.open_engine(database_url)
    assert db.read(lambda session: session.query(Instance.sop_instance_uid).all()) == [(ds.SOPInstanceUID,)]
    db.close_engine()


def test_a_query_and_half_an_object_are_finished(apart):
    port = apart.ports["dicom"]
    data = raw.store(ct(PixelData=bytes(40_000), Rows=100, Columns=200))
    with raw.associated(port, raw.CT) as sender:
        sender.send(data[:20_000])
        time.sleep(0.3)
        threading.Timer(0.5, sender.send, [data[20_000:]]).start()
        apart.terminate()
        assert sender.status() == (0x0000, "")
    apart.process.join(20)
    assert apart.process.exitcode == 0
