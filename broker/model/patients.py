"""Who: patients, their identifiers, and what we knew about them before."""

from typing import Any

from sqlalchemy import UniqueConstraint

from broker.model.base import Row, json_field, link


class Patient(Row, table=True):
    """name: DICOM PN of up to three groups `alphabetic=ideographic=phonetic`. birth_date: YYYYMMDD or empty.
    sex: M, F, O or empty. attributes: further worklist attributes by DICOM keyword. merged_into: the survivor."""

    __tablename__ = "patient"
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    attributes: dict[str, Any] = json_field()
    merged_into: int | None = link("patient.pk", nullable=True)


class PatientIdentifier(Row, table=True):
    """One identifier names one patient. type: HL7 table 0203 (PI, MR). retired: by a merge; leads to the survivor."""

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
