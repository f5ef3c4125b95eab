"""Identifiers and demographics in the form in which they are compared (reconciliation.md 3.3). Pure."""

import re
import unicodedata

UNKNOWN_BIRTH_DATES = frozenset({"", "00000000", "19000101"})
_SPACES = re.compile(r"\s+")


def plain(value: str) -> str:
    """Of an ID or accession number: width, spaces and case do not count."""
    return _SPACES.sub("", unicodedata.normalize("NFKC", value)).upper()


def patient_id(value: str, digits: int) -> str:
    """Padded where the site's rule says so: zeros are added, never taken away. digits: 0 is no rule."""
    value = plain(value)
    return value.zfill(digits) if value.isdecimal() else value


def birth_date(value: str) -> str:
    """YYYYMMDD, empty where the date says nothing."""
    value = value.replace(".", "").strip()  # 1970.01.01 of ACR-NEMA (PS3.5 6.2)
    return "" if value in UNKNOWN_BIRTH_DATES else value


def sex(value: str) -> str:
    """M or F; anything else says nothing."""
    value = value.strip().upper()
    return value if value in ("M", "F") else ""
