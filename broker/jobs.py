"""The periodic jobs. Each pass claims its rows by state and lease, so any number of processes may run them."""

from collections.abc import Callable

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from broker import db, log
from broker.archive import commit, gate, performed_by_images
from broker.config import Settings
from broker.mwl import expiry, history
from broker.ris_bridge import folders, journal, polling, upstream


def passes(settings: Settings) -> dict[str, Callable[[], object]]:
    """Name -> one pass over what is due."""
    return {
        "settle and decide": lambda: gate.work(settings),
        "commit": lambda: commit.work(settings),
        "exams without MPPS": lambda: performed_by_images.work(settings),
        "expiry": lambda: expiry.work(settings),
        "forget queries": lambda: history.work(settings),
        "folders": lambda: folders.work(settings),
        "polling": lambda: polling.work(settings),
        "upstream": lambda: upstream.work(settings),
        "journal": lambda: journal.work(settings),
    }


class Jobs:
    """APScheduler with its memory store: a shared job store unpickles what is in it (security V1)."""

    def __init__(self, settings: Settings) -> None:
        jobs = passes(settings)
        self._scheduler = BackgroundScheduler(
            executors={"default": ThreadPoolExecutor(len(jobs))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            timezone="UTC",
        )
        for name, work in jobs.items():
            self._scheduler.add_job(
                _guarded, "interval", args=[name, work], seconds=settings.limits.job_seconds_between, id=name
            )

    def start(self) -> None:
        self._scheduler.start()

    def stop(self) -> None:
        self._scheduler.shutdown(wait=True)


def _guarded(name: str, work: Callable[[], object]) -> None:
    """One failed pass is logged and tried again at the next turn."""
    try:
        with db.unhurried():
            work()
    except Exception as error:
        if db.is_away(error):
            log.get().warning("job.database", job=name, kind=type(error).__name__)
        else:
            log.get().exception("job.failed", job=name)
