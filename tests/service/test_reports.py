"""A report closes its order, in whatever order its versions come; every version is kept."""

import dataclasses
import datetime as dt
import itertools

import pytest

from broker import clock, db
from broker.archive import status
from broker.config import Limits
from broker.errors import DuplicateKey, InvalidValue, UnknownKey
from broker.model.orders import ImagingOrder, Report
from broker.model.work import AuditEvent
from broker.mwl import reports
from broker.mwl.commands import OrderCommand, ReportCommand
from tests.service.test_order_control import SATO, YAMADA, carry_out, command, minute, retire, rows

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _published(database):
    db.on_finish(status.publish)
    carry_out(command(), command(accession="ACC2"), command(accession="ACC3", patient=SATO))


def report(code: str = "final", at: int = 1, *, accession: str = "ACC1", **changes) -> ReportCommand:
    order = OrderCommand("note", accession, "RIS", patient=YAMADA)
    made = ReportCommand(order, code, "R1", "RIS", "CT", f"{code} {at}", issued_at=minute(at), at=minute(at))
    return dataclasses.replace(made, **changes)


def apply(*commands: ReportCommand, **more) -> Report:
    for one in commands:
        row = db.run(reports.apply, one, now=clock.now(), actor="test", **more)
    return row


def versions() -> list[tuple[str, bool]]:
    return [(row.text, row.superseded) for row in rows(Report)]


def is_reported(order: int = 0) -> bool:
    return rows(ImagingOrder)[order].reported_at is not None


def test_a_final_report_is_kept_with_its_order_and_closes_it():
    row = apply(report(document=b"%PDF-1.7"), message_pk=None)
    assert (row.order_pk, row.status, row.document, row.superseded) == (1, "final", b"%PDF-1.7", False)
    assert is_reported() and not is_reported(1)
    assert [event.action for event in rows(AuditEvent)][-1] == "order.report"


@pytest.mark.parametrize(
    ("code", "closes"), [("preliminary", False), ("final", True), ("amended", True), ("cancelled", False)]
)
def test_what_closes_an_order(code, closes):
    apply(report(code))
    assert is_reported() == closes


def test_a_later_version_replaces_the_one_before_and_both_are_kept():
    apply(report("preliminary", 1), report("final", 2), report("amended", 3))
    assert versions() == [("preliminary 1", True), ("final 2", True), ("amended 3", False)]


def test_an_older_version_that_comes_late_replaces_nothing():
    apply(report("amended", 3), report("final", 2), report("cancelled", 1))
    assert versions() == [("amended 3", False), ("final 2", True), ("cancelled 1", True)]
    assert is_reported()


def test_a_cancelled_report_opens_the_order_again_unless_another_is_left():
    apply(report(), report("cancelled", 2))
    assert not is_reported()
    apply(report(number="R2"), report(number="R3"), report("cancelled", 2, number="R3"))
    assert is_reported()


def test_a_preliminary_version_of_a_final_report_does_not_open_the_order_again():
    apply(report("final", 1), report("preliminary", 2))
    assert is_reported()
    assert versions() == [("final 1", True), ("preliminary 2", False)]


def test_the_versions_end_alike_in_whatever_order_they_come():
    life = [report("preliminary", 1), report("final", 2), report("cancelled", 3), report("final", 4)]
    for n, order in enumerate(itertools.permutations(life)):
        apply(*(dataclasses.replace(one, number=f"N{n}") for one in (*order, *order[:2])))
    ends = {(row.text, row.superseded) for row in rows(Report)}
    assert ends == {("preliminary 1", True), ("final 2", True), ("cancelled 3", True), ("final 4", False)}
    assert len(rows(Report)) == 4 * 24
    assert is_reported()


def test_the_same_report_again_changes_nothing():
    apply(report(), report())
    assert len(rows(Report)) == 1
    timeless = dataclasses.replace(report(number="R2"), issued_at=None, at=None)
    assert apply(timeless).key == apply(timeless).key


def test_a_report_from_far_in_the_future_is_one_of_now_and_the_same_again():
    """A wrong year does not win for ever."""
    wrong = dataclasses.replace(report(), issued_at=clock.now() + dt.timedelta(days=400), at=None)
    assert apply(wrong).key == apply(wrong).key
    (row,) = rows(Report)
    assert row.issued_at <= clock.now()
    apply(dataclasses.replace(report("amended"), issued_at=clock.now() + dt.timedelta(hours=1)))
    assert [row.superseded for row in rows(Report)] == [True, False]


def test_where_only_the_time_of_issue_is_wrong_that_of_the_message_counts():
    apply(dataclasses.replace(report(), issued_at=clock.now() + dt.timedelta(days=400), at=minute(7)))
    assert [row.issued_at for row in rows(Report)] == [minute(7)]


def test_reports_of_one_number_by_two_issuers_are_two():
    apply(report(), report("cancelled", 2, issuer="OTHER"))
    assert versions() == [("final 1", False), ("cancelled 2", False)]
    assert is_reported()


def test_reports_without_a_number_are_versions_of_their_orders_one_report():
    apply(report(number=""), report(accession="ACC2", number=""), report("cancelled", 2, number=""))
    assert (is_reported(0), is_reported(1)) == (False, True)


def test_a_report_that_is_another_orders_or_another_patients_is_refused():
    apply(report())
    for one in (report(accession="ACC2"), report(accession="ACC3", number="R2")):
        with pytest.raises(DuplicateKey) as refused:
            apply(one)
        assert refused.value.err == "205"
    assert len(rows(Report)) == 1
    assert [is_reported(n) for n in range(3)] == [True, False, False]


def test_a_report_on_an_order_never_heard_of_is_unknown():
    with pytest.raises(UnknownKey) as refused:
        apply(report(accession="ACC9", place="OBR^1^3"))
    assert (refused.value.err, refused.value.place) == ("204", "OBR^1^3")


def test_a_document_over_the_limit_is_refused_and_the_limit_is_named():
    limits = Limits(report_document_bytes_max=10)
    apply(report(document=b"1234567890"), limits=limits)
    with pytest.raises(InvalidValue, match="report_document_bytes_max") as refused:
        apply(report(at=2, document=b"12345678901", place="OBX^1^5"), limits=limits)
    assert refused.value.place == "OBX^1^5"
    assert len(rows(Report)) == 1


def test_a_report_under_a_retired_number_of_another_person_is_nobody_s():
    carry_out(command())
    stranger = retire("9")
    with pytest.raises(DuplicateKey):
        apply(report(order=OrderCommand("note", "ACC1", "RIS", patient=stranger)))
    assert (rows(Report), is_reported()) == ([], False)
