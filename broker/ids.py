"""Every identifier that we make."""

import base64
import hashlib
import re
import secrets
import uuid

UID_PATTERN = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")

# A text of one value: a backslash would make two of it (PS3.5 6.2).
PLAIN = r"^[^\\\x00-\x1f\x7f]*$"
# PS3.5 6.2: an AE is at most 16 characters of the default repertoire without backslash; outer spaces do not count.
AE_TITLE = r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$"


def valid_uid(value: str) -> bool:
    """PS3.5 9.1: digits and dots, no leading zero in a component, at most 64 characters."""
    return len(value) <= 64 and "." in value and UID_PATTERN.fullmatch(value) is not None


def uid(root: str) -> str:
    """A new UID below `root`. Source: PS3.5 B.2 (root 2.25 takes a UUID as one decimal number)."""
    return _below(root, uuid.uuid4().int)


def derived_uid(root: str, *parts: str) -> str:
    """The same UID for the same parts, so that a repeated order gets the study that it got before."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return _below(root, uuid.UUID(bytes=digest[:16], version=4).int)


def _below(root: str, number: int) -> str:
    text = f"{root}.{number}"
    return text if len(text) <= 64 else text[:64].rstrip(".")


def file_name() -> str:
    """Our files never carry a peer's string (security V2)."""
    return uuid.uuid4().hex


def control_id() -> str:
    """MSH-10: at most 20 characters."""
    return uuid.uuid4().hex[:20]


def secret() -> str:
    """A bearer token, shown once; only its hash is kept."""
    return secrets.token_urlsafe(32)


def derived_id(prefix: str, *parts: str) -> str:
    """As `short_id`, the same for the same parts: 75 bits of their hash."""
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return f"{prefix}{base64.b32encode(digest).decode()}"[:16]


def short_id(prefix: str) -> str:
    """An accession number, Requested Procedure ID or SPS ID of ours: SH, so at most 16 characters."""
    return f"{prefix}{secrets.token_hex(6).upper()}"[:16]
