"""Which fields of which message are read, and what becomes of them: for the conformance statement."""

from dataclasses import dataclass

from broker.ris_bridge.mapping.profile import BY_TYPE, shipped

PROFILES = {**BY_TYPE, "SIU": "siu-scheduling"}
# What code reads, whatever the profile: message code -> field -> what it is.
OF_EVERY_MESSAGE = {
    "MSH-3": "sender", "MSH-4": "sender", "MSH-7": "time", "MSH-9": "type", "MSH-10": "control ID",
    "MSH-11": "processing ID", "MSH-12": "version", "MSH-15": "accept acknowledgement",
    "MSH-16": "application acknowledgement", "MSH-18": "character set", "MSH-20": "character set handling",
}  # fmt: skip
OF_THE_PATIENT = {
    "PID-3": "patient.identifiers, IssuerOfPatientIDQualifiersSequence, OtherPatientIDsSequence",
    "PID-5": "patient.name", "PID-7": "patient.birth_date", "PID-8": "patient.sex", "AL1-3": "patient.Allergies",
    "OBX-3": "which measure", "OBX-5": "patient.PatientWeight, patient.PatientSize", "OBX-6": "unit of the measure",
}  # fmt: skip
OF_A_VISIT = {
    "PID-18": "visit", "PV1-3": "where the patient is", "PV1-19": "visit", "ORC-2": "order of the visit",
    "ORC-3": "order of the visit", "OBR-2": "order of the visit", "OBR-3": "order of the visit",
    "OBR-18": "order of the visit",
}  # fmt: skip
OF_AN_ORDER = {"ORC-1": "order control", "ORC-5": "order status", "ORC-8": "parent of a CH"}
OF_AN_APPOINTMENT = {
    "SCH-6": "order.reason", "SCH-25": "appointment status", "AIS-3": "which step", "AIS-5": "offset of the start",
    "AIS-6": "unit of the offset", "RGS-2": "action", "AIS-2": "action", "AIG-2": "action", "AIL-2": "action",
    "AIP-2": "action",
}  # fmt: skip
OF_A_REPORT = {
    "ORC-2": "order", "ORC-3": "order", "OBR-2": "order", "OBR-3": "order, report.number", "OBR-18": "order",
    "OBR-4": "report.title", "OBR-22": "report.issued_at", "OBR-25": "report.status", "OBX-2": "kind of result",
    "OBX-3": "which result", "OBX-5": "report.text, report.document", "OBX-6": "unit", "OBX-11": "report.status",
    "NTE-3": "report.text", "ZDS-1": "order",
}  # fmt: skip
CODE = {
    **dict.fromkeys(BY_TYPE, OF_THE_PATIENT | OF_AN_ORDER),
    "SIU": OF_THE_PATIENT | OF_AN_APPOINTMENT,
    "ORU": OF_THE_PATIENT | OF_A_VISIT | OF_A_REPORT,
    "ADT": OF_THE_PATIENT | OF_A_VISIT | {"EVN-2": "time of the event", "EVN-6": "time of the event",
                                          "MRG-1": "prior identifier"},
}  # fmt: skip


@dataclass(frozen=True)
class Read:
    """field: `OBR-18`. messages: codes. becomes: targets, or what the program takes it for."""

    field: str
    messages: tuple[str, ...]
    becomes: str


def fields_read() -> list[Read]:
    """By the shipped profiles and by code. In the order of a message."""
    found: dict[str, dict[str, set[str]]] = {}
    for code, fields in CODE.items():
        for field, what in fields.items():
            found.setdefault(field, {}).setdefault(code, set()).update(what.split(", "))
    for code, name in PROFILES.items():
        for level in shipped(name).levels.values():
            for filled in level:
                for rule in filled.rules:
                    for path, _ in rule.sources:
                        field = f"{path.segment}-{path.number}"
                        found.setdefault(field, {}).setdefault(code, set()).add(filled.target.text)
    rows = []
    for field, codes in found.items():  # messages that take it for the same share a row
        alike: dict[str, list[str]] = {}
        for code, what_of in codes.items():
            alike.setdefault(", ".join(sorted(what_of)), []).append(code)
        rows += [Read(field, tuple(sorted(of)), what) for what, of in alike.items()]
    every = [Read(field, ("every",), what) for field, what in OF_EVERY_MESSAGE.items()]
    return sorted([*every, *rows], key=lambda one: (_place(one.field), one.messages))


SEGMENTS = (
    "MSH", "EVN", "SCH", "PID", "PV1", "AL1", "MRG", "ORC", "TQ1", "OBR", "NTE", "OBX", "ZDS", "IPC", "RGS", "AIS",
    "AIG", "AIL", "AIP",
)  # fmt: skip


def _place(field: str) -> tuple[int, str, int]:
    segment, _, number = field.partition("-")
    return SEGMENTS.index(segment) if segment in SEGMENTS else len(SEGMENTS), segment, int(number)


def table() -> str:
    lines = ["| field | messages | becomes |", "|---|---|---|"]
    lines += [f"| {one.field} | {' '.join(one.messages)} | {one.becomes} |" for one in fields_read()]
    return "\n".join(lines)
