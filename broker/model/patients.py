"""Who: patients, their identifiers, and what we knew about them before."""

import datetime as dt
from typing import Any

from sqlalchemy import UniqueConstraint

from broker.model.base import Row, json_field, link, moment


class Patient(Row, table=True):
    """name: DICOM PN of up to three groups `alphabetic=ideographic=phonetic`. romanised: its first group was made from
    the third by a table. birth_date: YYYYMMDD or empty. sex: M, F, O or empty. attributes: further worklist attributes
    by DICOM keyword. merged_into: the survivor. said: when the messages were made that each field is known from."""

    __tablename__ = "patient"
    name: str = ""
    romanised: bool = False
    birth_date: str = ""
    sex: str = ""
    attributes: dict[str, Any] = json_field()
    merged_into: int | None = link("patient.pk", nullable=True)
    said: dict[str, str] = json_field()


class PatientIdentifier(Row, table=True):
    """One identifier names one patient. type: HL7 table 0203 (PI, MR). retired: by a merge, a move or a change of
    identifier; it leads to whoever has it now."""

    __tablename__ = "patient_identifier"
    __table_args__ = (UniqueConstraint("value", "issuer"),)
    patient_pk: int = link("patient.pk")
    value: str
    issuer: str = ""
    type: str = "PI"
    retired: bool = False


class PatientVersion(Row, table=True):
    """Demographics before a change. cause: the event that changed them (`ADT^A08`, `order`, `merge`)."""

    __tablename__ = "patient_version"
    patient_pk: int = link("patient.pk")
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    cause: str = ""


class PatientMerge(Row, table=True):
    """A merge, a move or a change of identifier, with all that is needed to take it back. patient_pk: the survivor, or
    who got the identifier. prior_pk: who lost it; patient_pk where the identifier was that patient's already, None
    where nobody had it. moved: what went over, and what it was before (mwl/merges.py)."""

    __tablename__ = "patient_merge"
    event: str
    patient_pk: int = link("patient.pk")
    prior_pk: int | None = link("patient.pk", nullable=True)
    cause: str = ""
    moved: dict[str, Any] = json_field()
    happened_at: dt.datetime | None = moment()
    undone_at: dt.datetime | None = moment()
    undone_by: str = ""
