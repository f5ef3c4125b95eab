"""An entry of another provider's worklist as an order (PS3.4 Table K.6-1, conformance.md 1.2). Pure.

It is judged as what HL7 brings: what an identifier, a code or a time cannot be refuses it, a text that is too long is
cut, what else cannot be is left out and told. An entry that lacks what an item cannot do without is taken, and stands
as an exception."""

import datetime as dt
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from broker import ids
from broker.config import Limits, Site
from broker.dicom import tree
from broker.dicom.tree import CHARSET, IMPLICIT_LE, Tree
from broker.errors import InvalidValue, MissingField, Unreadable
from broker.mwl import keys, matching, order_identity
from broker.mwl.commands import PRIORITIES, Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.patients import OF_A_VISIT
from broker.ris_bridge import alike, rest_orders
from broker.ris_bridge import upstream_elements as elements
from broker.ris_bridge.hl7 import values

UTF_8 = "ISO_IR 192"
# Statuses of an entry that no device is to be shown any more (conformance.md 1.8); some are words of others.
OVER = ("STARTED", "DEPARTED", "COMPLETED", "DISCONTINUED")
CANCELED = ("CANCELED", "CANCELLED")
HERE = ("ARRIVED", "READY")
OF_THE_PATIENT = (
    "IssuerOfPatientIDQualifiersSequence", "PatientPrimaryLanguageCodeSequence", "PatientAddress", "CountryOfResidence",
    "RegionOfResidence", "PatientTelephoneNumbers", "EthnicGroup", "Occupation", "SmokingStatus",
    "PatientReligiousPreference", "ConfidentialityConstraintOnPatientDataDescription",
)  # fmt: skip
OF_THE_ORDER = (
    *OF_A_VISIT, "AdmissionID", "IssuerOfAdmissionIDSequence", "CurrentPatientLocation", "PatientInstitutionResidence",
    "ReferringPhysicianName", "VisitStatusID", "VisitComments", "InstitutionName", "RouteOfAdmissions", "AdmittingDate",
    "ServiceEpisodeID", "PertinentDocumentsSequence", "ReferencedPatientSequence", "RequestingPhysician",
    "RequestingService", "ImagingServiceRequestComments", "OrderEnteredBy", "OrderEntererLocation",
    "OrderCallbackPhoneNumber", "IssueDateOfImagingServiceRequest",
)  # fmt: skip
OF_THE_PROCEDURE = (
    "ReasonForTheRequestedProcedure", "ReasonForRequestedProcedureCodeSequence", "RequestedProcedureComments",
    "RequestedProcedureLocation", "PatientTransportArrangements", "NamesOfIntendedRecipientsOfResults",
    "ReportingPriority", "ConfidentialityCode", "ReferencedStudySequence", "StudyDate", "StudyTime", "StudyID",
    "ScheduledSpecimenSequence", "BarcodeValue",
)  # fmt: skip
OF_THE_STEP = (
    "ScheduledPerformingPhysicianName", "ScheduledProtocolCodeSequence", "ScheduledStationName",
    "ScheduledProcedureStepLocation", "PreMedication", "RequestedContrastAgent", "ScheduledProcedureStepEndDate",
    "ScheduledProcedureStepEndTime", "CommentsOnTheScheduledProcedureStep", "ReferencedDefinedProtocolSequence",
    "ReferencedPerformedProtocolSequence", "ScheduledPerformingPhysicianIdentificationSequence",
)  # fmt: skip
FIELDS = (
    "PatientName", "PatientID", "IssuerOfPatientID", "OtherPatientIDsSequence", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "IssuerOfAccessionNumberSequence", "RequestedProcedureID", "StudyInstanceUID",
    "RequestedProcedureDescription", "RequestedProcedureCodeSequence", "RequestedProcedurePriority",
    "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest", "OrderPlacerIdentifierSequence",
    "OrderFillerIdentifierSequence", "WorklistLabel",
)  # fmt: skip
STEP_FIELDS = (
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
    "ScheduledProcedureStepID", "ScheduledProcedureStepDescription", "ScheduledProcedureStepStatus",
)  # fmt: skip
TOLD = frozenset(map(elements.tag_of, (*FIELDS, *OF_THE_PATIENT, *OF_THE_ORDER, *OF_THE_PROCEDURE)))
TOLD |= {CHARSET, matching.TIMEZONE}
TOLD_OF_STEP = frozenset(map(elements.tag_of, (*STEP_FIELDS, *OF_THE_STEP)))
NOT_READ = {"name", "language"}  # of the site: no entry means another thing by them
ITEM = struct.pack("<HH", 0xFFFE, 0xE000)


@dataclass(frozen=True)
class Reads:
    """How the answers of one provider are read: by its issuers, label and character set, under the site's rules."""

    site: Site
    limits: Limits
    patient_id_issuer: str = ""
    accession_issuer: str = ""
    label: str = ""
    character_set: str = ""

    @property
    def digest(self) -> str:
        """Another one where the same bytes may now be read otherwise."""
        site = self.site.model_dump_json(exclude=NOT_READ)
        said = (self.patient_id_issuer, self.accession_issuer, self.character_set, site)
        return hashlib.sha256("\x1f".join(said).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """What is listed of one step. command: asks for it. left_out: keywords of what could not be kept. status:
    (0040,0020) there."""

    command: OrderCommand
    left_out: tuple[str, ...] = ()
    status: str = ""

    @property
    def procedure(self) -> ProcedureCommand:
        return self.command.procedures[0]

    @property
    def step(self) -> StepCommand:
        return self.procedure.steps[0]


def question(reads: Reads, keys_asked: Tree) -> tuple[bytes, Tree]:
    """The identifier with everything that an order can carry, and the same as a tree. keys_asked: those with a value,
    the step's inside its sequence."""
    asked: Tree = {elements.tag_of(name): _empty(name) for name in
                   (*FIELDS, *OF_THE_PATIENT, *OF_THE_ORDER, *OF_THE_PROCEDURE)}  # fmt: skip
    step: Tree = {elements.tag_of(name): _empty(name) for name in (*STEP_FIELDS, *OF_THE_STEP)}
    step |= keys.step_keys(keys_asked)
    asked |= {tag: value for tag, value in keys_asked.items() if tag != STEP_SEQUENCE}
    asked[STEP_SEQUENCE] = ("SQ", [step])
    sets = (reads.character_set or UTF_8) if reads.character_set or not _is_ascii(keys_asked) else ""
    if sets:
        asked[CHARSET] = ("CS", sets)
    return tree.write(asked, IMPLICIT_LE, tuple(sets.split("\\"))), asked


def _empty(keyword: str) -> tuple[str, str | bytes | list[Tree]]:
    vr = tree.vr_of(elements.tag_of(keyword))
    return vr, [] if vr == "SQ" else b"" if vr == "US" else ""


def _is_ascii(asked: Tree) -> bool:
    return all(
        all(map(_is_ascii, value)) if isinstance(value, list) else value.isascii() for _, value in asked.values()
    )


# Bytes


def joined(identifiers: Sequence[bytes]) -> bytes:
    """What one answer says of one step: the identifier as it came; of several, the items of a sequence."""
    if len(identifiers) == 1:
        return identifiers[0]
    return b"".join(ITEM + struct.pack("<I", len(one)) + one for one in identifiers)


def parted(raw: bytes) -> list[bytes]:
    """Raises Unreadable for what `joined` did not make."""
    if not raw.startswith(ITEM):
        return [raw]
    parts, at = [], 0
    while at < len(raw):
        if raw[at : at + 4] != ITEM or at + 8 > len(raw):
            raise Unreadable("data set", "cannot be read")
        end = at + 8 + int.from_bytes(raw[at + 4 : at + 8], "little")
        parts.append(raw[at + 8 : end])
        at = end
    return parts


def read(raw: bytes, reads: Reads) -> Tree:
    """Raises Unreadable. Where the answer names no character set, that of the provider's entry counts."""
    item = _read(raw, reads)
    if _has_escape(item):  # else half of it would be taken for a name
        raise Unreadable("(0008,0005)", "does not say in which set its text is: say the character_set of the provider")
    return item


def _read(raw: bytes, reads: Reads) -> Tree:
    limits = reads.limits.model_copy(update={"header_elements_max": reads.limits.upstream_elements_max})
    if reads.character_set:
        value = reads.character_set.encode("ascii")
        value += b" " * (len(value) % 2)
        body = raw[12:] if raw.startswith(b"\x08\0\0\0") else raw  # a group length: of what it counts, one is missing
        try:
            return tree.read(struct.pack("<HHI", 8, 5, len(value)) + value + body, IMPLICIT_LE, limits)
        except Unreadable:  # as a rule it has one of its own, which stands first
            pass
    return tree.read(raw, IMPLICIT_LE, limits)


def _has_escape(item: Tree) -> bool:
    return any(
        any(map(_has_escape, value)) if isinstance(value, list) else isinstance(value, str) and "\x1b" in value
        for _, value in item.values()
    )


def identity(item: Tree, reads: Reads) -> str:
    """By what it is known there: the accession number with its issuer, else the study, of which some providers make a
    new UID for each answer; the procedure and the step."""
    step = keys.step_keys(item)
    accession = _accession(item, reads)
    exam = "\x1f".join(accession) if accession[0] else elements.plain(item, "StudyInstanceUID")
    said = (exam, elements.plain(item, "RequestedProcedureID"), elements.plain(step, "ScheduledProcedureStepID"))
    return hashlib.sha256("\x1f".join(said).encode()).hexdigest()


def told(item: Tree) -> Tree:
    """What an order can carry: a provider may say, too, when it was asked."""
    kept: Tree = {tag: item[tag] for tag in sorted(item.keys() & TOLD)}
    steps = item.get(STEP_SEQUENCE, ("SQ", []))[1]
    if isinstance(steps, list):
        kept[STEP_SEQUENCE] = ("SQ", [{tag: one[tag] for tag in sorted(one.keys() & TOLD_OF_STEP)} for one in steps])
    return kept


def status_of(item: Tree) -> str:
    return elements.plain(keys.step_keys(item), "ScheduledProcedureStepStatus").upper()


def check_key(keyword: str, value: str) -> None:
    """Raises InvalidValue for what a worklist cannot be asked (PS3.4 C.2.2.2)."""
    tag = elements.tag_of(keyword)
    key: Tree = {tag: (tree.vr_of(tag), value)}
    matching.check({STEP_SEQUENCE: ("SQ", [key])} if tag in keys.STEP_RETURNED else key)


def can_ask(keyword: str, value: str, character_set: str) -> bool:
    """Whether the key can be written in that set; empty: in UTF-8."""
    tag = elements.tag_of(keyword)
    try:
        tree.write({tag: (tree.vr_of(tag), value)}, IMPLICIT_LE, tuple((character_set or UTF_8).split("\\")))
    except ValueError:
        return False
    return True


# Every provider looks at it, and some answer with the title that they know the device by.
TRUSTED = (elements.tag_of("ScheduledStationAETitle"),)


def is_asked_for(item: Tree, asked: Tree, but: tuple[int, ...] = TRUSTED) -> bool:
    """Whether its values are those that were asked for, as far as it has them: some providers do not look at every
    key, and some do not tell what they looked at. but: keys that are not looked at here."""
    step = keys.step_keys(item)
    wanted = {tag: one for tag, one in keys.step_keys(asked).items() if step.get(tag, ("", ""))[1] and tag not in but}
    query = {tag: one for tag, one in asked.items() if tag != STEP_SEQUENCE and item.get(tag, ("", ""))[1]}
    return matching.matches(matching.selective({**query, STEP_SEQUENCE: ("SQ", [wanted])}), item)


# To a command


def entry(raw: bytes, reads: Reads, at: dt.datetime | None) -> Entry:
    """Raises Unreadable, MissingField or InvalidValue, which name the attribute and never its value."""
    found = [_entry(read(one, reads), reads, at) for one in parted(raw)]
    first = found[0]
    for other in found[1:]:
        same = replace(other.command, procedures=()) == replace(first.command, procedures=())
        both = (first.procedure, other.procedure)
        if not first.step.sps_id or not same or alike.contradiction(both):
            raise InvalidValue("(0040,0100)", "is listed twice in one answer, with other contents", err="102")
        steps = alike.once((*first.procedure.steps, *other.procedure.steps))
        first = replace(first, command=replace(first.command, procedures=(replace(first.procedure, steps=steps),)))
    return first


def _entry(item: Tree, reads: Reads, at: dt.datetime | None) -> Entry:
    steps = item.get(STEP_SEQUENCE, ("SQ", []))[1]
    if not isinstance(steps, list) or len(steps) != 1:
        raise InvalidValue("(0040,0100)", "must have one item", err="102")
    site, left_out = reads.site, list[str]()
    number, issuer = _accession(item, reads)
    study_uid = elements.plain(item, "StudyInstanceUID")
    if study_uid and not ids.valid_uid(study_uid):
        raise InvalidValue(elements.place("StudyInstanceUID"), "is no UID", err="102")
    if not number and not study_uid:
        raise MissingField(elements.place("AccessionNumber"), "neither it nor a Study Instance UID names the exam")
    step = _step(steps[0], item, reads, left_out)
    procedure = _procedure(item, study_uid, step, left_out, site)
    for name, value in (
        ("AccessionNumber", number), ("RequestedProcedureID", procedure.requested_procedure_id),
        ("ScheduledProcedureStepID", step.sps_id), ("StudyInstanceUID", study_uid),
    ):  # fmt: skip
        if not value and getattr(site, f"missing_{POLICIES[name]}") == "reject":
            raise MissingField(elements.place(name), "is required")
    # What is missing must be the same each time that the entry is read.
    policies = replace(
        order_identity.policies(site), requested_procedure_id="derive", sps_id="derive", study_instance_uid="derive"
    )
    status = status_of(item)
    attributes = elements.attributes(item, OF_THE_ORDER, left_out, site)
    if elements.has_universal(item, "IssuerOfAccessionNumberSequence"):
        attributes |= elements.attributes(item, ("IssuerOfAccessionNumberSequence",), left_out, site)
    command = OrderCommand(
        "NW",
        accession_number=number,
        accession_issuer=issuer or site.accession_issuer,
        is_issuer_assumed=not issuer,
        priority=_priority(item),
        patient=_person(item, reads, left_out),
        procedures=(procedure,),
        begun=status in HERE,
        at=at,
        attributes=attributes,
        place="item",
        known="change",
        policies=policies,
        label=reads.label,
        is_listed=True,
    )
    return Entry(command, tuple(dict.fromkeys(left_out)), status)


POLICIES = {
    "AccessionNumber": "accession_number", "RequestedProcedureID": "requested_procedure_id",
    "ScheduledProcedureStepID": "sps_id", "StudyInstanceUID": "study_instance_uid",
}  # fmt: skip


def _accession(item: Tree, reads: Reads) -> tuple[str, str]:
    """The issuer that the entry names, else that of its provider."""
    issuer = elements.namespace(item, "IssuerOfAccessionNumberSequence") or reads.accession_issuer
    return elements.exact(item, "AccessionNumber"), issuer


def _person(item: Tree, reads: Reads, left_out: list[str]) -> PersonCommand:
    issuer = elements.exact(item, "IssuerOfPatientID") or reads.patient_id_issuer or reads.site.patient_id_issuer
    number = elements.exact(item, "PatientID")
    if not number:
        raise MissingField(elements.place("PatientID"), "is required")
    others = item.get(elements.tag_of("OtherPatientIDsSequence"), ("SQ", []))[1]
    more = [
        Identifier(elements.exact(one, "PatientID"), elements.exact(one, "IssuerOfPatientID"))
        for one in (others if isinstance(others, list) else ())
    ]
    leading = Identifier(number, issuer)
    # Without its issuer nobody knows whose number it is.
    known = tuple(one for one in dict.fromkeys(more) if one.value and one.issuer and one != leading)
    name = rest_orders.name(
        elements.groups(elements.plain(item, "PatientName")), reads.site, elements.place("PatientName")
    )
    sex = elements.plain(item, "PatientSex").upper()
    return PersonCommand(
        identifiers=(leading, *known),
        name=name.pn or None,
        birth_date=elements.date(elements.plain(item, "PatientBirthDate")) or None,
        sex=sex if sex in ("M", "F", "O") else None,
        attributes=elements.attributes(item, OF_THE_PATIENT, left_out, reads.site),
        romanised=name.romaji_derived,
    )


def _procedure(item: Tree, study_uid: str, step: StepCommand, left_out: list[str], site: Site) -> ProcedureCommand:
    numbers = {
        "placer_number": elements.exact(item, "PlacerOrderNumberImagingServiceRequest"),
        "placer_issuer": elements.namespace(item, "OrderPlacerIdentifierSequence"),
        "filler_number": elements.exact(item, "FillerOrderNumberImagingServiceRequest"),
        "filler_issuer": elements.namespace(item, "OrderFillerIdentifierSequence"),
    }
    attributes = elements.attributes(item, OF_THE_PROCEDURE, left_out, site)
    for name in ("OrderPlacerIdentifierSequence", "OrderFillerIdentifierSequence"):
        if elements.has_universal(item, name):
            attributes |= elements.attributes(item, (name,), left_out, site)
    codes = item.get(elements.tag_of("RequestedProcedureCodeSequence"), ("SQ", []))[1]
    code = codes[0] if isinstance(codes, list) and codes else {}
    value = elements.exact(code, "CodeValue")
    return ProcedureCommand(
        requested_procedure_id=elements.exact(item, "RequestedProcedureID"),
        study_instance_uid=study_uid,
        description=elements.shown(item, "RequestedProcedureDescription") or None,
        code_value=value or None,
        code_scheme=(elements.exact(code, "CodingSchemeDesignator") or None) if value else None,
        code_meaning=(elements.shown(code, "CodeMeaning") or None) if value else None,
        attributes=attributes,
        steps=(replace(step, **numbers),),  # type: ignore[arg-type]
        **numbers,
    )


def _step(step: Tree, item: Tree, reads: Reads, left_out: list[str]) -> StepCommand:
    titles = tuple(filter(None, (one.strip() for one in elements.plain(step, "ScheduledStationAETitle").split("\\"))))
    if any(not re.fullmatch(ids.AE_TITLE, title) for title in titles):
        raise InvalidValue(elements.place("ScheduledStationAETitle"), "is no AE title", err="102")
    modality = elements.plain(step, "Modality")
    if modality and not values.CODE_STRING.fullmatch(modality):
        raise InvalidValue(elements.place("Modality"), "is no DICOM modality such as CT", err="102")
    date, time = _start(step, item, reads.site)
    own = "" if reads.label else elements.plain(item, "WorklistLabel")
    if not re.fullmatch(rest_orders.LABEL, own):  # no device can be given it
        left_out.append("WorklistLabel")
        own = ""
    return StepCommand(
        sps_id=elements.exact(step, "ScheduledProcedureStepID"),
        modality=modality or None,
        station_ae_titles=titles or None,
        start_date=date or None,
        start_time=time or None,
        description=elements.shown(step, "ScheduledProcedureStepDescription") or None,
        label=own or None,
        attributes=elements.attributes(step, OF_THE_STEP, left_out, reads.site),
    )


def _start(step: Tree, item: Tree, site: Site) -> tuple[str, str]:
    """In the site's zone; the entry may be written in another (0008,0201)."""
    start = (
        ("ScheduledProcedureStepStartDate", elements.date),
        ("ScheduledProcedureStepStartTime", elements.time_of_day),
    )
    date, time = (_checked(elements.plain(step, name), check, name) for name, check in start)
    zone = matching.zone_of(item)
    if zone is None or not date or not time:
        return date, time
    there = dt.datetime.strptime(date + time, "%Y%m%d%H%M%S").replace(tzinfo=zone)
    return rest_orders.local(there, site)


def _checked(text: str, check: Any, keyword: str) -> str:
    made: str = check(text)
    if text and not made:
        raise InvalidValue(elements.place(keyword), "is no date" if check is elements.date else "is no time", err="102")
    return made


def _priority(item: Tree) -> str | None:
    said = elements.plain(item, "RequestedProcedurePriority").upper()
    return (said if said in PRIORITIES else "ROUTINE") if said else None
