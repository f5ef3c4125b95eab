"""What the site looks like: remote application entities, HL7 senders, tokens. Services over model/site."""

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from pydantic import ValidationError
from sqlmodel import Session, col, select

from broker import audit, clock, db, ids, log
from broker.config import MASK, Settings, masked
from broker.errors import ConfigError, DuplicateKey, InvalidValue, UnknownKey
from broker.model.site import ApiToken, Intake, Node, Sender, UnknownPeer
from broker.model.upstream import Upstream
from broker.mwl import learned, query_log
from broker.ris_bridge.hl7 import charset
from broker.ris_bridge.intakes import watched_by
from broker.ris_bridge.mapping import profile, store
from broker.site_toml import (
    Entry,
    IntakeEntry,
    MappingEntry,
    NodeEntry,
    SenderEntry,
    TokenEntry,
    UpstreamEntry,
    emit,
    parse,
    problem,
)  # fmt: skip

SiteRow = Node | Sender | Intake | Upstream | ApiToken
TABLES: dict[type[Entry], type[SiteRow]] = {
    NodeEntry: Node, SenderEntry: Sender, IntakeEntry: Intake, UpstreamEntry: Upstream, TokenEntry: ApiToken,
}  # fmt: skip
SITE_FILE_BYTES_MAX = 16 * 1024**2
NOTHING: Mapping[str, Any] = MappingProxyType({})
CHARACTER_SETS = (*charset.CODECS, *charset.JAPANESE)

E = TypeVar("E", bound=Entry)


def nodes(session: Session) -> Sequence[Node]:
    return session.exec(select(Node).order_by(col(Node.ae_title))).all()


def senders(session: Session) -> Sequence[Sender]:
    return session.exec(select(Sender).order_by(col(Sender.name))).all()


def intakes(session: Session) -> Sequence[Intake]:
    return session.exec(select(Intake).order_by(col(Intake.name))).all()


def upstreams(session: Session) -> Sequence[Upstream]:
    return session.exec(select(Upstream).order_by(col(Upstream.name))).all()


def tokens(session: Session) -> Sequence[ApiToken]:
    return session.exec(select(ApiToken).order_by(col(ApiToken.name))).all()


def unknown_peers(session: Session, limit: int) -> Sequence[UnknownPeer]:
    """Who knocked and was refused, the newest first."""
    return session.exec(select(UnknownPeer).order_by(col(UnknownPeer.last_at).desc()).limit(limit)).all()


def node(session: Session, ae_title: str) -> Node:
    row = _the(session, NodeEntry, ae_title)
    assert isinstance(row, Node)
    return row


def add_node(session: Session, ae_title: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    """`added`, or `unchanged` where that node exists as it is; DuplicateKey where it exists and differs."""
    return _add(session, _entry(NodeEntry, ae_title=ae_title, **fields), now=now, actor=actor)


def add_sender(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _add(session, _entry(SenderEntry, name=name, **fields), now=now, actor=actor)


def add_intake(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _add(session, _entry(IntakeEntry, name=name, **fields), now=now, actor=actor)


def add_upstream(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _add(session, _entry(UpstreamEntry, name=name, **fields), now=now, actor=actor)


def change_node(session: Session, ae_title: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    """`changed`, or `unchanged` where it is so already. fields: those that are to be as they say; the others stay."""
    return _alter(session, NodeEntry, ae_title, fields, now=now, actor=actor)


def suggestions(session: Session, ae_title: str, settings: Settings) -> list[learned.Proposal]:
    """What the last queries of that device say about it, and nobody has said yet (mwl/learned.py)."""
    row, zone = node(session, ae_title), ZoneInfo(settings.site.timezone)
    queries = query_log.read(session, ae_title, zone, settings.limits.list_items_max)
    return learned.propose(queries, row, settings.worklist_character_set)


def accept(
    session: Session, ae_title: str, names: Sequence[str], settings: Settings, *, now: dt.datetime, actor: str
) -> list[str]:
    """Make the node what is proposed: those of these names, all without a name. Gives the names; InvalidValue for one
    that is not proposed."""
    proposed = {one.name: one for one in suggestions(session, ae_title, settings)}
    if unknown := sorted({*names} - proposed.keys()):
        known = f"what is proposed now: {', '.join(proposed)}" if proposed else "nothing is proposed now"
        raise InvalidValue(f"node {ae_title}", f"its queries do not propose {', '.join(unknown)}; {known}")
    taken = [one for name, one in proposed.items() if name in names or not names]
    if taken:
        told = {"accepted": {one.name: one.evidence for one in taken}}
        changes = learned.merged(taken)
        _alter(session, NodeEntry, ae_title, changes, now=now, actor=actor, told=told)
    return [one.name for one in taken]


def change_sender(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _alter(session, SenderEntry, name, fields, now=now, actor=actor)


def change_intake(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _alter(session, IntakeEntry, name, fields, now=now, actor=actor)


def change_upstream(session: Session, name: str, *, now: dt.datetime, actor: str, **fields: Any) -> str:
    return _alter(session, UpstreamEntry, name, fields, now=now, actor=actor)


def remove_node(session: Session, ae_title: str, *, now: dt.datetime, actor: str) -> None:
    _remove(session, NodeEntry, ae_title, now=now, actor=actor)


def remove_sender(session: Session, name: str, *, now: dt.datetime, actor: str) -> None:
    _remove(session, SenderEntry, name, now=now, actor=actor)


def remove_intake(session: Session, name: str, *, now: dt.datetime, actor: str) -> None:
    _remove(session, IntakeEntry, name, now=now, actor=actor)


def remove_upstream(session: Session, name: str, *, now: dt.datetime, actor: str) -> None:
    """Its orders stay."""
    _remove(session, UpstreamEntry, name, now=now, actor=actor)


def create_token(session: Session, name: str, role: str, *, now: dt.datetime, actor: str, secret: str = "") -> str:
    """Its secret: the one given, or a new one. Only the hash is kept, so this is the last time it is seen."""
    entry = _entry(TokenEntry, name=name, role=role)
    if _find(session, entry, name) is not None:
        raise DuplicateKey(f"token {name}", "exists already; take another name (broker token list shows them)")
    secret = secret or ids.secret()
    session.add(ApiToken(digest=token_digest(secret), **entry.model_dump()))
    audit.record(session, "token.create", f"token:{name}", actor=actor, now=now, role=role)
    return secret


def disable_token(session: Session, name: str, *, now: dt.datetime, actor: str) -> None:
    row = _the(session, TokenEntry, name)
    assert isinstance(row, ApiToken)
    _change(session, row, {"disabled": True}, f"token:{name}", now=now, actor=actor)


def token_digest(secret: str) -> str:
    """What is kept of a token. It has 256 random bits, so a plain hash is enough to make it useless."""
    return hashlib.sha256(secret.encode()).hexdigest()


def export(session: Session) -> str:
    """The whole site as a site file, secrets masked."""
    rows: list[SiteRow] = [
        *nodes(session), *senders(session), *intakes(session), *upstreams(session), *tokens(session),
    ]  # fmt: skip
    kinds = {table: kind for kind, table in TABLES.items()}
    entries = [_without_secrets(_entry_of(kinds[type(row)], row)) for row in rows]
    return emit([*entries, *(MappingEntry(name=row.name, text=row.text) for row in store.active_rows(session))])


def _without_secrets(entry: Entry) -> Entry:
    return entry.model_copy(update={"url": masked(entry.url)}) if isinstance(entry, IntakeEntry) else entry


def apply(session: Session, entries: Sequence[Entry], *, now: dt.datetime, actor: str) -> list[tuple[str, str]]:
    """Make each entry so, profiles before those that name them; what the file does not name stays. Gives (`node CT1`,
    what happened) for each: `added`, `changed`, `unchanged`, or `missing`, a token or an intake that does not exist and
    whose secret is masked."""
    ordered = sorted(entries, key=lambda one: not isinstance(one, MappingEntry))
    outcomes = [_put(session, entry, now=now, actor=actor) for entry in ordered]
    done = list(zip(ordered, outcomes, strict=True))
    for entry, outcome in done:  # when all is as the file says: two may have changed places
        _check_others(session, entry, outcome)
    return [(f"{entry.word} {entry.named}", outcome) for entry, outcome in done]


def read_file(path: Path) -> list[Entry]:
    try:
        with path.open("rb") as file:
            content = file.read(SITE_FILE_BYTES_MAX + 1)
        if len(content) > SITE_FILE_BYTES_MAX:
            raise ConfigError(str(path), f"is larger than {SITE_FILE_BYTES_MAX} bytes")
        return parse(content.decode(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from None


def apply_file(path: Path) -> None:
    """BROKER_SITE_FILE at start: all of it or nothing."""
    entries = read_file(path)
    for what, outcome in db.run(apply, entries, now=clock.now(), actor="site file"):
        if outcome == "missing":  # nobody would see a secret that is made here
            log.get().warning("site.token_without_secret", token=what, mend="broker token create, or the url in full")
        elif outcome != "unchanged":
            log.get().info("site.change", what=what, outcome=outcome)


def _entry(entry: type[E], /, **fields: Any) -> E:
    try:
        return entry.model_validate(fields)
    except ValidationError as error:
        name, sentence = problem(error)
        raise InvalidValue(f"{entry.word} {name}".strip(), sentence) from None


def _entry_of(kind: type[Entry], row: SiteRow) -> Entry:
    return kind.model_validate(row.model_dump(include=set(kind.model_fields)))


def _find(session: Session, kind: Entry | type[Entry], name: str) -> SiteRow | None:
    table = TABLES[kind if isinstance(kind, type) else type(kind)]
    row: SiteRow | None = session.exec(select(table).where(getattr(table, kind.key) == name)).first()  # type: ignore[assignment]
    return row


def _the(session: Session, kind: type[Entry], name: str) -> SiteRow:
    row = _find(session, kind, name)
    if row is None:
        raise UnknownKey(f"{kind.word} {name}", f"is not known here; broker {kind.word} list shows those that are")
    return row


def _remove(session: Session, kind: type[Entry], name: str, *, now: dt.datetime, actor: str) -> None:
    session.delete(_the(session, kind, name))
    audit.record(session, "site.change", f"{kind.word}:{name}", actor=actor, now=now, change="removed")


def _add(session: Session, entry: Entry, *, now: dt.datetime, actor: str) -> str:
    row = _find(session, entry, entry.named)
    if row is not None and _differences(row, entry.model_dump()):
        raise DuplicateKey(
            f"{entry.word} {entry.named}",
            f"exists already with other settings; broker {entry.word} change changes them",
        )
    outcome = _put(session, entry, now=now, actor=actor)
    _check_others(session, entry, outcome)
    return outcome


def _alter(
    session: Session,
    kind: type[Entry],
    name: str,
    fields: dict[str, Any],
    *,
    now: dt.datetime,
    actor: str,
    told: Mapping[str, Any] = NOTHING,
) -> str:
    """told: more for the audit trail."""
    row = _the(session, kind, name)
    if not fields:
        raise InvalidValue(f"{kind.word} {name}", "says nothing that is to change")
    entry = _entry(kind, **{**row.model_dump(include=set(kind.model_fields)), **fields})
    outcome = _put(session, entry, now=now, actor=actor, told=told)
    if outcome == "missing":
        raise InvalidValue(f"{kind.word} {name} url", f"holds {MASK}, which stands for nothing known; say it in full")
    _check_others(session, entry, outcome)
    return outcome


def _put(session: Session, entry: Entry, *, now: dt.datetime, actor: str, told: Mapping[str, Any] = NOTHING) -> str:
    """Afterwards the row is what the entry says; what the entry leaves out is at its default."""
    if isinstance(entry, MappingEntry):
        return store.put(session, entry.text, now=now, actor=actor, name=entry.name)[2]
    subject, values = f"{entry.word}:{entry.named}", entry.model_dump()
    row = _find(session, entry, entry.named)
    if isinstance(entry, SenderEntry | IntakeEntry):
        _check(session, entry, row)
    if isinstance(entry, TokenEntry) and entry.secret != MASK:
        values["digest"] = token_digest(entry.secret)
    if isinstance(entry, IntakeEntry) and MASK in entry.url:
        if not isinstance(row, Intake) or masked(row.url) != entry.url:
            return "missing"
        values["url"] = row.url
    if row is not None:
        return _change(session, row, values, subject, now=now, actor=actor, told=told)
    if isinstance(entry, TokenEntry) and entry.secret == MASK:
        return "missing"
    session.add(TABLES[type(entry)](**values))
    audit.record(session, "site.change", subject, actor=actor, now=now, change="added")
    return "added"


def _check(session: Session, entry: SenderEntry | IntakeEntry, row: SiteRow | None) -> None:
    """Else its first message would tell. What stands there already stays as it is: an upgrade must start."""
    place = f"{entry.word} {entry.named}"
    if entry.mapping not in ("", getattr(row, "mapping", "")) and store.find(session)(entry.mapping) is None:
        raise InvalidValue(
            f"{place} mapping", f"no such profile: {entry.mapping}; broker mapping list shows those that there are"
        )
    said = entry.character_set
    if said != getattr(row, "character_set", "") and not _is_known(said):
        raise InvalidValue(
            f"{place} character_set", f"no such character set: {said}; known are {', '.join(CHARACTER_SETS)}"
        )
    new = {*getattr(entry, "messages", ())} - {*getattr(row, "messages", ())}
    if unread := sorted(kind for kind in new if not profile.is_read(kind)):
        ignored = store.ignored(session, entry.mapping)
        if unread := [kind for kind in unread if not {kind, kind.partition("^")[0]} & ignored]:
            known = ", ".join(sorted(profile.TYPES))
            raise InvalidValue(f"{place} messages", f"no such message is read: {', '.join(unread)}; known are {known}")


def _is_known(character_set: str) -> bool:
    """As MSH-18 has it, where that is read."""
    try:
        charset.decode(b"", character_set, "")
    except InvalidValue:
        return False
    return True


def _check_others(session: Session, entry: Entry, outcome: str) -> None:
    """What an entry may not share with others. What stands there already stays as it is."""
    if outcome not in ("added", "changed"):
        return
    session.flush()
    if isinstance(entry, IntakeEntry) and entry.path:
        _check_folder(session, entry)
    if isinstance(entry, NodeEntry):
        _check_titles(session, entry)


def _check_folder(session: Session, entry: IntakeEntry) -> None:
    """A file of a folder that two watch is taken by either, by its character set and profile."""
    if (other := watched_by(session, entry.path, entry.name)) is not None:
        raise DuplicateKey(
            f"intake {entry.name} path", f"is watched by the intake {other} already; take another folder"
        )


def _check_titles(session: Session, entry: NodeEntry) -> None:
    """An AE title in an order stands for one device, or for a group of them, and everybody says the same of it."""
    place = f"node {entry.ae_title}"
    for other in nodes(session):
        if other.ae_title == entry.ae_title:
            continue
        for title in (entry.ae_title, *entry.aliases, *entry.groups):
            its_own = "" if title == entry.ae_title else " aliases" if title in entry.aliases else " groups"
            if title == other.ae_title:
                raise DuplicateKey(f"{place}{its_own}", f"{title} is the node {title} itself; take another title")
            if title in other.aliases:
                raise DuplicateKey(f"{place}{its_own}", f"{title} is an alias of the node {other.ae_title} already")
            if title in other.groups and title not in entry.groups:
                raise DuplicateKey(f"{place}{its_own}", f"{title} is a group, in which the node {other.ae_title} is")


def _change(
    session: Session,
    row: SiteRow,
    values: dict[str, Any],
    subject: str,
    *,
    now: dt.datetime,
    actor: str,
    told: Mapping[str, Any] = NOTHING,
) -> str:
    changes = _differences(row, values)
    if not changes:
        return "unchanged"
    for column, (_, new) in changes.items():
        setattr(row, column, new)
    if isinstance(row, Intake | Upstream):
        row.next_at = None
    if isinstance(row, Upstream):
        row.failures = 0
    if isinstance(row, Intake):
        row.cursor = "" if "url" in changes else row.cursor  # another system counts by itself
    session.add(row)
    shown = {name: [masked(one) for one in pair] if name == "url" else pair for name, pair in changes.items()}
    audit.record(session, "site.change", subject, actor=actor, now=now, change="changed", values=shown, **told)
    return "changed"


def _differences(row: SiteRow, values: dict[str, Any]) -> dict[str, list[Any]]:
    """Column -> [before, after]."""
    return {column: [getattr(row, column), value] for column, value in values.items() if getattr(row, column) != value}
