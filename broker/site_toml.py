"""The site as text: what a [[node]], [[sender]] and [[token]] may say, and how a file of them is read and written.

Pure: nothing here knows the database. Source: contract.md 4, site file."""

import ipaddress
import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker import ids
from broker.dicom import charset
from broker.errors import ConfigError

Role = Literal["ris", "ehr", "qc", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
Right = Literal["worklist", "mpps", "store", "commitment", "query", "retrieve"]
DEFAULT_RIGHTS: list[Right] = ["worklist", "mpps", "store", "commitment"]
MASK = "***"
SECRET_CHARACTERS_MIN = 32

POLICIES = ("", "ASCII", "REQUEST")  # beside values of (0008,0005): conformance.md 1.6
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def _host(value: str) -> str:
    """Empty, an address, or a host name."""
    try:
        return value and str(ipaddress.ip_address(value))
    except ValueError:
        if len(value) > 253 or not all(LABEL.fullmatch(label) for label in value.split(".")):
            raise ValueError("is not an address or a host name") from None
        return value


def _character_set(value: str) -> str:
    """Sets that the broker can write, each a defined term of (0008,0005) (PS3.3 C.12.1.1.2)."""
    if value not in POLICIES and not charset.supported(charset.terms(value)):
        raise ValueError(
            "must be ASCII, REQUEST (the one that the query declares), or a value of (0008,0005) such as ISO_IR 192"
            " or '\\ISO 2022 IR 87'"
        )
    return value


def _like(pattern: str, sentence: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(sentence)
        return value

    return AfterValidator(check)


Host = Annotated[str, AfterValidator(_host)]
Printable = _like(r"[^\x00-\x1f\x7f]*", "must not hold control characters")
Text = Annotated[str, Field(max_length=64), Printable]
Name = Annotated[str, Field(min_length=1, max_length=64), Printable]
# PS3.5 6.2: an AE is at most 16 characters of the default repertoire without backslash; outer spaces do not count.
AeTitle = Annotated[
    str,
    _like(
        ids.AE_TITLE,
        "must be 1 to 16 ASCII characters, without a backslash and without a blank at either end",
    ),
]
Modality = Annotated[
    str, _like(r"[A-Z0-9_ ]{0,16}", "must be at most 16 capital letters, digits, blanks and underscores, such as CT")
]
MessageType = Annotated[
    str,
    _like(r"[A-Z]{3}(\^[A-Z0-9]{3})?", "must be a message type, such as ORM, or one with its event, such as ADT^A08"),
]
Msh18 = Annotated[
    str,
    _like(r"[A-Z0-9 /_~-]{0,64}", "must be as MSH-18 has it, such as ISO-2022-JP, UNICODE UTF-8 or ~ISO IR87"),
]


class Entry(BaseModel):
    """word: its table in the file. key: the field that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    word: ClassVar[str]
    key: ClassVar[str] = "name"

    @property
    def named(self) -> str:
        return str(getattr(self, self.key))


class NodeEntry(Entry):
    """The fields mean what they mean in model.site.Node."""

    word = "node"
    key = "ae_title"
    ae_title: AeTitle
    host: Host = ""
    port: int = Field(default=0, ge=0, le=65535)
    any_address: bool = False
    device: Text = ""
    kind: Literal["modality", "mobile", "qa", "import"] = "modality"
    modality: Modality = ""
    station_names: list[Text] = []
    rights: list[Right] = DEFAULT_RIGHTS
    character_set: Annotated[str, AfterValidator(_character_set)] = ""
    mpps_strict: bool | None = None
    accession_issuer: Text = ""
    patient_id_issuer: Text = ""

    @model_validator(mode="after")
    def _address_is_known(self) -> "NodeEntry":
        if not self.host and not self.any_address:
            raise ValueError("needs a host, which its source address is checked against, or any_address")
        return self


class SenderEntry(Entry):
    """The fields mean what they mean in model.site.Sender."""

    word = "sender"
    name: Name
    application: Text = ""
    facility: Text = ""
    address: Host = ""
    messages: list[MessageType] = []
    character_set: Msh18 = ""


class TokenEntry(Entry):
    """secret: exported as a mask. A masked one keeps the secret that exists."""

    word = "token"
    name: Name
    role: Role
    disabled: bool = False
    secret: str = Field(default=MASK, exclude=True, repr=False)

    @model_validator(mode="after")
    def _secret_is_long(self) -> "TokenEntry":
        if self.secret != MASK and len(self.secret) < SECRET_CHARACTERS_MIN:
            raise ValueError(f"secret must have at least {SECRET_CHARACTERS_MIN} characters, or be {MASK}")
        return self


KINDS: tuple[type[Entry], ...] = (NodeEntry, SenderEntry, TokenEntry)


@dataclass(frozen=True)
class SiteFile:
    entries: list[Entry] = field(default_factory=list)


def problem(error: ValidationError) -> tuple[str, str]:
    """The first thing wrong, as field and sentence; the value itself is not repeated (it may be a secret)."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return name, "no such key"
    return name, first["msg"].removeprefix("Value error, ")


def parse(text: str, place: str) -> list[Entry]:
    """Every entry of the file. Raises ConfigError with the line of the table or key that is not right."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(place, f"is not TOML: {error}") from None
    kinds = {kind.word: kind for kind in KINDS}
    entries: list[Entry] = []
    for word, tables in tree.items():
        if word not in kinds or not isinstance(tables, list):
            known = ", ".join(f"[[{name}]]" for name in kinds)
            raise ConfigError(f"{place} line {_line(text, word)}", f"no such table: {word}; a site file has {known}")
        entries += [_entry(kinds[word], table, text, place, index) for index, table in enumerate(tables)]
    return entries


def _entry(kind: type[Entry], table: Any, text: str, place: str, index: int) -> Entry:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        name, sentence = problem(error)
        line = _line(text, kind.word, index, name.partition(".")[0])
        raise ConfigError(f"{place} line {line}", f"[[{kind.word}]] {name}: {sentence}".replace(" :", ":")) from None


def _line(text: str, word: str, index: int = 0, key: str = "") -> int:
    """Where the index-th table `word` stands, or `key` inside it. tomllib keeps no lines, so they are looked up."""
    header = re.compile(rf"\s*\[\[?\s*{re.escape(word)}\b|\s*{re.escape(word)}\s*=")
    assignment = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
    seen, found = -1, 1
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            seen += 1
            if seen > index:
                break
            found = number if seen == index else found
        elif seen == index and key and assignment.match(line):
            return number
    return found


def emit(entries: list[Entry]) -> str:
    """A file that `parse` reads back. What is at its default is left out; secrets are masked."""
    blocks = []
    for entry in entries:
        lines = [f"[[{entry.word}]]"]
        values = {entry.key: entry.named} | entry.model_dump(exclude_defaults=True)
        if isinstance(entry, TokenEntry):
            values["secret"] = MASK
        lines += [f"{name} = {_value(value)}" for name, value in values.items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _value(value: Any) -> str:
    """JSON's strings, integers, booleans and lists of them are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
