"""The site as text: what its tables ([[node]], [[sender]], …) may say, and how a file of them is read and written.

Pure: nothing here knows the database. Source: contract.md 4, site file."""

import ipaddress
import json
import re
import tomllib
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydicom.datadict import tag_for_keyword

from broker import ids
from broker.config import DAYS_MAX, HOURS_MAX, MASK, StepState
from broker.dicom import charset, habits, tree, variants
from broker.errors import BrokerError, ConfigError
from broker.mwl import keys
from broker.ris_bridge import rest_orders, upstream_item
from broker.ris_bridge.intakes import is_link_local, keeps_secrets
from broker.ris_bridge.mapping.lines import line_of, problem

Role = Literal["ris", "ehr", "qc", "admin"]
ROLES: tuple[str, ...] = get_args(Role)
Right = Literal["worklist", "mpps", "store", "commitment", "query", "retrieve"]
DEFAULT_RIGHTS: list[Right] = ["worklist", "mpps", "store", "commitment"]
SECRET_CHARACTERS_MIN = 32

LISTED_MAX = 100  # in one list of a node
MATCHES_MAX = 100_000
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


def _one_character_set(value: str) -> str:
    if not value or not charset.supported(charset.terms(value)):
        raise ValueError("must be a value of (0008,0005), such as ISO_IR 192 or ISO 2022 IR 159")
    return value


def members(text: str) -> list[str]:
    """Of a list separated by commas; none of an empty text. Raises ValueError for an empty one: a stray comma must not
    take a rule away, which would show a device more."""
    found = [part.strip() for part in text.split(",")] if text else []
    if not all(found):
        raise ValueError("has a member that is empty: take out the comma or blank that stands alone")
    return found


def _profile(value: str) -> str:
    """Names of shipped profiles, separated by commas."""
    named = list(dict.fromkeys(members(value)))
    if unknown := sorted(set(named) - habits.PROFILES.keys()):
        raise ValueError(f"no such profile: {', '.join(unknown)}; there are {', '.join(habits.PROFILES)}")
    return ",".join(named)


def _quirk(value: str) -> str:
    if value not in habits.QUIRKS:
        raise ValueError(f"no such quirk: {value}; there are {', '.join(habits.QUIRKS)}")
    return value


def _seen(value: str) -> str:
    kind, colon, rest = value.partition(":")
    fits = (
        (kind in ("own", "modality") and not colon)
        or (kind == "ae" and re.fullmatch(ids.AE_TITLE, rest))
        or (kind == "location" and re.fullmatch(LOCATION, rest))
    )
    if not fits:
        raise ValueError("must be own, modality, ae:TITLE or location:TEXT")
    return value


def _required(value: str) -> str:
    """The keyword of something that an item has a value of."""
    if tag_for_keyword(value) not in (keys.RETURNED | keys.STEP_RETURNED) - {tree.CHARSET, keys.TIMEZONE}:
        raise ValueError("must be the keyword of what a worklist item has, such as AccessionNumber")
    return value


def _shortened(value: str) -> str:
    tag = tag_for_keyword(value)
    if tag is None or tag not in keys.RETURNED | keys.STEP_RETURNED | keys.ITEM_RETURNED:
        raise ValueError("must be for the keyword of what a worklist item has, such as RequestedProcedureDescription")
    if tree.vr_of(tag) not in tree.TEXT_VRS:
        raise ValueError(f"must be for a text, and {value} is none")
    if tag in variants.IDENTIFIERS:
        raise ValueError(f"must not shorten {value}: what is left would name something else")
    if tree.vr_of(tag) == "PN":
        raise ValueError(f"must not shorten {value}: what is left would name somebody else")
    return value


def _any_character_set(value: str) -> str:
    return _one_character_set(value) if value else ""


def _asked(value: str) -> str:
    """The keyword of a text that a worklist can be asked by."""
    tag = tag_for_keyword(value)
    known = (keys.RETURNED | keys.STEP_RETURNED) - {tree.CHARSET, keys.TIMEZONE}
    if tag not in known or tree.vr_of(tag) in ("SQ", "US"):
        raise ValueError("must be the keyword of a text that a worklist is asked by, such as InstitutionName")
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
# A backslash would make two values of one (PS3.5 6.2).
Issuer = Annotated[str, Field(max_length=64), _like(rest_orders.PLAIN, rest_orders.PATTERNS[rest_orders.PLAIN])]
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


# (0040,0011) is an SH. Outer blanks do not count in a query, so they would never be found.
LOCATION = r"[^\x00-\x1f\x7f\\ ]([^\x00-\x1f\x7f\\]{0,14}[^\x00-\x1f\x7f\\ ])?"
Label = Annotated[str, _like(rest_orders.LABEL, rest_orders.PATTERNS[rest_orders.LABEL])]
Hours = Annotated[float, Field(ge=0, le=HOURS_MAX)]
Days = Annotated[int, Field(ge=0, le=DAYS_MAX)]
LongDays = Annotated[float, Field(gt=0, le=DAYS_MAX)]  # 0 is not: what ends a life must let it begin


Few = Field(max_length=LISTED_MAX)
Titles = Annotated[list[AeTitle], Few]


def _writes_half_width(character_set: str) -> bool:
    """Of a device that is answered in the site's set, or in its own choice, nobody knows."""
    if character_set in ("", "REQUEST"):
        return True
    try:
        return bool(charset.encode("ｱ", charset.terms(character_set), "PN"))
    except ValueError:
        return False


def _twice(titles: list[str]) -> str:
    return next((title for n, title in enumerate(titles) if title in titles[:n]), "")


class Entry(BaseModel):
    """word: its table in the file. key: the field that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    word: ClassVar[str]
    key: ClassVar[str] = "name"

    @property
    def named(self) -> str:
        return str(getattr(self, self.key))


class NodeEntry(Entry):
    """The fields mean what they mean in model.site.Node, and in dicom.habits.Habits."""

    word = "node"
    key = "ae_title"
    ae_title: AeTitle
    host: Host = ""
    port: int = Field(default=0, ge=0, le=65535)
    any_address: bool = False
    device: Text = ""
    kind: Literal["modality", "mobile", "qa", "import"] = "modality"
    modality: Modality = ""
    station_names: list[Annotated[Text, _like(r".*\S.*", "must not be empty")]] = []
    rights: list[Right] = DEFAULT_RIGHTS
    character_set: Annotated[str, AfterValidator(_character_set)] = ""
    mpps_strict: bool | None = None
    accession_issuer: Issuer = ""
    patient_id_issuer: Issuer = ""
    profile: Annotated[str, AfterValidator(_profile)] = ""
    aliases: Titles = []
    groups: Titles = []
    sees: Annotated[list[Annotated[str, AfterValidator(_seen)]], Few] | None = None
    labels: Annotated[list[Label], Few] | None = None
    hide: Annotated[list[StepState], Few] | None = None
    started_hours: Hours | None = None
    finished_hours: Hours | None = None
    matches_max: Annotated[int, Field(ge=1, le=MATCHES_MAX)] | None = None
    days_before: Days | None = None
    days_after: Days | None = None
    character_sets_also: Annotated[list[Annotated[str, AfterValidator(_one_character_set)]], Few] | None = None
    lengths: (
        Annotated[dict[Annotated[str, AfterValidator(_shortened)], Annotated[int, Field(ge=1, le=10_240)]], Few] | None
    ) = None
    requires: Annotated[list[Annotated[str, AfterValidator(_required)]], Few] | None = None
    quirks: Annotated[list[Annotated[str, AfterValidator(_quirk)]], Few] | None = None
    expire_days: LongDays | None = None
    idle_days: LongDays | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "NodeEntry":
        shown = habits.of(self)
        if not self.host and not self.any_address:
            raise ValueError("needs a host, which its source address is checked against, or any_address")
        if "modality" in shown.sees and not self.modality:
            raise ValueError("that sees what its modality is needs a modality")
        if "today_is_window" in shown.quirks and None in (shown.days_before, shown.days_after):
            raise ValueError("with today_is_window needs days_before and days_after")
        if "half_width_kana" in shown.quirks and not _writes_half_width(shown.character_set):
            raise ValueError(
                "with half_width_kana needs a character_set that has it, such as 'ISO 2022 IR 13\\ISO 2022 IR 87'"
            )
        if twice := _twice([self.ae_title, *self.aliases, *self.groups]):
            raise ValueError(f"names {twice} twice: a title is its own, an alias or a group")
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
    label: Label = ""


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


class UpstreamEntry(Entry):
    """The fields mean what they mean in model.upstream.Upstream."""

    word = "upstream"
    name: Name
    host: Annotated[str, Field(min_length=1), AfterValidator(_host)]
    port: int = Field(ge=1, le=65535)
    ae_title: AeTitle
    calling_ae_title: AeTitle | Literal[""] = ""
    modality: Modality = ""
    station_ae_title: AeTitle | Literal[""] = ""
    days_before: int = Field(default=0, ge=-1, le=DAYS_MAX)
    days_after: int = Field(default=1, ge=-1, le=DAYS_MAX)
    keys: Annotated[dict[Annotated[str, AfterValidator(_asked)], Text], Few] = {}
    every_seconds: float = Field(default=60, ge=1, le=86_400)
    patient_id_issuer: Issuer = ""
    accession_issuer: Issuer = ""
    label: Label = ""
    character_set: Annotated[str, AfterValidator(_any_character_set)] = ""
    enabled: bool = True
    priority: int = Field(default=100, ge=0, le=10_000)
    gone: Literal["keep", "cancel"] = "keep"
    gone_after: int = Field(default=3, ge=1, le=1_000)

    @model_validator(mode="after")
    def _fits_together(self) -> "UpstreamEntry":
        for name, value in self.keys.items():
            try:
                upstream_item.check_key(name, value)
            except BrokerError:
                raise ValueError(f"has a key that cannot be asked for: {name}") from None
            if not upstream_item.can_ask(name, value, self.character_set):
                raise ValueError(f"has a key that its character_set cannot write: {name}")
        return self


KINDS: tuple[type[Entry], ...] = (NodeEntry, SenderEntry, IntakeEntry, UpstreamEntry, TokenEntry)


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
    """JSON's strings, numbers, booleans and lists of them are TOML's, but for DEL, which TOML wants escaped."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_bare(name)} = {_value(one)}' for name, one in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
