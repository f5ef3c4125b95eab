"""How to start: settings and every named limit with its unit. What the site looks like lives in tables (sites.py).

Order: command line > environment (`BROKER_`, `__` nests, `*_FILE` reads a secret) > broker.toml > default."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from broker import ids
from broker.errors import ConfigError

PREFIX = "BROKER_"
MASK = "***"
SECRETS = {"database_url", "archive_url"}  # shown as `masked` says


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Site(Section):
    """missing_*: what becomes of an order without that identifier; empty: `reject` over HL7 where its profile requires
    it, else `generate` (the Study Instance UID: `derive`)."""

    name: str = "ris-broker"
    timezone: str = "Asia/Tokyo"
    language: Literal["ja", "en"] = "ja"
    patient_id_issuer: str = Field(default="", max_length=64, pattern=ids.PLAIN)
    accession_issuer: str = Field(default="", max_length=64, pattern=ids.PLAIN)
    uid_root: str = "2.25"
    phonetic_form: Literal["katakana", "hiragana"] = "katakana"
    romanisation: Literal["TARO", "TAROU"] = "TARO"
    patient_id_pad_to: int = 0  # digits: a shorter numeric Patient ID is padded with zeros on the left; 0 is off
    missing_accession_number: Literal["", "reject", "generate", "derive"] = ""
    missing_requested_procedure_id: Literal["", "reject", "generate", "derive"] = ""
    missing_sps_id: Literal["", "reject", "generate", "derive"] = ""
    missing_study_instance_uid: Literal["", "reject", "generate", "derive"] = ""

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except Exception:
            raise ValueError(f"no such time zone: {value}") from None
        return value


class Dicom(Section):
    host: str = "127.0.0.1"
    port: int = 11112
    ae_title: str = Field(default="BROKER", min_length=1, max_length=16)
    ae_aliases: Annotated[list[str], NoDecode] = []  # in the environment: separated by commas
    unknown_ae: Literal["reject", "accept"] = "reject"
    character_set: str = ""  # for nodes without one; empty: \ISO 2022 IR 87 with language ja, else ISO_IR 192
    issue_timezone: bool = False  # return (0008,0201) although the query does not ask for it

    @field_validator("ae_aliases", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Hl7(Section):
    host: str = "127.0.0.1"
    port: int | Literal["off"] = 2575  # off: nobody without a certificate can send
    tls_port: int | None = None  # None: no TLS; 2576 by custom. A client certificate is required there
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None  # who signs the certificates of senders
    unknown_sender: Literal["", "accept", "reject"] = ""  # empty: accept on loopback, else reject
    character_set: str = "ISO-2022-JP"
    on_trouble: Literal["close", "AE"] = "close"  # what a sender gets whose message cannot be taken now
    link_patients: bool = False  # take A24 and A37 for what they say of each patient; they join and part nobody


StepState = Literal[
    "SCHEDULED", "ARRIVED", "READY", "STARTED", "COMPLETED", "DISCONTINUED", "CANCELED", "NO_SHOW", "EXPIRED", "ON_HOLD"
]
NOT_WAITING: tuple[StepState, ...] = get_args(StepState)[3:]


HOURS_MAX, DAYS_MAX = 24 * 366.0, 3_660  # that a site or a node may say: what is meant as "never" is still a time


class Worklist(Section):
    """hide, hide_rest: statuses that no device, and no list over REST, is shown; a node may have a list of its own.
    What has started or finished and is not hidden stays for the hours after it did."""

    hide: list[StepState] = list(NOT_WAITING)
    hide_rest: list[StepState] = list(NOT_WAITING)
    started_hours: float = Field(default=24, ge=0, le=HOURS_MAX)
    finished_hours: float = Field(default=24, ge=0, le=HOURS_MAX)
    fuzzy_names: bool = False  # fuzzy matching of names, where a device negotiates it
    timezone_adjustment: bool = True  # keys in the query's own zone, where a device negotiates it
    # After the later of start and last message; 0 is not: a list must end.
    expire_days: float = Field(default=7, gt=0, le=DAYS_MAX)
    idle_days: float = Field(default=2, gt=0, le=DAYS_MAX)  # the same for who arrived and was not begun with
    queries_days: float = Field(default=30, gt=0, le=DAYS_MAX)  # that queries and what they showed are kept
    snapshot_seconds: float = Field(
        default=60, gt=0
    )  # between two of the snapshot that serves while the database is away
    snapshot_hours_max: float = Field(default=12, ge=0, le=HOURS_MAX)  # its age; over it, or with 0, a query gets A700


class Mpps(Section):
    strict: bool = False
    final_retry_ok: bool = False  # a byte-identical repeat of the final N-SET is answered 0000


class Http(Section):
    host: str = "127.0.0.1"
    port: int = 8080


class Fhir(Section):
    """systems: `NAME=URI` each, the name by which HL7 and DICOM know an issuer or a coding scheme."""

    systems: Annotated[list[str], NoDecode] = []  # in the environment: separated by commas

    @field_validator("systems", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("systems")
    @classmethod
    def _named(cls, value: list[str]) -> list[str]:
        for one in value:
            name, _, uri = (part.strip() for part in one.partition("="))
            if not name or ":" not in uri:
                raise ValueError("each is NAME=URI, such as HOSP=urn:oid:1.2.392.100495.20.3.51.11310000000")
        return value


class Reconcile(Section):
    settle_seconds: float = 60
    complete_without_mpps_seconds: float = 900
    append_hours: float = 24


class Limits(Section):
    """Names end in the unit. Source of the defaults: durability.md 1.8."""

    dicom_connections_max: int = 256
    dicom_connections_per_address_max: int = 64
    dicom_associations_per_ae_max: int = 64
    dicom_storage_associations_max: int | None = None  # that can do nothing but store; None: half of all connections
    dicom_associate_seconds_max: float = 10
    dicom_pdu_seconds_max: float = 15
    dicom_idle_seconds_max: float = 600
    dicom_associate_pdu_bytes_max: int = 128 * 1024
    dicom_pdu_bytes_advertised: int = 128 * 1024
    dicom_pdu_bytes_max: int = 256 * 1024
    dicom_contexts_max: int = 128
    dicom_command_bytes_max: int = 64 * 1024
    dicom_identifier_bytes_max: int = 1024 * 1024
    dicom_attributes_bytes_max: int = 4 * 1024 * 1024  # of an N-CREATE or N-SET: it lists every image of the exam
    dicom_object_bytes_max: int = 4 * 1024**3
    dicom_pipelined_requests_max: int = 16
    header_elements_max: int = 20_000
    header_frame_elements_max: int = 2_000_000  # inside the Per-frame Functional Groups, which grow with the frames
    header_depth_max: int = 16
    header_text_bytes_max: int = 1024 * 1024
    header_value_bytes_max: int = 4096  # of a text that the gate looks at
    header_items_max: int = 100  # kept of each sequence that the gate looks at; what is cut makes it hold the study
    header_facts_bytes_max: int = 64 * 1024  # of all that the gate looks at, in one object
    header_seconds_max: float = 5  # of processor time
    worklist_matches_max: int = 500
    worklist_looked_at_max: int = 20_000  # items one by one, for keys that no index has; over it A700: refine the query
    case_candidates_max: int = 50  # open orders of the patients that a held study names
    mpps_elements_max: int = 200_000  # a performed step lists every image of the exam, three elements each
    offer_queue_max: int = 10_000  # queries waiting to be recorded; over it a tenth is given up, the oldest
    offered_items_max: int = 200_000  # first offers waiting to be recorded, over it as above; or known to be on record
    mllp_connections_max: int = 64
    mllp_connections_per_address_max: int = 16
    mllp_frame_bytes_max: int = 16 * 1024**2
    mllp_segment_bytes_max: int = 64 * 1024  # OBX may reach the frame's limit
    mllp_segments_max: int = 20_000
    mllp_fields_max: int = 200
    mllp_repetitions_max: int = 200
    mllp_components_max: int = 100
    mllp_idle_seconds_max: float = 24 * 3600
    mllp_frame_seconds_max: float = 30
    mllp_tls_seconds_max: float = 5  # for the handshake
    mllp_parse_seconds_max: float = 1  # of processor time, to read one message
    mllp_escapes_max: int = 100_000  # escape sequences of HL7 and of ISO 2022 in one message
    mllp_orders_max: int = 500  # ORC, OBR, IPC, PID, RGS: each kind, in one message
    mllp_batch_messages_max: int = 1_000  # in one frame
    message_deaths_max: int = 3  # of the program while the message was being read; then it is parked
    unknown_sender_bytes_max: int = 64 * 1024  # a longer message of a sender that is not registered is not kept
    unknown_sender_messages_max: int = 1_000  # kept of all such senders, oldest out first
    report_document_bytes_max: int = 10 * 1024**2
    http_body_bytes_max: int = 1024 * 1024
    fhir_body_bytes_max: int = 16 * 1024**2
    fhir_entries_max: int = 200  # of a transaction, which must end within database_wait_seconds_max
    fhir_parse_seconds_max: float = 3  # of processor time, to read one request
    http_header_bytes_max: int = 16 * 1024
    http_header_seconds_max: float = 10
    http_body_seconds_max: float = 30
    http_connections_max: int = 6_000  # and no more than descriptors are left for
    http_connections_per_address_max: int = 2_000
    http_ready_seconds_max: float = 2  # until /healthz/ready says that the database does not answer
    http_threads_max: int = 16
    http_in_flight_max: int = 200
    http_waiters_max: int = 5_000
    http_wait_seconds_max: float = 30
    list_items_max: int = 500
    journal_rows_max: int = 2_000  # looked at for one page of a search that no index answers alone
    journal_segments_max: int = 1_000  # shown of one message
    intake_file_bytes_max: int = 64 * 1024**2
    intake_file_rows_max: int = 20_000  # messages, or rows of CSV, in one file
    intake_quiet_seconds: float = 2  # a file is complete that nobody has touched for so long
    intake_pass_seconds_max: float = 10  # one pass over the folders, or over the systems that are asked
    poll_body_bytes_max: int = 16 * 1024**2
    poll_items_max: int = 1_000  # in one answer
    poll_seconds_max: float = 10  # one question and its answer
    poll_retry_seconds_max: float = 900  # between two questions to a system that fails
    poll_retry_after_seconds_max: float = 3600  # where it says itself when to come again
    upstream_matches_max: int = 2_000  # answers of one worklist provider to one question
    upstream_bytes_max: int = 16 * 1024**2  # of all of them
    upstream_elements_max: int = 2_000  # in one of them
    upstream_unreadable_max: int = 20  # of one answer, that the journal keeps
    upstream_seconds_max: float = 15  # one question with all its answers
    upstream_pass_seconds_max: float = 10  # to take in what all that were asked have answered
    upstream_parallel_max: int = 8  # providers that are asked at once
    upstream_failures_max: int = 3  # in a row; then it is asked less and less often
    upstream_retry_seconds_max: float = Field(default=900, le=86_400)  # between two questions to a provider that fails
    upstream_keep_seconds: float = 7 * 24 * 3600  # what was listed, after it was listed last
    staging_free_bytes_min: int | None = None  # None: max(2 x largest object seen, min(5 GiB, 3 % of the volume))
    staging_free_soft_percent: float = 15
    staging_probe_seconds: float = 10  # a volume that failed is tried again no more often
    refused_objects_max: int = 1_000  # kept to be looked at, oldest out first
    refused_bytes_max: int = 1024**3
    refused_keep_seconds: float = 7 * 24 * 3600
    database_wait_seconds_max: float = 10  # one transaction, with all its turns, locks and replays
    database_statement_seconds_max: float = 2  # one statement of it, on PostgreSQL
    database_job_seconds_max: float = 300  # both, where no peer waits: jobs, recovery; migrations have no limit
    database_connect_seconds_max: float = 2  # whole seconds, at least 2
    database_pool_connections: int = 40
    database_worklist_connections: int = 4  # beside them, for worklist queries alone
    lease_seconds: float = 60
    job_seconds_between: float = 2
    decide_batch_studies_max: int = 20
    decide_retry_seconds: float = 60  # after a study that could not be decided
    commit_batch_studies_max: int = 8
    commit_retry_seconds_max: float = 300
    commit_attempts_max: int = 8  # failed tries of one study; then, and each time after as many, a person is told
    archive_partial_seconds_max: float = 3600  # a copy under way that is older was left by somebody who was killed
    rendition_header_bytes_max: int = 512 * 1024**2  # loaded to write a rendition: all but the pixels
    stop_seconds_max: float = 30


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid")

    data_dir: Path = Path("./data")
    database_url: str = ""
    archive_url: str = ""
    site_file: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    site: Site = Site()
    dicom: Dicom = Dicom()
    hl7: Hl7 = Hl7()
    http: Http = Http()
    fhir: Fhir = Fhir()
    worklist: Worklist = Worklist()
    mpps: Mpps = Mpps()
    reconcile: Reconcile = Reconcile()
    limits: Limits = Limits()

    @classmethod
    def settings_customise_sources(cls, *args: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load` asks the sources itself, so that it can say where a value came from."""
        return (sources["init_settings"],)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'broker.sqlite3'}"

    @property
    def archive(self) -> str:
        return self.archive_url or f"file://{self.data_dir.resolve() / 'archive'}"

    @property
    def staging_dir(self) -> Path:
        return self.data_dir.resolve() / "staging"

    @property
    def worklist_character_set(self) -> str:
        return self.dicom.character_set or ("\\ISO 2022 IR 87" if self.site.language == "ja" else "ISO_IR 192")


def load(config_file: Path | None = None, **overrides: Any) -> Settings:
    """Settings from all sources. overrides: dotted names from the command line, `None` left out.

    Raises ConfigError naming the setting, its source and what is expected."""
    return _build(sources(config_file, **overrides))


def sources(config_file: Path | None = None, **overrides: Any) -> dict[str, tuple[Any, str]]:
    """Every setting that is not default: dotted name -> (value, where it came from)."""
    found: dict[str, tuple[Any, str]] = {}
    found.update(_from_file(config_file))
    found.update(_from_environment())
    found.update({name: (value, "command line") for name, value in overrides.items() if value is not None})
    return found


def _from_file(config_file: Path | None) -> dict[str, tuple[Any, str]]:
    path = config_file or Path("broker.toml")
    if config_file is None and not path.exists():
        return {}
    try:
        path.read_text("utf-8")
        tree = TomlConfigSettingsSource(Settings, path).toml_data
    except (OSError, ValueError) as error:  # tomllib's errors are ValueErrors and name line and column
        raise ConfigError(str(path), f"cannot be read: {error}") from None
    return {name: (value, str(path)) for name, value in _flatten(tree)}


def _from_environment() -> dict[str, tuple[Any, str]]:
    secrets = {name for name in os.environ if name.startswith(PREFIX) and name.endswith("_FILE")} - {
        f"{PREFIX}SITE_FILE"
    }
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields} | secrets | {f"{PREFIX}CONFIG"}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable.split("__")[0] not in known:
            raise ConfigError(variable, "no such setting; broker config show lists them")
    found = {
        name: (value, _variable(name))
        for name, value in _flatten(EnvSettingsSource(Settings)())
        if f"{_variable(name)}" not in secrets
    }
    for variable in secrets:
        try:
            text = Path(os.environ[variable]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(variable, f"cannot be read: {error}") from None
        found[variable[len(PREFIX) : -len("_FILE")].lower().replace("__", ".")] = (text, variable)
    return found


def _variable(name: str) -> str:
    return PREFIX + name.upper().replace(".", "__")


def _flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in tree.items():
        flat += _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return flat


def _build(found: dict[str, tuple[Any, str]]) -> Settings:
    tree: dict[str, Any] = {}
    for name, (value, _) in found.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        source = next((where for key, (_, where) in found.items() if key == name), "settings")
        problem = "no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(name, f"{problem} (from {source})") from None


def masked(url: str) -> str:
    """Without user and password, and without what its query says: that may be a password or a key as well."""
    scheme, between, rest = url.partition("://")
    address, asks, query = rest.partition("?")
    if "@" in query:  # a sign of either: then nobody can tell where the password ends
        return f"{scheme}{between}{MASK}"
    if "@" in address:
        address = f"{MASK}@{address.rpartition('@')[2]}"
    parts = (name + equals for name, equals, _ in (part.partition("=") for part in query.split("&")))
    said = "&".join(f"{part}{MASK}" if part.endswith("=") else MASK for part in parts) if query else ""
    return f"{scheme}{between}{address}{asks}{said}"


def show(settings: Settings, found: dict[str, tuple[Any, str]]) -> list[tuple[str, str, str]]:
    """Effective settings: (name, value, source), secrets masked."""
    rows = []
    for name, value in _flatten(settings.model_dump(mode="json")):
        text = "" if value is None else str(value)
        text = masked(text) if name in SECRETS else text
        rows.append((name, text, found[name][1] if name in found else "default"))
    return rows
