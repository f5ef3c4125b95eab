"""What the service tests share."""

import pytest

from broker import db
from broker.archive import status
from tests.service.exam import Exams


@pytest.fixture
def exams(database, settings, monkeypatch) -> Exams:
    status.configure(settings)
    monkeypatch.setattr(db, "_finishers", [status.publish])
    return Exams(settings)
