"""A modality: asks for its worklist, reports what it does (MPPS), sends pictures filled from the item (IHE RAD-8)."""

import contextlib
import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    Verification,
)

from broker import ids

ITEM_KEYS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "AccessionNumber",
    "RequestedProcedureID", "RequestedProcedureDescription", "StudyInstanceUID", "ReferringPhysicianName",
    "RequestedProcedureCodeSequence", "ReferencedStudySequence", "AdmissionID",
)  # fmt: skip
STEP_KEYS = (
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
    "ScheduledProcedureStepID", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence",
    "ScheduledStationName", "ScheduledPerformingPhysicianName",
)  # fmt: skip
WAIT_SECONDS = 60


class Refused(Exception):
    """The other side did not accept the association or answered nothing."""


@contextlib.contextmanager
def held(association: Association) -> Iterator[Association]:
    """Released at the end. Raises Refused where the other side went between two requests."""
    try:
        yield association
    except RuntimeError as error:  # pynetdicom's, for a request without an association
        if association.is_established:
            raise
        raise Refused("association gone") from error
    finally:
        association.release()


class Modality:
    """One scanner. Every call opens its own association and releases it, as scanners do."""

    def __init__(
        self,
        ae_title: str,
        host: str,
        port: int,
        *,
        called: str = "BROKER",
        modality: str = "CT",
        station: str = "",
        zone: str = "Asia/Tokyo",
    ) -> None:
        self.ae_title, self.host, self.port, self.called = ae_title, host, port, called
        self.modality, self.station = modality, station or ae_title
        self.zone = ZoneInfo(zone)
        self._pps_counter = 0

    def now(self) -> dt.datetime:
        """A scanner writes the wall clock of its site."""
        return dt.datetime.now(self.zone)

    def associate(self, contexts: Sequence[tuple[str, Sequence[str]]]) -> Association:
        ae = AE(self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = WAIT_SECONDS
        for sop_class, syntaxes in contexts:
            ae.add_requested_context(sop_class, list(syntaxes))
        association = ae.associate(self.host, self.port, ae_title=self.called)
        if not association.is_established:
            raise Refused("association refused")
        return association

    def echo(self) -> int:
        with held(self.associate([(Verification, [ImplicitVRLittleEndian])])) as association:
            return _status(association.send_c_echo())

    def worklist(self, query: Dataset | None = None, **step_keys: str) -> list[Dataset]:
        """The items that match. step_keys: by keyword, such as Modality='CT'. Raises Refused on any failure status."""
        items = []
        with held(self.associate([(ModalityWorklistInformationFind, [ImplicitVRLittleEndian])])) as association:
            for status, identifier in association.send_c_find(
                query or self.query(**step_keys), ModalityWorklistInformationFind
            ):
                code = _status(status)
                if code not in (0xFF00, 0xFF01, 0x0000):
                    raise Refused(f"C-FIND {code:04X}")
                if identifier is not None:
                    items.append(identifier)
        return items

    def query(self, **step_keys: str) -> Dataset:
        query = Dataset()
        for keyword in ITEM_KEYS:
            setattr(query, keyword, Items() if keyword.endswith("Sequence") else None)
        step = Dataset()
        for keyword in STEP_KEYS:
            setattr(step, keyword, Items() if keyword.endswith("Sequence") else step_keys.get(keyword))
        step.ScheduledStationAETitle = step_keys.get("ScheduledStationAETitle", self.ae_title)
        query.ScheduledProcedureStepSequence = [step]
        return query

    def start(self, items: Sequence[Dataset], *, uid: str = "", at: dt.datetime | None = None, **changes: Any) -> str:
        """N-CREATE IN PROGRESS for worklist items (several: group case; none: unscheduled). The MPPS UID."""
        uid = uid or ids.uid("2.25")
        mpps = self.performed(items, at=at)
        for keyword, value in changes.items():
            setattr(mpps, keyword, value)
        status, _ = self._mpps("send_n_create", mpps, uid)
        if status != 0x0000:
            raise Refused(f"N-CREATE {status:04X}")
        return uid

    def performed(self, items: Sequence[Dataset], *, at: dt.datetime | None = None) -> Dataset:
        """An N-CREATE attribute list with everything of PS3.4 Table F.7.2-1 that is type 1 or 2."""
        now = at or self.now()
        self._pps_counter += 1
        first = items[0] if items else Dataset()
        mpps = Dataset()
        mpps.SpecificCharacterSet = first.get("SpecificCharacterSet")
        mpps.ScheduledStepAttributesSequence = [_scheduled(item) for item in items] or [_unscheduled()]
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(mpps, keyword, first.get(keyword))
        if first.get("IssuerOfPatientID"):
            mpps.IssuerOfPatientID = first.IssuerOfPatientID
        mpps.ReferencedPatientSequence = []
        mpps.PerformedProcedureStepID = f"PPS{self._pps_counter}"
        mpps.PerformedStationAETitle = self.ae_title
        mpps.PerformedStationName = self.station
        mpps.PerformedLocation = None
        mpps.PerformedProcedureStepStartDate = now.strftime("%Y%m%d")
        mpps.PerformedProcedureStepStartTime = now.strftime("%H%M%S")
        mpps.PerformedProcedureStepStatus = "IN PROGRESS"
        mpps.PerformedProcedureStepDescription = None
        mpps.PerformedProcedureTypeDescription = None
        mpps.ProcedureCodeSequence = []
        mpps.PerformedProcedureStepEndDate = None
        mpps.PerformedProcedureStepEndTime = None
        mpps.PerformedProcedureStepDiscontinuationReasonCodeSequence = []
        mpps.Modality = self.modality
        mpps.StudyID = None
        mpps.PerformedProtocolCodeSequence = []
        mpps.PerformedSeriesSequence = []
        return mpps

    def finish(
        self,
        uid: str,
        images: Iterable[Dataset],
        *,
        status: str = "COMPLETED",
        reason: tuple[str, str, str] | None = None,
    ) -> None:
        """N-SET to a final state. reason: (value, scheme, meaning), CID 9301."""
        code, _ = self._mpps("send_n_set", self.final(images, status=status, reason=reason), uid)
        if code not in (0x0000, 0x0107):
            raise Refused(f"N-SET {code:04X}")

    def final(
        self, images: Iterable[Dataset], *, status: str = "COMPLETED", reason: tuple[str, str, str] | None = None
    ) -> Dataset:
        now = self.now()
        mpps = Dataset()
        mpps.PerformedProcedureStepStatus = status
        mpps.PerformedProcedureStepEndDate = now.strftime("%Y%m%d")
        mpps.PerformedProcedureStepEndTime = now.strftime("%H%M%S")
        if reason:
            mpps.PerformedProcedureStepDiscontinuationReasonCodeSequence = [_code(*reason)]
        series: dict[str, list[Dataset]] = {}
        for image in images:
            series.setdefault(image.SeriesInstanceUID, []).append(image)
        mpps.PerformedSeriesSequence = [
            _performed_series(uid, members) for uid, members in (series or {ids.uid("2.25"): []}).items()
        ]
        return mpps

    def _mpps(self, verb: str, attributes: Dataset, uid: str) -> tuple[int, Dataset | None]:
        with held(self.associate([(ModalityPerformedProcedureStep, [ExplicitVRLittleEndian])])) as association:
            status, answer = getattr(association, verb)(attributes, ModalityPerformedProcedureStep, uid)
            return _status(status), answer

    def images(
        self, item: Dataset | None, count: int = 2, *, mpps_uid: str = "", series_uid: str = "", **changes: Any
    ) -> list[Dataset]:
        """Pictures as a scanner fills them from a worklist item. changes: attributes by keyword, set last."""
        series_uid = series_uid or ids.uid("2.25")
        made = [self._image(item, number + 1, series_uid, mpps_uid) for number in range(count)]
        study_uid = made[0].StudyInstanceUID
        for image in made:
            image.StudyInstanceUID = study_uid
            for keyword, value in changes.items():
                setattr(image, keyword, value)
        return made

    def _image(self, item: Dataset | None, number: int, series_uid: str, mpps_uid: str) -> Dataset:
        now = self.now()
        image = Dataset()
        image.SOPClassUID = CTImageStorage
        image.SOPInstanceUID = ids.uid("2.25")
        image.SeriesInstanceUID = series_uid
        image.Modality = self.modality
        image.StationName = self.station
        for prefix in ("Study", "Series", "Acquisition", "Content"):
            setattr(image, f"{prefix}Date", now.strftime("%Y%m%d"))
            setattr(image, f"{prefix}Time", now.strftime("%H%M%S"))
        image.SeriesNumber, image.InstanceNumber = 1, number
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        if mpps_uid:
            image.ReferencedPerformedProcedureStepSequence = [_reference(ModalityPerformedProcedureStep, mpps_uid)]
        self._fill(image, item)
        _pixels(image)
        return image

    def _fill(self, image: Dataset, item: Dataset | None) -> None:
        """What IHE SWF copies from the worklist item (conformance.md 3.2)."""
        if item is None:
            image.StudyInstanceUID = ids.uid("2.25")
            return
        if item.get("SpecificCharacterSet"):
            image.SpecificCharacterSet = item.SpecificCharacterSet
        for keyword in ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
                        "AccessionNumber", "StudyInstanceUID", "ReferringPhysicianName"):  # fmt: skip
            if item.get(keyword) not in (None, ""):
                setattr(image, keyword, item.get(keyword))
        image.StudyID = item.get("RequestedProcedureID", "")
        step = item.ScheduledProcedureStepSequence[0]
        request = Dataset()
        request.RequestedProcedureID = item.get("RequestedProcedureID", "")
        request.ScheduledProcedureStepID = step.get("ScheduledProcedureStepID", "")
        request.ScheduledProcedureStepDescription = step.get("ScheduledProcedureStepDescription", "")
        image.RequestAttributesSequence = [request]

    def store(self, images: Sequence[Dataset], *, transfer_syntax: str = ExplicitVRLittleEndian) -> list[int]:
        """C-STORE all on one association; the status of each."""
        classes = {str(image.SOPClassUID) for image in images}
        contexts = [(sop_class, [transfer_syntax]) for sop_class in sorted(classes)]
        with held(self.associate(contexts)) as association:
            return [_status(association.send_c_store(_with_meta(image, transfer_syntax))) for image in images]


def evidence(image: Dataset) -> tuple[str, str]:
    """SOP Instance UID and the SHA-256 of the data set as it goes over the wire (Explicit VR LE)."""
    from pynetdicom.dsutils import encode

    return image.SOPInstanceUID, hashlib.sha256(encode(image, False, True) or b"").hexdigest()


def _status(status: Dataset) -> int:
    if "Status" not in status:
        raise Refused("no answer")
    return int(status.Status)


def _with_meta(image: Dataset, transfer_syntax: str) -> Dataset:
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    return image


def _pixels(image: Dataset, size: int = 64) -> None:
    image.Rows = image.Columns = size
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    seed = hashlib.sha256(image.SOPInstanceUID.encode()).digest()
    image.PixelData = seed * (size * size * 2 // len(seed))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _reference(sop_class: str, uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, uid
    return reference


def _scheduled(item: Dataset) -> Dataset:
    step = item.ScheduledProcedureStepSequence[0]
    scheduled = Dataset()
    for keyword in ("StudyInstanceUID", "AccessionNumber", "RequestedProcedureID", "RequestedProcedureDescription"):
        setattr(scheduled, keyword, item.get(keyword))
    scheduled.ReferencedStudySequence = []
    scheduled.ScheduledProcedureStepID = step.get("ScheduledProcedureStepID")
    scheduled.ScheduledProcedureStepDescription = step.get("ScheduledProcedureStepDescription")
    scheduled.ScheduledProtocolCodeSequence = step.get("ScheduledProtocolCodeSequence") or []
    return scheduled


def _unscheduled() -> Dataset:
    """PS3.17 J: a study of the scanner's own, everything else of type 2 empty."""
    scheduled = Dataset()
    scheduled.StudyInstanceUID = ids.uid("2.25")
    for keyword in ("AccessionNumber", "RequestedProcedureID", "RequestedProcedureDescription",
                    "ScheduledProcedureStepID", "ScheduledProcedureStepDescription"):  # fmt: skip
        setattr(scheduled, keyword, None)
    scheduled.ReferencedStudySequence = []
    scheduled.ScheduledProtocolCodeSequence = []
    return scheduled


def _performed_series(uid: str, images: Sequence[Dataset]) -> Dataset:
    series = Dataset()
    series.PerformingPhysicianName = None
    series.OperatorsName = None
    series.ProtocolName = "ROUTINE"
    series.SeriesInstanceUID = uid
    series.SeriesDescription = None
    series.RetrieveAETitle = None
    series.ReferencedImageSequence = [_reference(image.SOPClassUID, image.SOPInstanceUID) for image in images]
    series.ReferencedNonImageCompositeSOPInstanceSequence = []
    return series
