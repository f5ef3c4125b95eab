"""The site's own profiles: versions in a table, one of each name in use. Services.

A profile that is shipped is not changed: the site's own has another name, extends it, and is named by its senders."""

import datetime as dt
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, func, select

from broker import audit
from broker.errors import ConfigError, DuplicateKey, UnknownKey
from broker.model.site import Intake, MappingProfile, Sender
from broker.ris_bridge.mapping import profile as profiles
from broker.ris_bridge.mapping.profile import Profile

Versions = Mapping[str, tuple[int, dt.datetime]]


@dataclass(frozen=True)
class Cached:
    """versions: of the profile and of those of the site that it stands on, as they were read."""

    profile: Profile
    versions: Versions


_cache: dict[str, Cached] = {}


def put(session: Session, text: str, *, now: dt.datetime, actor: str, name: str = "") -> tuple[str, int, str]:
    """(name, version, outcome): `added`, `changed`, or `unchanged` where that text is in use. Raises ConfigError where
    it has a fault, or where another one that stands on it gets one. name: which it must have."""
    in_use = _active(session, name) if name else None
    if in_use is not None and in_use.text == text:  # also where it has a fault by now: an upgrade must start
        return name, in_use.version, "unchanged"
    profile = profiles.parse(text, _find(session))
    if name not in ("", profile.name):
        raise ConfigError(f"mapping {name}", f"the profile calls itself {profile.name}")
    if profiles.shipped_text(profile.name) is not None:
        raise DuplicateKey(f"mapping {profile.name}", "is shipped with the program; give yours a name and extend it")
    active = _active(session, profile.name)
    if active is not None and active.text == text:
        return profile.name, active.version, "unchanged"
    _check_those_above(session, profile.name, text)
    latest = (
        session.exec(select(func.max(MappingProfile.version)).where(MappingProfile.name == profile.name)).one() or 0
    )
    if active is not None:
        active.active = False
        session.add(active)
        session.flush()
    session.add(MappingProfile(name=profile.name, version=latest + 1, text=text, active=True, made_by=actor))
    session.flush()
    outcome = "changed" if latest else "added"
    audit.record(
        session, "site.change", f"mapping:{profile.name}", actor=actor, now=now, change=outcome, version=latest + 1,
        before=active.version if active else 0,
    )  # fmt: skip
    return profile.name, latest + 1, outcome


def rollback(session: Session, name: str, to: int | None, *, now: dt.datetime, actor: str) -> int:
    """The version that is in use again: the one before, or that one."""
    active = _active(session, name)
    before = active.version if active else 0
    query = select(MappingProfile).where(MappingProfile.name == name)
    query = query.where(MappingProfile.version == to) if to else query.where(col(MappingProfile.version) < before)
    row = session.exec(query.order_by(col(MappingProfile.version).desc()).limit(1)).first()
    if row is None:
        what = f"version {to}" if to else "version before it"
        raise UnknownKey(f"mapping {name}", f"has no {what}; broker mapping list shows what there is")
    profiles.parse(row.text, _find(session))
    _check_those_above(session, name, row.text)
    if active is not None and active.key != row.key:
        active.active = False
        session.add(active)
        session.flush()
    row.active = True
    session.add(row)
    session.flush()
    audit.record(
        session, "site.change", f"mapping:{name}", actor=actor, now=now, change="rolled back", version=row.version,
        before=before,
    )  # fmt: skip
    return row.version


def rows(session: Session) -> Sequence[MappingProfile]:
    """Every version, by name, the newest first."""
    query = select(MappingProfile).order_by(col(MappingProfile.name), col(MappingProfile.version).desc())
    return session.exec(query).all()


def active_rows(session: Session) -> Sequence[MappingProfile]:
    """Those in use, each after those that it extends."""
    query = select(MappingProfile).where(col(MappingProfile.active)).order_by(col(MappingProfile.name))
    rest = {row.name: row for row in session.exec(query)}
    below = {name: tomllib.loads(row.text).get("extends") for name, row in rest.items()}
    ordered: list[MappingProfile] = []
    while rest:
        ready = [name for name in rest if below[name] not in rest] or list(rest)
        ordered += [rest.pop(name) for name in ready]
    return ordered


def users(session: Session, name: str) -> list[str]:
    """Who names it, or one that stands on it: `sender his`, `intake north`."""
    names = {name}
    for row in active_rows(session):  # each after those below it
        if tomllib.loads(row.text).get("extends") in names:
            names.add(row.name)
    found = []
    for word, table in (("sender", Sender), ("intake", Intake)):
        query = select(table.name).where(col(table.mapping).in_(names)).order_by(col(table.name))
        found += [f"{word} {one}" for one in session.exec(query)]
    return found


def ignored(session: Session, name: str) -> set[str]:
    """The types of messages that a profile ignores: nobody reads them, and they may come."""
    if not name:
        return set()
    try:
        return {rule.type for rule in load(session, name).rules if rule.means == "ignore"}
    except ConfigError:
        return set()


def text_of(session: Session, name: str, version: int | None = None) -> str:
    """Of the version in use, or of that one; of a shipped profile as it is shipped."""
    text = profiles.shipped_text(name)
    if text is not None and not version:
        return text
    query = select(MappingProfile).where(MappingProfile.name == name)
    query = query.where(MappingProfile.version == version) if version else query.where(col(MappingProfile.active))
    row = session.exec(query).first()
    if row is None:
        raise UnknownKey(f"mapping {name}", "is not known here; broker mapping list shows what there is")
    return row.text


def load(session: Session, name: str) -> Profile:
    """As it is in use now. A new version is seen by the next message: its number is asked for each time, its text only
    when that changed. Raises ConfigError where there is none, or where it has a fault by now."""
    if profiles.shipped_text(name) is not None:
        return profiles.shipped(name)
    known = _cache.get(name)
    if known is not None and known.versions == _versions(session, known.versions):
        return known.profile
    read: dict[str, MappingProfile] = {}
    text = _find(session, read=read)(name)
    if text is None:
        raise ConfigError(f"mapping {name}", "the profile that is to read this message does not exist")
    profile = profiles.parse(text, _find(session, read=read), f"{name} v{read[name].version}")
    _cache[name] = Cached(profile, {row.name: (row.version, row.created_at) for row in read.values()})
    return profile


def _versions(session: Session, names: Iterable[str]) -> Versions:
    query = select(MappingProfile.name, MappingProfile.version, MappingProfile.created_at)
    rows = session.exec(query.where(col(MappingProfile.name).in_(names), col(MappingProfile.active)))
    return {name: (version, created_at) for name, version, created_at in rows}


def _active(session: Session, name: str) -> MappingProfile | None:
    query = select(MappingProfile).where(MappingProfile.name == name, col(MappingProfile.active))
    return session.exec(query.with_for_update()).first()


def _find(
    session: Session, instead: Mapping[str, str] | None = None, read: dict[str, MappingProfile] | None = None
) -> profiles.Find:
    """Texts by name: shipped ones, then the site's in use. instead: as if these were. read: takes the rows."""

    def find(name: str) -> str | None:
        if instead and name in instead:
            return instead[name]
        text = profiles.shipped_text(name)
        if text is not None:
            return text
        row = session.exec(
            select(MappingProfile).where(MappingProfile.name == name, col(MappingProfile.active))
        ).first()
        if row is not None and read is not None:
            read[name] = row
        return row.text if row else None

    return find


def find(session: Session) -> profiles.Find:
    """Texts of the profiles that one may extend, by name."""
    return _find(session)


def _check_those_above(session: Session, name: str, text: str) -> None:
    """Those in use that extend it, and those that extend these, are right with it, too."""
    for row in active_rows(session):
        if row.name != name:
            try:
                profiles.parse(row.text, _find(session, {name: text}))
            except ConfigError as error:
                raise ConfigError(f"mapping {row.name}", f"stands on {name} and would be wrong: {error}") from None
