"""ORU^R01 to reports on orders (conformance.md 5.1; IHE RAD-28 for the study), or to the arrival that it is. Pure.

A report is what carries one filler number (OBR-3), or where there is none, one order: several OBR of it are its parts.
Its text and its PDF are kept; what is neither is named in the text, and stays in the journal. No log and no error holds
any of it."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from broker import ids
from broker.config import Site
from broker.errors import InvalidValue, MissingField, Unsupported
from broker.mwl.commands import Command, OrderCommand, PersonCommand, ProcedureCommand, ReportCommand
from broker.ris_bridge.hl7 import values, visits_in
from broker.ris_bridge.hl7.message import Message, Segment, unescape
from broker.ris_bridge.hl7.patients_in import only_pid, patient_of
from broker.ris_bridge.mapping.profile import Group, Profile

Status = Literal["preliminary", "final", "amended", "cancelled"]
# OBR-25 (table 0123), and OBX-11 (0085) where it is not said. NOTED: there are no results yet.
STATUSES: dict[str, Status] = {
    "P": "preliminary", "R": "preliminary", "A": "preliminary", "F": "final", "C": "amended", "X": "cancelled",
}  # fmt: skip
NOTED = ("O", "I", "S")
OF_PARTS: tuple[Status, ...] = (
    "preliminary",
    "amended",
    "final",
    "cancelled",
)  # the first that a part has is the whole's
VISITS = {"arrive": "A10", "unarrive": "A12"}  # what a profile may say that the message is -> the ADT event alike
LINES, CODED = ("TX", "FT", "ST", ""), ("CE", "CF", "CNE", "CWE")
POINTERS = ("RP", "HD", "EI")
STUDY = "113014"  # DCM, OBX-3: its value is a Study Instance UID
OF_IMAGES = (STUDY, "113015", "113016")  # DCM: study, series, SOP instance
PLACER, FILLER = "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"
VALUES_MAX = 1_000  # of one result that is no text
PDF, PDF_IN_BASE64 = b"%PDF-", "JVBERi0"
ANY_BYTES = ("", "OCTET-STREAM")  # ED.3 that names no kind (table 0291)
BEGIN_CHARACTERS_MAX = 100  # of data, which may begin with blanks


def to_commands(msg: Message, site: Site, profile: Profile | None = None) -> Sequence[Command]:
    """One for each report. profile: may say that such a message is an arrival, or nothing to us.

    Raises what the acknowledgement says: 100 for a missing segment, 101, 102, 103 for a field."""
    means = profile.means(msg.header.type, Group.of(msg.segments)) if profile else None
    site = profile.source_site(site) if profile else site
    if means == "ignore":
        return []
    patient = patient_of(only_pid(msg), msg, site)
    if means in VISITS:
        at = values.moment(msg["MSH-7"], site)
        made = visits_in.to_commands(msg, VISITS[means], patient, at, site)
        return [replace(one, cause=msg.header.type) for one in made]
    if means not in (None, "report"):
        raise Unsupported("MSH^1^9", "its mapping profile takes it for what it cannot be", err="201")
    parts = [_part(group, patient, msg, site) for group in _groups(msg)]
    if not parts:
        raise MissingField("OBR", "a report holds at least one OBR", err="100")
    return [_whole(same) for same in _reports(parts)]


@dataclass(frozen=True)
class _Part:
    """One OBR with what belongs to it. report: None: there are no results yet."""

    order: OrderCommand
    report: ReportCommand | None = None


def _groups(msg: Message) -> Iterator[list[Segment]]:
    """An OBR with the ORC before it and all that follows."""
    group: list[Segment] = []
    for segment in msg.segments:
        begins = segment.name == "ORC" or (segment.name == "OBR" and any(one.name == "OBR" for one in group))
        if begins and any(one.name == "OBR" for one in group):
            yield group
            group = []
        if begins or group or segment.name == "OBR":
            group.append(segment)
    if any(one.name == "OBR" for one in group):
        yield group


def _part(group: list[Segment], patient: PersonCommand, msg: Message, site: Site) -> _Part:
    obr = next(one for one in group if one.name == "OBR")
    results = [one for one in group if one.name == "OBX"]
    sent, issued = values.span(msg["MSH-7"], site), values.span(obr.get(22), site)
    at = sent.begins if sent else None
    order = replace(_order(group, obr, results, site), patient=patient, at=at)
    status = _status(obr, results)
    if status is None:
        return _Part(order)
    document, place = _document(results)
    report = ReportCommand(
        order=order,
        status=status,
        number=values.exact(obr, 3, FILLER) or "",
        issuer=values.authority(obr, 3, 2),
        title=next((text for c in (2, 1) if (text := obr.get(4, c).strip()) and text != values.NULL), ""),
        text=_text(group),
        document=document,
        issued_at=values.happened(issued, sent) if issued else None,
        at=at,
        place=place or obr.place(3),
    )
    return _Part(order, report)


def _order(group: list[Segment], obr: Segment, results: Sequence[Segment], site: Site) -> OrderCommand:
    """By all the numbers that the message states; the service finds the order, and whether they agree."""
    heads = [one for one in group if one.name in ("ORC", "OBR")]
    values.refuse_two_orders([[(head, number) for head in heads] for number in (2, 3)])
    numbers: dict[str, Any] = {}
    for name, number, keyword in (("placer", 2, PLACER), ("filler", 3, FILLER)):
        for head in heads:
            if value := values.exact(head, number, keyword):
                numbers |= {f"{name}_number": value, f"{name}_issuer": values.authority(head, number, 2)}
                break
    accession, study = values.exact(obr, 18, "AccessionNumber") or "", _study(group, results)
    if not (accession or study or numbers):
        raise MissingField(obr.place(2), "names no order: its placer, filler or accession number")
    named = bool(numbers or study)
    return OrderCommand(
        control="note",
        accession_number=accession,
        accession_issuer=site.accession_issuer if accession else "",
        procedures=(ProcedureCommand(**{**numbers, "study_instance_uid": study}),) if named else (),
        place=obr.place(2),
        is_issuer_assumed=True,
    )


def _study(group: Sequence[Segment], results: Sequence[Segment]) -> str:
    for zds in (one for one in group if one.name == "ZDS"):
        if uid := values.uid(zds, 1):
            return uid
    for obx in results:
        if obx.get(3).strip() == STUDY:
            found = next((uid for c in (1, 2) if ids.valid_uid(uid := obx.get(5, c).strip())), "")
            if not found:
                raise InvalidValue(obx.place(5), "is no UID", err="102")
            return found
    return ""


def _status(obr: Segment, results: Sequence[Segment]) -> Status | None:
    """None: noted. Without OBR-25 that of its results, as long as each of them says it."""
    said = obr.get(25).strip().upper()
    if said in NOTED:
        return None
    if said:
        if said not in STATUSES:
            raise InvalidValue(obr.place(25), f"is one of {', '.join((*STATUSES, *NOTED))}", err="103")
        return STATUSES[said]
    codes = [one.get(11).strip().upper() for one in results]
    if not codes or any(code not in STATUSES for code in codes):
        raise MissingField(obr.place(25), "the status of a report is required")
    return _least([STATUSES[code] for code in codes])


def _least(statuses: Sequence[Status]) -> Status:
    return next(one for one in OF_PARTS if one in statuses)


# Its contents


def _document(results: Sequence[Segment]) -> tuple[bytes, str]:
    """The PDF, and where it stands."""
    found = [one for one in results if one.get(2).strip() == "ED" and _kind(one) == "PDF"]
    if len(found) > 1:
        raise InvalidValue(found[1].place(5), "is a second PDF; one report holds one", err="102")
    return (_decoded(found[0]), found[0].place(5)) if found else (b"", "")


def _ed(obx: Segment) -> list[str]:
    """Source, type, subtype, encoding and data of an ED. Megabytes of data are copied as seldom as may be."""
    return [*obx.field(5).split(obx.delimiters[1], 4), "", "", "", "", ""][:5]


def _kind(obx: Segment) -> str:
    """`PDF`: ED.3, or ED.2 of those who say it there; also where they name no kind and the data begin as a PDF does."""
    _, kind, subtype, _, data = _ed(obx)
    kind, subtype = kind.strip().upper(), subtype.strip().upper()
    is_pdf = bool({kind, subtype} & {"PDF", "APPLICATION/PDF"})
    is_any = subtype in ANY_BYTES and data[:BEGIN_CHARACTERS_MAX].lstrip().startswith(PDF_IN_BASE64)
    return "PDF" if is_pdf or is_any else unescape(subtype or kind, obx.delimiters)


def _decoded(obx: Segment) -> bytes:
    *_, encoding, data = _ed(obx)
    if encoding.strip().upper() not in ("BASE64", ""):
        raise InvalidValue(obx.place(5), "its encoding (component 4) is Base64", err="102")
    try:
        document = base64.b64decode("".join(unescape(data, obx.delimiters).split()), validate=True)
    except ValueError:
        raise InvalidValue(obx.place(5), "its data (component 5) is no Base64", err="102") from None
    if not document.startswith(PDF):
        raise InvalidValue(obx.place(5), "its data (component 5) is no PDF", err="102")
    return document


def _text(group: Sequence[Segment]) -> str:
    """Observations and notes, line by line; under the name of the observation where there are several.

    Raises InvalidValue where what is there can be neither shown nor kept."""
    sections: dict[str, list[str]] = {}
    left_out: list[Segment] = []
    is_document = False
    name = ""
    for segment in group:
        if segment.name == "OBX":
            name = next((text for c in (2, 1) if (text := segment.get(3, c).strip())), "")
            lines = _lines(segment)
            left_out += [segment] if lines is None else []
            is_document |= segment.get(2).strip() == "ED" and _kind(segment) == "PDF"
        elif segment.name == "NTE":
            lines = _said(segment, 3)
        else:
            continue
        if lines:
            sections.setdefault(name, []).extend(lines)
    if left_out and not sections and not is_document:
        raise InvalidValue(
            left_out[0].place(5), "holds neither text nor a PDF, and nothing else is in the report", err="102"
        )
    for segment in left_out:
        sections.setdefault("", []).append(f"[{_kind(segment) or 'ED'}]")
    blocks = ["\n".join(([name] if name and len(sections) > 1 else []) + lines) for name, lines in sections.items()]
    return "\n\n".join(blocks)


def _lines(obx: Segment) -> list[str] | None:
    """None: it is an object that is not kept. A pointer stands as it is; what names images only says nothing here."""
    kind = obx.get(2).strip().upper()
    if kind == "ED":
        return [] if _kind(obx) == "PDF" else None
    if obx.get(3).strip() in OF_IMAGES:
        return []
    if kind in LINES:
        return _said(obx, 5)
    said = [one.split(obx.delimiters[1]) for one in obx.repetitions(5) if one]
    if len(said) > VALUES_MAX:
        raise InvalidValue(
            obx.place(5), f"has more than {VALUES_MAX} values; what is text is sent as TX or FT", err="102"
        )
    if kind in CODED:
        found = [(one[1] if len(one) > 1 else "") or one[0] for one in said]
    elif kind in POINTERS:
        found = [one[0] for one in said]
    else:
        unit = obx.field(6).split(obx.delimiters[1])[0]
        found = [" ".join(filter(None, (*one, unit))) for one in said if any(one)]
    return [unescape(text, obx.delimiters) for text in found if text]


def _said(segment: Segment, number: int) -> list[str]:
    """Text with its line ends, a repetition a line; a component sign in it is text. `""` says nothing."""
    sign = segment.delimiters[2]
    field = segment.field(number).rstrip(sign)
    if not field or field == values.NULL:
        return []
    text = unescape(field.replace(sign, "\n"), segment.delimiters).replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n")]


# Several OBR of one report


def _reports(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Those of one number; without a number, those that name one order."""
    reports: dict[tuple[object, ...], list[_Part]] = {}
    for n, one in enumerate(parts):
        key: tuple[object, ...] = (n,)
        if one.report is not None:
            named = [(it.placer_number, it.placer_issuer, it.study_instance_uid) for it in one.order.procedures]
            number = (one.report.number, one.report.issuer)
            key = number if one.report.number else (one.order.accession_number, *named)
        reports.setdefault(key, []).append(one)
    return list(reports.values())


def _whole(parts: Sequence[_Part]) -> Command:
    reports = [one.report for one in parts if one.report]
    if not reports:
        return parts[0].order
    first = reports[0]
    if len(reports) == 1:
        return first
    documents = [one for one in reports if one.document]
    if len(documents) > 1:
        raise InvalidValue(documents[1].place, "is a second PDF; one report holds one", err="102")
    times = [one.issued_at for one in reports if one.issued_at]
    titles = list(dict.fromkeys(one.title for one in reports if one.title))
    return replace(
        first,
        status=_least([one.status for one in reports]),
        title=" / ".join(titles),
        text="\n\n".join("\n".join(filter(None, (one.title, one.text))) for one in reports if one.text),
        document=documents[0].document if documents else b"",
        issued_at=max(times, default=None),
        place=documents[0].place if documents else first.place,
    )
