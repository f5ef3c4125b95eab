"""MSH-18 (table 0211): which characters the bytes of a message are.

Nothing is ever replaced: bytes that the declared set does not have are an error with their position."""

import codecs
import re
from collections.abc import Sequence

from broker.errors import InvalidValue

JIS = "iso-2022-jp"  # ours, below: every codec of Python refuses the vendor rows that Windows senders write

# Term of MSH-18, of a sender's override or of BROKER_HL7__CHARACTER_SET -> Python codec, or JIS.
TERMS = {
    "": "ascii", "ASCII": "ascii", "ISO IR6": "ascii",
    "ISO IR14": JIS, "ISO IR13": JIS, "ISO IR87": JIS, "ISO IR159": JIS, "ISO-2022-JP": JIS,
    "UNICODE": "utf-8", "UNICODE UTF-8": "utf-8", "UTF-8": "utf-8",
    "GB 18030-2000": "gb18030", "KS X 1001": "euc_kr", "BIG-5": "big5",
    "CP932": "cp932", "SHIFT_JIS": "cp932", "WINDOWS-31J": "cp932", "EUC-JP": "euc_jp",
    **{f"8859/{part}": f"iso8859_{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)},
}  # fmt: skip

_ESCAPE = re.compile(rb"\x1b(\(B|\(J|\(I|\$@|\$B|\$\(B|\$\(D)")
_DOUBLE = re.compile(rb"([\x21-\x7e]{2})*")
_KANA = re.compile(rb"[\x21-\x5f]*")
_HIGH = bytes(byte | 0x80 for byte in range(256))
_VENDOR_LEADS = {0xAD, 0xF9, 0xFA, 0xFB, 0xFC}  # JIS rows 13 (NEC) and 89-92 (NEC selected IBM), high bit set


def codec(terms: Sequence[str]) -> str:
    """The one codec that reads a message with these repetitions of MSH-18. ASCII is part of all of them."""
    try:
        named = {TERMS[term.strip().upper()] for term in terms}
    except KeyError:
        raise InvalidValue("MSH^1^18", "not a character set of table 0211 that is supported here") from None
    named = named - {"ascii"} or {"ascii"}
    if len(named) > 1:
        raise InvalidValue("MSH^1^18", "these character sets cannot stand in one message")
    return named.pop()


def decode(data: bytes, name: str) -> tuple[str, bool]:
    """The text, and whether vendor rows were in it. Raises UnicodeDecodeError; `start` is the place in `data`."""
    if name == JIS:
        return _decode_jis(data)
    return data.decode(name), False


def _decode_jis(data: bytes) -> tuple[str, bool]:
    if b"\x1b" not in data:
        return data.decode("ascii"), False
    text: list[str] = []
    vendor = False
    designated, start = b"(B", 0
    for match in [*_ESCAPE.finditer(data), None]:
        end = match.start() if match else len(data)
        try:
            part, extended = _run(data[start:end], designated)
        except UnicodeDecodeError as error:
            raise UnicodeDecodeError(JIS, data, start + error.start, start + error.end, error.reason) from None
        text.append(part)
        vendor = vendor or extended
        if match:
            designated, start = match[1], match.end()
    return "".join(text), vendor


def _run(run: bytes, designated: bytes) -> tuple[str, bool]:
    """One run of bytes between two escape sequences."""
    if designated in (b"(B", b"(J"):
        # JIS X 0201 Roman differs in 5C and 7E only. Senders use it as "back to ASCII", and those two bytes are then
        # HL7's escape and repetition characters, so they are read as such.
        return run.decode("ascii"), False
    if designated == b"(I":
        return _only(run, _KANA).translate(_HIGH).decode("cp932"), False
    pairs = _only(run, _DOUBLE).translate(_HIGH)
    if designated == b"$(D":
        return b"".join(b"\x8f" + pairs[at : at + 2] for at in range(0, len(pairs), 2)).decode("euc_jp"), False
    try:
        return pairs.decode("euc_jp"), False
    except UnicodeDecodeError:
        return pairs.decode("euc_jp", "jis-vendor-rows"), True


def _only(run: bytes, allowed: re.Pattern[bytes]) -> bytes:
    match = allowed.match(run)
    assert match
    if match.end() != len(run):
        raise UnicodeDecodeError(JIS, run, match.end(), match.end() + 1, "not a code of the designated set")
    return run


def _vendor_row(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: one double byte of a vendor row, through cp932."""
    assert isinstance(error, UnicodeDecodeError)
    pair = error.object[error.start : error.start + 2]
    if len(pair) != 2 or pair[0] not in _VENDOR_LEADS:
        raise error
    lead, trail = pair[0] & 0x7F, pair[1] & 0x7F
    # JIS X 0208 to Shift_JIS: two rows share a lead byte.
    shifted_lead = ((lead - 0x21) >> 1) + (0x81 if lead < 0x5F else 0xC1)
    shifted_trail = trail + ((0x1F if trail < 0x60 else 0x20) if lead & 1 else 0x7E)
    try:
        return bytes((shifted_lead, shifted_trail)).decode("cp932"), error.start + 2
    except UnicodeDecodeError:
        raise error from None


codecs.register_error("jis-vendor-rows", _vendor_row)
