"""The facts of a study, read from its rows and from what they may belong to. Reads only; judges nothing."""

import datetime as dt
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from sqlmodel import Session, col, select

from broker import clock
from broker.archive import candidates, performed_of, plan
from broker.archive.candidates import About
from broker.archive.devices import Devices
from broker.archive.facts import Decided, Performed, Request, Seen, StudyFacts
from broker.archive.grades import GRADES
from broker.archive.situation import identity_of
from broker.config import Settings
from broker.model.images import Decision, Instance, Study, StudyOrder
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.model.site import Node
from broker.mpps.rules import FINAL, WRONG_ENTRY
from broker.mwl import identity

CLOCK_SAMPLES_MAX, CLOCK_SAMPLES_MIN = 20, 5
IDENTITY_TEXTS = {"patient_id", "issuer_of_patient_id", "patient_name"}


class Gathering:
    """One study's facts under way. new: instances to be decided; kept: those that a decision let in before."""

    def __init__(self, session: Session, study: Study, *, now: dt.datetime, settings: Settings) -> None:
        self.session, self.study, self.now, self.settings = session, study, now, settings
        self.devices = Devices(session.exec(select(Node)).all())
        self.about = About(session, study, self.devices, settings, now)
        everything = session.exec(
            select(Instance)
            .where(Instance.study_pk == study.key, col(Instance.state).in_(("STAGED", "HELD", "STORED", "HIDDEN")))
            .order_by(col(Instance.pk))
        ).all()
        self.kept = [one for one in everything if one.decision_pk is not None]
        self.new = [one for one in everything if one.decision_pk is None]
        self.decisions = {one.pk: one for one in session.exec(select(Decision).where(Decision.study_pk == study.key))}
        self.performed_rows = self._performed_rows()
        self._offsets: dict[str, dt.timedelta] = {}

    @cached_property
    def facts(self) -> StudyFacts:
        seen = self._seen(self.new)
        performed = [self._performed(one) for one in self.performed_rows]
        decided = self._decided()
        items, people = candidates.find(self.about, seen, performed, decided)
        return StudyFacts(
            study_uid=self.study.study_instance_uid,
            now=self.now,
            seen=tuple(seen),
            items=tuple(items),
            people=tuple(people),
            performed=tuple(performed),
            conflicts=tuple(sorted({one.facts["conflict"] for one in self.new if one.conflict_of is not None})),
            decided=decided,
            other_studies=candidates.other_studies(self.about, {item.procedure_pk for item in items}),
            listed=candidates.listed(self.about, {one.device for one in seen}),
            missing=self._missing(),
            append_hours=self.settings.reconcile.append_hours,
        )

    # objects

    def _seen(self, instances: Iterable[Instance]) -> list[Seen]:
        """Instances that say the same, together."""
        groups: dict[Seen, list[Instance]] = {}
        for instance in instances:
            groups.setdefault(self._describe(instance), []).append(instance)
        return [self._together(seen, members) for seen, members in groups.items()]

    def _describe(self, instance: Instance) -> Seen:
        said = instance.facts
        patient_issuer, accession_issuer = self.devices.issuers(instance.source_ae)
        whom = identity.named(
            self.session, said["patient_id"], said["issuer_of_patient_id"], self.settings.site, patient_issuer
        )
        accession_issuer = accession_issuer or self.settings.site.accession_issuer
        device = self._acquired_by(instance)
        return Seen(
            instances=(),
            patient_id=said["patient_id"],
            issuer=said["issuer_of_patient_id"],
            name=said["patient_name"],
            birth_date=said["birth_date"],
            sex=said["sex"],
            identity_is_text=not IDENTITY_TEXTS & set(said["undecodable"]),
            is_cut=bool(said.get("facts_cut")),
            patients=whom.patients,
            id_via=whom.via,
            accession_number=said["accession_number"],
            accession_issuer=said["accession_issuer"] or accession_issuer,
            issuer_given=bool(said["accession_issuer"]),
            requests=tuple(
                Request(
                    one["requested_procedure_id"], one["sps_id"], one["accession_number"],
                    one["accession_issuer"] or accession_issuer, bool(one["accession_issuer"]),
                )
                for one in said["request_attributes"]
            ),
            modality=said["modality"],
            sop_class_uid=instance.sop_class_uid,
            image_type=tuple(said["image_type"]),
            device=device,
            source_device=self.devices.of(instance.source_ae),
            source_kind=self.devices.kind(instance.source_ae),
            mobile=self.devices.is_mobile(device),
        )  # fmt: skip

    def _together(self, seen: Seen, members: Sequence[Instance]) -> Seen:
        offset = self._clock_offset(seen.device)
        times = sorted(
            at + offset for at in (acquired(one.facts, self.settings.site.timezone) for one in members) if at
        )
        return replace(
            seen,
            instances=tuple(one.key for one in members),
            acquired_first=times[0] if times else None,
            acquired_last=times[-1] if times else None,
            received_last=max(one.received_at for one in members),
        )

    def _acquired_by(self, instance: Instance) -> str:
        """The machine that made it: by Station Name, else by MPPS; what names neither was made by its sender."""
        if device := self.devices.at_station(instance.facts["station_name"]):
            return device
        named = set(instance.facts["performed_steps"])
        reports = [one for one in self.performed_rows if one.sop_instance_uid in named]
        stations = {self.devices.of(one.source_ae) for one in reports}
        return stations.pop() if len(stations) == 1 else self.devices.of(instance.source_ae)

    def _clock_offset(self, device: str) -> dt.timedelta:
        """How far behind the device's clock is: the median of its last N-CREATE times against receipt (D4)."""
        if device not in self._offsets:
            rows = self.session.exec(
                select(PerformedStep.created_at, PerformedStep.started_at)
                .where(col(PerformedStep.source_ae).in_(self.devices.titles(device)))
                .where(col(PerformedStep.started_at).is_not(None))
                .order_by(col(PerformedStep.pk).desc())
                .limit(CLOCK_SAMPLES_MAX)
            ).all()
            late = [(received - started).total_seconds() for received, started in rows if started]
            enough = len(late) >= CLOCK_SAMPLES_MIN
            self._offsets[device] = dt.timedelta(seconds=statistics.median(late) if enough else 0)
        return self._offsets[device]

    # what was done and decided

    def kept_in_error(self) -> list[Instance]:
        """What was let in, and then its MPPS was discontinued with 110514. What a person let in after that stays."""
        wrong = [one.updated_at for one in self.performed_rows if _is_wrong_entry(one)]
        return [
            one for one in self.kept
            if one.decision_pk and wrong and _is_before(self.decisions[one.decision_pk], max(wrong))
        ]  # fmt: skip

    def _performed_rows(self) -> Sequence[PerformedStep]:
        return self.session.exec(
            select(PerformedStep)
            .join(Study, performed_of.is_about())
            .where(Study.pk == self.study.pk)
            .order_by(col(PerformedStep.pk))
        ).all()

    def _performed(self, row: PerformedStep) -> Performed:
        patient_issuer, _ = self.devices.issuers(row.source_ae)
        whom = identity.named(self.session, row.patient_id, row.patient_id_issuer, self.settings.site, patient_issuer)
        steps = select(PerformedStepLink.step_pk).where(PerformedStepLink.performed_pk == row.pk)
        series = select(PerformedSeries.series_instance_uid).where(PerformedSeries.performed_pk == row.pk)
        return Performed(
            pk=row.key,
            status=row.status,
            steps=tuple(sorted(self.session.exec(steps))),
            series=tuple(sorted(self.session.exec(series))),
            patient_id=row.patient_id,
            patient=whom.patients[0] if len(whom.patients) == 1 else None,
            wrong_entry=_is_wrong_entry(row),
        )

    def _decided(self) -> Decided | None:
        if not self.kept:
            return None
        decisions = [self.decisions[pk] for pk in sorted({one.decision_pk for one in self.kept if one.decision_pk})]
        persons = {one.pk for one in decisions if one.by != plan.RULES}
        grades = [str(one.facts.get("grade", "")) for one in decisions if one.by == plan.RULES]
        remembered = [one for one in self.kept if one.decision_pk in persons] or self.kept
        seen = self._seen(self.kept)
        links = self.session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == self.study.key)).all()
        return Decided(
            at=decisions[0].at,
            by_person=bool(persons),
            outcome=decisions[-1].outcome,
            grade=max(filter(None, grades), key=GRADES.index, default=""),
            patient_pk=identity.survivor(self.session, self.study.patient_pk).key if self.study.patient_pk else None,
            orders=tuple(sorted(set(links))),
            identities=tuple(dict.fromkeys(identity_of(one) for one in self._seen(remembered))),
            devices=tuple(sorted({one.device for one in seen})),
            modalities=tuple(sorted({one.modality for one in seen})),
            acquired_last=max((one.acquired_last for one in seen if one.acquired_last), default=None),
        )

    def _missing(self) -> int:
        """Instances that final MPPS name, and that nobody sent."""
        final = [one.key for one in self.performed_rows if one.status in FINAL]
        named = select(PerformedSeries.instance_uids).where(col(PerformedSeries.performed_pk).in_(final))
        announced = {uid for uids in self.session.exec(named) for uid in uids}
        return len(announced - {one.sop_instance_uid for one in (*self.new, *self.kept)})


def _is_wrong_entry(row: PerformedStep) -> bool:
    return (row.discontinuation_code, row.discontinuation_scheme) == WRONG_ENTRY


def _is_before(decision: Decision, at: dt.datetime) -> bool:
    """Nobody could know it then: a rule never lets in what it knows."""
    return decision.by == plan.RULES or decision.at <= at


def acquired(said: dict[str, Any], zone: str) -> dt.datetime | None:
    """When an object was acquired, by the first of its times that is one: in its own zone, else the site's."""
    here = _offset(said["timezone"]) or ZoneInfo(zone)
    whole = said["acquisition_datetime"]
    moments = [(whole[:8], whole[8:].split("+")[0].split("-")[0])]
    moments += [(said[f"{what}_date"], said[f"{what}_time"]) for what in ("acquisition", "content", "series", "study")]
    for date, time in moments:
        if date and time and (at := clock.aware(date.replace(".", ""), time.replace(":", ""), zone)):
            return at.astimezone(ZoneInfo(zone)).replace(tzinfo=here).astimezone(dt.UTC)
    return None


def _offset(text: str) -> dt.timezone | None:
    """Timezone Offset From UTC (0008,0201), `+0900`."""
    if len(text) != 5 or text[0] not in "+-" or not text[1:].isdecimal():
        return None
    minutes = int(text[1:3]) * 60 + int(text[3:])
    return dt.timezone(dt.timedelta(minutes=minutes if text[0] == "+" else -minutes)) if minutes < 15 * 60 else None
