"""Objects as devices send them, and the short way into staging."""

from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.dsutils import encode

from broker import ids
from broker.archive.staging import Staged, Staging
from broker.dicom.service import C_STORE_RQ, Command, Peer

NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
PEER = Peer("CT1", "BROKER", "127.0.0.1", "association")


def ct(**changes: object) -> Dataset:
    """A small CT image of an invented patient, with UIDs of its own. changes: attributes by keyword."""
    ds = Dataset()
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, ids.uid("2.25")
    ds.StudyDate, ds.Modality, ds.AccessionNumber = "20251201", "CT", "ACC001"
    ds.IssuerOfAccessionNumberSequence = [_item(LocalNamespaceEntityID="RIS")]
    ds.ReferencedPerformedProcedureStepSequence = [
        _item(ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.3", ReferencedSOPInstanceUID="1.2.9")
    ]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "YAMADA^TARO=山田^太郎", "0000012345", "19700101"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = ids.uid("2.25"), ids.uid("2.25")
    ds.SamplesPerPixel, ds.Rows, ds.Columns, ds.BitsAllocated = 1, 4, 4, 16
    ds.PixelRepresentation = 0
    ds.RequestAttributesSequence = [_item(RequestedProcedureID="RP001", ScheduledProcedureStepID="SPS001")]
    ds.PixelData = bytes(range(32))
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def _item(**values: str) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def encoded(ds: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The data set as it goes over the wire; Pixel Data is given in little endian, or encapsulated."""
    native = transfer_syntax in NATIVE
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = ("OW" if native else "OB"), not native
    pixels = ds.PixelData
    if transfer_syntax == ExplicitVRBigEndian:  # pydicom takes Pixel Data in the byte order that it will have
        ds.PixelData = b"".join(pixels[at : at + 2][::-1] for at in range(0, len(pixels), 2))
    data = encode(ds, transfer_syntax == ImplicitVRLittleEndian, transfer_syntax != ExplicitVRBigEndian)
    ds.PixelData = pixels
    assert data is not None
    return data


def stage(
    staging: Staging, ds: Dataset, transfer_syntax: str = ExplicitVRLittleEndian, *, data: bytes | None = None
) -> Staged:
    """Through a sink, in fragments, as the front door does it. data: other bytes than the data set's."""
    command = Command(C_STORE_RQ, 1, str(ds.SOPClassUID), str(ds.SOPInstanceUID), has_dataset=True)
    sink = staging.open_sink(PEER, command, transfer_syntax)
    view = memoryview(encoded(ds, transfer_syntax) if data is None else data)
    for at in range(0, len(view), 100):
        sink.write(view[at : at + 100])
    sink.finish()
    assert sink.staged is not None
    return sink.staged
