"""C-STORE over real sockets: what is acknowledged is on disk byte for byte, what is not leaves nothing."""

import contextlib
import hashlib
import io
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from broker import ids
from broker.archive.digest import canonical_digest
from broker.archive.part10 import data_set_offset
from broker.config import Limits
from broker.dicom.storage_classes import TRANSFER_SYNTAXES
from broker.model.images import Instance, Study
from tests.house import House, eventually
from tests.objects import NATIVE, ct, encoded
from tests.volumes import small_volume

COMPRESSED = [syntax for syntax in TRANSFER_SYNTAXES if syntax not in NATIVE]
PRIVATE_CLASS = "1.2.392.200036.9999.1.2.3"


class Sender:
    """A device that sends just the bytes it is given."""

    def __init__(self, broker: House, sop_class: str, transfer_syntax: str, ae_title: str = "CT1") -> None:
        ae = AE(ae_title)
        ae.add_requested_context(sop_class, transfer_syntax)
        self.association = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER")

    @property
    def accepted(self) -> bool:
        return bool(self.association.accepted_contexts)

    def send(self, sop_class: str, sop_instance: str, data: bytes) -> tuple[int, str]:
        """Status and Error Comment."""
        request = C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, sop_instance
        request.DataSet = io.BytesIO(data)
        self.association._reactor_checkpoint.clear()
        while not self.association._is_paused:
            time.sleep(0.001)
        self.association.dimse.send_msg(request, self.association.accepted_contexts[0].context_id)
        _, answer = self.association.dimse.get_msg(block=True)
        self.association._reactor_checkpoint.set()
        assert answer is not None, "no answer"
        return answer.Status, answer.ErrorComment or ""

    def close(self) -> None:
        self.association.release()


@contextlib.contextmanager
def sender(
    broker: House, sop_class: str | Dataset, transfer_syntax: str = ExplicitVRLittleEndian, ae_title: str = "CT1"
) -> Iterator[Sender]:
    one = Sender(broker, getattr(sop_class, "SOPClassUID", sop_class), transfer_syntax, ae_title)
    yield one
    one.close()


def send(broker: House, ds: Dataset, transfer_syntax: str = ExplicitVRLittleEndian, data: bytes | None = None) -> int:
    with sender(broker, ds, transfer_syntax) as one:
        return one.send(ds.SOPClassUID, ds.SOPInstanceUID, data or encoded(ds, transfer_syntax))[0]


def file_of(ds: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds["PixelData"].VR = "OW" if transfer_syntax in NATIVE else "OB"
    ds.save_as(path, enforce_file_format=True)
    return path


def bytes_of(broker: House, instance: Instance) -> Path:
    """Where the received bytes are now: in staging, or in the archive already."""
    staged = broker.settings.staging_dir / instance.staged_key
    archive = Path(broker.settings.archive.removeprefix("file://"))
    return staged if instance.staged_key and staged.exists() else archive / instance.store_key


def data_set(path: Path) -> bytes:
    with path.open("rb") as file:
        data_set_offset(file)
        return file.read()


def left_behind(broker: House) -> list[str]:
    """Files below staging that no instance names, but for the refused."""
    known = {one.staged_key for one in broker.rows(Instance)}
    files = (path for path in broker.settings.staging_dir.rglob("*") if path.is_file())
    names = {str(path.relative_to(broker.settings.staging_dir)) for path in files}
    return sorted(name for name in names - known if not name.startswith("refused/"))


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_a_device_sends_is_kept_byte_for_byte(broker, transfer_syntax):
    ds = ct()
    assert send(broker, ds, transfer_syntax) == 0x0000
    (instance,) = broker.rows(Instance)
    data = encoded(ds, transfer_syntax)
    assert instance.sha256 == hashlib.sha256(data).hexdigest()
    assert data_set(bytes_of(broker, instance)) == data
    assert (instance.source_ae, instance.source_address) == ("CT1", "127.0.0.1")


@pytest.mark.parametrize("tool", ["storescu", "dcmsend"])
def test_dcmtk_stores_and_nothing_of_the_object_is_lost(broker, tool, tmp_path):
    path = file_of(ct(), tmp_path / "image.dcm")
    command = [tool, "-aet", "CT1", "-aec", "BROKER", "127.0.0.1", str(broker.ports["dicom"]), str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    (instance,) = broker.rows(Instance)
    digests = []
    for file_path, syntax in ((path, ExplicitVRLittleEndian), (bytes_of(broker, instance), None)):
        with file_path.open("rb") as file:
            digests.append(canonical_digest(file, syntax or instance.transfer_syntax_uid, Limits()))
    assert digests[0] == digests[1]


def test_every_compressed_transfer_syntax_passes_byte_for_byte(broker):
    """STO-14, as far as the storing goes."""
    for transfer_syntax in COMPRESSED:
        ds = ct(PixelData=encapsulate([b"\xff\xd8 no picture, but that is not ours to judge \xff\xd9"]))
        data = encoded(ds, transfer_syntax)
        assert send(broker, ds, transfer_syntax, data) == 0x0000, transfer_syntax
        (instance,) = broker.rows(Instance, sop_instance_uid=ds.SOPInstanceUID)
        assert instance.transfer_syntax_uid == transfer_syntax
        assert data_set(bytes_of(broker, instance)) == data


def test_deflated_objects_are_refused_in_the_negotiation(broker):
    """security V6"""
    ae = AE("CT1")
    ae.add_requested_context(ct().SOPClassUID, DeflatedExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER")
    assert not association.accepted_contexts


def test_a_private_storage_class_is_accepted(broker):
    """STO-04"""
    ds = ct(SOPClassUID=PRIVATE_CLASS)
    assert send(broker, ds) == 0x0000
    assert broker.rows(Instance)[0].sop_class_uid == PRIVATE_CLASS


def wrong_class(ds: Dataset) -> bytes:
    return encoded(ct(SOPInstanceUID=ds.SOPInstanceUID, SOPClassUID="1.2.840.10008.5.1.4.1.1.4"))


def without_study(ds: Dataset) -> bytes:
    del ds.StudyInstanceUID
    return encoded(ds)


@pytest.mark.parametrize(
    ("status", "made"),
    [
        (0xA901, lambda ds: encoded(ct())),
        (0xA900, wrong_class),
        (0xC001, without_study),
        (0xC000, lambda ds: encoded(ds)[:-1]),
        (0xC000, lambda ds: encoded(ds) + b"\0\0"),
        (0xC000, lambda ds: b"this is no data set at all"),
    ],
    ids=["STO-02 other instance", "other class", "no study", "cut", "garbage behind", "no data set"],
)
def test_a_wrong_object_gets_its_status_and_the_association_goes_on(broker, status, made):
    """STO-02 and the other rows of conformance.md 3.1."""
    ds = ct()
    with sender(broker, ds) as one:
        answer, comment = one.send(ds.SOPClassUID, ds.SOPInstanceUID, made(ct(SOPInstanceUID=ds.SOPInstanceUID)))
        assert answer == status
        assert comment
        assert "YAMADA" not in comment
        assert broker.rows(Study) == broker.rows(Instance) == []
        assert one.send(ds.SOPClassUID, ds.SOPInstanceUID, encoded(ds))[0] == 0x0000
    assert left_behind(broker) == []
    assert len(list((broker.settings.staging_dir / "refused").iterdir())) == 1


def test_the_same_uid_with_other_pixels_is_kept_beside_the_untouched_first(broker, tmp_path):
    """STO-06"""
    ds = ct()
    assert send(broker, ds) == 0x0000
    (first,) = broker.rows(Instance)
    path = file_of(ds, tmp_path / "image.dcm")
    altered = dcmread(path)
    altered.PixelData = bytes(32)
    altered.save_as(path)
    command = ["storescu", "-aet", "CT1", "-aec", "BROKER", "127.0.0.1", str(broker.ports["dicom"]), str(path)]
    assert subprocess.run(command, timeout=60).returncode == 0
    kept, beside = broker.rows(Instance)
    assert (kept.pk, kept.sha256, kept.conflict_of) == (first.pk, first.sha256, None)
    assert data_set(bytes_of(broker, kept)) == encoded(ds)
    assert (beside.conflict_of, beside.facts["conflict"]) == (first.pk, "pixels")


def test_sent_again_and_after_a_restart_it_is_there_once(broker):
    ds = ct()
    for _ in range(2):
        assert send(broker, ds) == 0x0000
    broker.restart()
    assert send(broker, ds) == 0x0000
    (instance,) = broker.rows(Instance)
    assert data_set(bytes_of(broker, instance)) == encoded(ds)
    assert left_behind(broker) == []


def test_a_connection_that_breaks_in_the_middle_of_an_object_leaves_nothing(broker):
    ds = ct(PixelData=bytes(4 * 1024 * 1024))
    one = Sender(broker, ds.SOPClassUID, ExplicitVRLittleEndian)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    request.DataSet = io.BytesIO(encoded(ds))
    send_pdu, sent = one.association.dul.send_pdu, []

    def cut_after_ten(primitive):
        sent.append(primitive)
        if len(sent) == 10:
            one.association.dul.socket.socket.shutdown(2)
        elif len(sent) < 10:
            send_pdu(primitive)

    one.association.dul.send_pdu = cut_after_ten
    one.association.dimse.send_msg(request, one.association.accepted_contexts[0].context_id)
    assert eventually(lambda: len(sent) > 10)
    eventually(lambda: left_behind(broker) == [])
    assert left_behind(broker) == []
    assert broker.rows(Instance) == []
    assert list((broker.settings.staging_dir / "refused").iterdir()) == []
    one.association.abort()


def test_four_devices_send_one_study_at_once_and_nothing_is_mixed_up(broker):
    study, series = ids.uid("2.25"), ids.uid("2.25")
    images = [[ct(StudyInstanceUID=study, SeriesInstanceUID=series) for _ in range(8)] for _ in range(4)]
    statuses: list[int] = []

    def work(mine: list[Dataset], ae_title: str) -> None:
        with sender(broker, mine[0], ae_title=ae_title) as one:
            statuses.extend(one.send(ds.SOPClassUID, ds.SOPInstanceUID, encoded(ds))[0] for ds in mine)

    threads = [
        threading.Thread(target=work, args=(mine, title))
        for mine, title in zip(images, ("CT1", "CT1", "CT2", "CT2"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0x0000] * 32
    sent = {ds.SOPInstanceUID: hashlib.sha256(encoded(ds)).hexdigest() for mine in images for ds in mine}
    rows = broker.rows(Instance)
    assert {one.sop_instance_uid: one.sha256 for one in rows} == sent
    assert len(rows) == 32
    for one in rows:
        assert hashlib.sha256(data_set(bytes_of(broker, one))).hexdigest() == one.sha256
    assert len(broker.rows(Study)) == 1
    assert left_behind(broker) == []


def test_a_full_disk_is_answered_a700_and_the_next_object_finds_the_room_again(settings):
    """durability.md 1.7: drained, not stored; the association is kept."""
    settings.limits.staging_free_bytes_min = 0
    settings.limits.staging_probe_seconds = 0
    with small_volume(settings.staging_dir, 8):
        broker = House(settings)
        broker.open()
        try:
            large, small = ct(PixelData=bytes(12 * 1024 * 1024)), ct()
            with sender(broker, large) as one:
                assert one.send(large.SOPClassUID, large.SOPInstanceUID, encoded(large))[0] == 0xA700
                assert left_behind(broker) == []
                assert one.send(small.SOPClassUID, small.SOPInstanceUID, encoded(small))[0] == 0x0000
            assert [one.sop_instance_uid for one in broker.rows(Instance)] == [small.SOPInstanceUID]
        finally:
            broker.close()


def test_a_device_without_the_right_is_told_so(broker):
    from broker import access, clock, db, site

    db.run(
        site.add_node, "LOOK1", host="127.0.0.1", port=104, rights=["worklist"], actor="test", now=clock.now(),
    )  # fmt: skip
    access.forget()
    ds = ct()
    with sender(broker, ds, ae_title="LOOK1") as one:
        assert one.send(ds.SOPClassUID, ds.SOPInstanceUID, encoded(ds))[0] == 0x0124
    assert broker.rows(Instance) == []
    assert left_behind(broker) == []


def test_a_large_object_flows_through_in_little_memory(broker, tmp_path):
    """durability.md 1.8: 64 KiB of an object in memory, the rest on disk."""
    path = file_of(ct(PixelData=bytes(2)), tmp_path / "large.dcm")
    size = 200 * 1024 * 1024
    with path.open("r+b") as file:
        file.seek(-6, io.SEEK_END)
        file.write(size.to_bytes(4, "little"))
        file.truncate(file.tell() + size)  # sparse: nothing is written
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_kib()
    command = ["storescu", "-aet", "CT1", "-aec", "BROKER", "127.0.0.1", str(broker.ports["dicom"]), str(path)]
    assert subprocess.run(command, timeout=120).returncode == 0
    assert peak_kib() - before < 24 * 1024
    assert broker.rows(Instance)[0].size > size


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
