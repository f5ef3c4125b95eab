"""kill -9 at random moments of a storm of orders, performed steps and images, on both databases (durability.md A2)."""

import json
import random

import pytest
from sqlmodel import select

from broker import clock, config, db, site
from broker.archive.recovery import recover
from broker.archive.staging import Staging
from broker.model.status import OrderStatus
from tests.crash import ledger
from tests.crash.storm import SCANNERS, Storm
from tests.house import eventually

SETTLE_SECONDS_MAX = 120


@pytest.mark.timeout(0)
def test_whatever_was_acknowledged_in_a_storm_of_kills_is_there_once_and_byte_identical(
    premises, database, database_url, tmp_path, request
):
    """STO-16. --kills: of both databases together; --seed: of the moments of the kills."""
    kills = max(1, request.config.getoption("--kills") // 2)
    seed = request.config.getoption("--seed") or random.randrange(2**32)
    for ae_title in SCANNERS:
        db.run(site.add_node, ae_title, host="127.0.0.1", port=11999, modality="CT", actor="test", now=clock.now())
    storm = Storm(database_url, tmp_path, seed)
    storm.start()
    storm.open()
    while storm.kills < kills and not storm.errors:
        storm.kill()
        storm.start()
    storm.wait_until_ready()
    storm.calm()
    ended = {exam.order.accession: "HELD" if exam.wrong else "AVAILABLE" for exam in storm.exams if exam.finished}
    eventually(lambda: not set(ended.items()) - states(), SETTLE_SECONDS_MAX)
    storm.stop()
    settings = config.Settings(data_dir=tmp_path / "data", database_url=database_url)
    assert set(recover(settings, Staging(settings)).counts().values()) == {0}, "every start had put things right"
    found = ledger.check(settings, storm.exams)
    kind = "SQLite" if db.is_sqlite() else "PostgreSQL"
    print(f"\n{kind}: {storm.kills} kills, seed {seed}; acknowledged and found: "
          + ", ".join(f"{number} {what}" for what, number in found.items()))  # fmt: skip
    assert found["held"] or kills < 20, "the storm brought no wrong patient"


def states() -> set[tuple[str, str]]:
    """(accession number, state) of every order."""
    documents = db.read(lambda session: session.exec(select(OrderStatus.document)).all())
    return {(one["accession_number"], one["state"]) for one in map(json.loads, documents)}
