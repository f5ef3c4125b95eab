"""The site as text: what its tables ([[node]], [[sender]], …) may say, and how a file of them is read and written.

Pure: nothing here knows the database. Source: contract.md 4, site file."""

import ipaddress
import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker import ids
from broker.config import MASK
from broker.dicom import charset
from broker.errors import ConfigError
from broker.ris_bridge.intakes import is_link_local, keeps_secrets
from broker.ris_bridge.mapping.lines import line_of, problem

Role = Literal["ris", "ehr", "qc", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
Right = Literal["worklist", "mpps", "store", "commitment", "query", "retrieve"]
DEFAULT_RIGHTS: list[Right] = ["worklist", "mpps", "store", "commitment"]
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


def _url(value: str) -> str:
    """Empty, or http(s) without a user, a password or a fragment."""
    parts = urlsplit(value)
    if value and (
        parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment
        or not re.fullmatch(r"[!-~]{1,2000}", value)
    ):  # fmt: skip
        raise ValueError("must be http://… or https://…, without a password: that is what secret_file is for")
    if is_link_local(parts.hostname or ""):
        raise ValueError("must not lead to a link-local address")
    return value


def _file_path(value: str) -> str:
    if value and (not value.startswith("/") or ".." in value.split("/") or re.search(r"[\x00-\x1f\x7f]", value)):
        raise ValueError("must be a whole path that begins with /")
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
FilePath = Annotated[str, Field(max_length=1024), AfterValidator(_file_path)]
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
# A common name or DNS name. The bar stands between several where they are kept.
CertificateName = Annotated[str, Field(max_length=253), _like(r"[^\x00-\x1f\x7f|]*", "must be one name, without |")]
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
    tls_subject: CertificateName = ""
    mapping: Text = ""
    on_trouble: Literal["", "close", "AE"] = ""
    order_responses: bool = False


class IntakeEntry(Entry):
    """The fields mean what they mean in model.site.Intake. What the query of the url says is exported as a mask; a
    masked one keeps what exists."""

    word = "intake"
    name: Name
    kind: Literal["folder", "poll"]
    path: FilePath = ""
    url: Annotated[str, AfterValidator(_url)] = ""
    secret_file: FilePath = ""
    format: Literal["hl7", "csv", "json"] = "hl7"
    mapping: Text = ""
    character_set: Msh18 = ""
    every_seconds: float = Field(default=10, ge=1, le=86_400)

    @model_validator(mode="after")
    def _fits_together(self) -> "IntakeEntry":
        if self.kind == "folder" and (not self.path or self.url or self.secret_file or self.format == "json"):
            raise ValueError("of a folder needs a path, format hl7 or csv, and neither url nor secret_file")
        if self.kind == "poll" and (not self.url or self.path):
            raise ValueError("of kind poll needs a url and no path")
        if self.secret_file and not keeps_secrets(self.url):
            raise ValueError("of kind poll with a secret_file needs a url of https, but on this computer")
        return self


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


class MappingEntry(Entry):
    """A mapping profile as its author wrote it; what stands in it is looked at where the others are known."""

    word = "mapping"
    name: Name
    text: str = Field(min_length=1)


KINDS: tuple[type[Entry], ...] = (NodeEntry, SenderEntry, IntakeEntry, TokenEntry)


@dataclass(frozen=True)
class SiteFile:
    entries: list[Entry] = field(default_factory=list)


def parse(text: str, place: str) -> list[Entry]:
    """Every entry of the file. Raises ConfigError with the line of the table or key that is not right."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(place, f"is not TOML: {error}") from None
    kinds = {kind.word: kind for kind in KINDS}
    entries: list[Entry] = []
    for word, tables in tree.items():
        if word == MappingEntry.word and isinstance(tables, dict):
            entries += [_mapping(name, table, text, place) for name, table in tables.items()]
            continue
        if word not in kinds or not isinstance(tables, list):
            known = ", ".join((*(f"[[{name}]]" for name in kinds), "[mapping.NAME]"))
            raise ConfigError(f"{place} line {line_of(text, word)}", f"no such table: {word}; a site file has {known}")
        entries += [_entry(kinds[word], table, text, place, index) for index, table in enumerate(tables)]
    return entries


def _entry(kind: type[Entry], table: Any, text: str, place: str, index: int) -> Entry:
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        name, sentence = problem(error)
        line = line_of(text, kind.word, index, name.partition(".")[0])
        raise ConfigError(f"{place} line {line}", f"[[{kind.word}]] {name}: {sentence}".replace(" :", ":")) from None


def _mapping(name: str, table: Any, text: str, place: str) -> Entry:
    try:
        return MappingEntry.model_validate({"name": name, **table} if isinstance(table, dict) else {"name": name})
    except ValidationError as error:
        key, sentence = problem(error)
        line = line_of(text, f"mapping.{_bare(name)}", 0, key)
        raise ConfigError(f"{place} line {line}", f"[mapping.{_bare(name)}] {key}: {sentence}") from None


def _bare(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def emit(entries: list[Entry]) -> str:
    """A file that `parse` reads back. What is at its default is left out; secrets are masked."""
    blocks = []
    for entry in entries:
        if isinstance(entry, MappingEntry):
            blocks.append(f"[mapping.{_bare(entry.name)}]\ntext = {_lines(entry.text)}\n")
            continue
        lines = [f"[[{entry.word}]]"]
        values = {entry.key: entry.named} | entry.model_dump(exclude_defaults=True)
        if isinstance(entry, TokenEntry):
            values["secret"] = MASK
        lines += [f"{name} = {_value(value)}" for name, value in values.items()]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _lines(text: str) -> str:
    """As it stands, where it can: a literal string has no escapes."""
    as_it_is = "'''" not in text and not text.endswith("'") and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    return f"'''\n{text}'''" if as_it_is else _value(text)


def _value(value: Any) -> str:
    """JSON's strings, integers, booleans and lists of them are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
