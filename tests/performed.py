"""Attribute lists of N-CREATE and N-SET as a scanner makes them, for tests below the wire."""

from broker.dicom.tree import Tree, vr_of
from broker.mpps import rules
from broker.mpps.rules import COMPLETED, IN_PROGRESS

PPS_ID, DESCRIPTION, PROTOCOL_NAME = 0x00400253, 0x00400254, 0x00181030
CT = "1.2.840.10008.5.1.4.1.1.2"


def reference(uid: str) -> Tree:
    return {rules.REFERENCED_CLASS: ("UI", CT), rules.REFERENCED_INSTANCE: ("UI", uid)}


def series(uid: str = "1.2.9", *images: str) -> Tree:
    return {
        **{attribute.tag: (vr_of(attribute.tag), "") for attribute in rules.SERIES if not attribute.items},
        PROTOCOL_NAME: ("LO", "ROUTINE"),
        rules.SERIES_UID: ("UI", uid),
        rules.REFERENCED_OTHERS: ("SQ", []),
        rules.REFERENCED_IMAGES: ("SQ", [reference(image) for image in images]),
    }


def created(**changes: object) -> Tree:
    """The least that a lenient N-CREATE needs; changes by tag as `t00400253=("SH", "")`, None removes."""
    tree: Tree = {
        rules.SCHEDULED_STEPS: ("SQ", [{rules.STUDY_UID: ("UI", "1.2.3")}]),
        PPS_ID: ("SH", "PPS1"),
        rules.STATION_AE: ("AE", "CT1"),
        rules.START_DATE: ("DA", "20251201"),
        rules.START_TIME: ("TM", "093000"),
        rules.STATUS: ("CS", IN_PROGRESS),
        rules.MODALITY: ("CS", "CT"),
    }
    for name, element in changes.items():
        tag = int(name[1:], 16)
        tree.pop(tag, None)
        if element is not None:
            tree[tag] = element  # type: ignore[assignment]
    return tree


def final(status: str = COMPLETED, *, images: tuple[str, ...] = ("1.2.9.1",)) -> Tree:
    return {
        rules.STATUS: ("CS", status),
        rules.END_DATE: ("DA", "20251201"),
        rules.END_TIME: ("TM", "094500"),
        rules.PERFORMED_SERIES: ("SQ", [series("1.2.9", *images)]),
    }


def scheduled(
    study_uid: str = "", *, accession: str = "", procedure_id: str = "", sps_id: str = "", original: str = ""
) -> Tree:
    """An item of the Scheduled Step Attributes Sequence. original: study of the order in the group case."""
    return {
        rules.STUDY_UID: ("UI", study_uid),
        rules.ACCESSION: ("SH", accession),
        rules.PROCEDURE_ID: ("SH", procedure_id),
        rules.SPS_ID: ("SH", sps_id),
        rules.REFERENCED_STUDIES: ("SQ", [reference(original)] if original else []),
    }


def gave_up(code: str = "110501", scheme: str = "DCM", *, images: tuple[str, ...] = ("1.2.9.1",)) -> Tree:
    """N-SET DISCONTINUED with a reason of CID 9301."""
    reason: Tree = {
        rules.CODE_VALUE: ("SH", code),
        rules.CODE_SCHEME: ("SH", scheme),
        rules.CODE_MEANING: ("LO", "reason"),
    }
    return final(rules.DISCONTINUED, images=images) | {rules.REASON: ("SQ", [reason])}
