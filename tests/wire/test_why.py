"""Why an exam is not on a device's list, and the list as it was: what a device asked over the wire, and what is told."""

import datetime as dt
import json
from typing import Any

import pytest
from pynetdicom.sop_class import ModalityWorklistInformationFind
from sqlmodel import Session, delete

from broker import access, clock, db, site
from broker.model.orders import ScheduledStep
from broker.model.worklist import WorklistAnswer, WorklistQuery
from broker.mwl.history import RUNS_MAX
from broker.mwl.offered import Recorder
from broker.sim.modality import Refused
from broker.sim.ris import Patient, omi
from tests.house import House
from tests.wire.test_cli import broker_command  # noqa: F401  a fixture
from tests.wire.test_http import get
from tests.wire.test_orders_http import ask
from tests.wire.test_orders_http import order as body_of_order
from tests.wire.test_worklist import find, negotiating, query
from tests.wire.test_worklist_characters import place
from tests.world import SATO, TOKYO, YAMADA, order, today

WHY, AT = "/api/v1/worklist/why", "/api/v1/worklist/at"


def told(broker: House, accession: str = "ACC001", ae: str = "CT1", **more: str) -> list[dict[str, Any]]:
    """The causes of each item."""
    flush(broker)
    answer = get(broker, WHY, "qc", params={"accession_number": accession, "ae": ae, **more})
    assert answer.status_code == 200, answer.text
    return [item["causes"] for item in answer.json()["items"]]


def first(broker: House, accession: str = "ACC001", ae: str = "CT1", **more: str) -> dict[str, Any]:
    """The first cause of the only item."""
    (causes,) = told(broker, accession, ae, **more)
    return causes[0]


def codes(broker: House, accession: str = "ACC001", ae: str = "CT1") -> list[str]:
    (causes,) = told(broker, accession, ae)
    return [one["code"] for one in causes]


def flush(broker: House) -> None:
    for recorder in broker._parts[Recorder]:
        recorder.flush(repeats=True)


def change(broker: House, ae_title: str = "CT1", **fields: Any) -> None:
    db.run(site.change_node, ae_title, actor="test", now=clock.now(), **fields)
    access.forget()


def was_at(broker: House, at: dt.datetime | str, ae: str = "CT1") -> dict[str, Any]:
    flush(broker)
    answer = get(broker, AT, "ris", params={"ae": ae, "time": at if isinstance(at, str) else at.isoformat()})
    assert answer.status_code == 200, answer.text
    return answer.json()


def forget_queries(session: Session) -> None:
    session.exec(delete(WorklistQuery))


# The order


def test_an_order_that_nobody_sent_is_told_as_such_and_the_same_number_of_another_issuer_is_named(broker):
    assert first(broker)["code"] == "no_order"
    broker.place(order("ACC001"))
    assert told(broker, issuer="HIS")[0][0]["code"] == "other_issuer"
    assert "--issuer RIS" in first(broker, issuer="HIS")["mend"]
    assert first(broker, issuer="RIS")["code"] == "never_asked"
    assert first(broker, "PACC001")["code"] == "other_number", "its placer number"


def test_a_refused_message_that_carries_the_number_comes_first(broker):
    broker.ris().send(omi(order("ACC001")).replace(b"|CT|", b"|C^T|").replace(b"TQ1|1||||||", b"TQ1|1||||||20259999"))
    (causes,) = told(broker)
    assert [one["code"] for one in causes] == ["message_refused", "no_order"]
    assert causes[0]["evidence"]["message_id"] == 1
    assert "broker message replay 1" in causes[0]["mend"]


def test_a_cancelled_order_is_told_with_when_by_whom_and_how_it_comes_back(broker):
    broker.place(order("ACC001"))
    broker.place(order("ACC001"), "CA")
    assert broker.modality("CT1").worklist() == []
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["event"], cause["in_the_way"]) == ("cancelled", "cancel", True)
    assert cause["evidence"]["by"] == "hl7:HIS|HOSP"
    assert cause["mend"] == "broker order reinstate 1 --step S1ACC001 --reason …"


def test_each_step_of_an_order_has_its_own_reason(broker):
    broker.place(order("ACC001", steps=2))
    ask(broker, "POST", "/1/cancel", {})
    ask(broker, "POST", "/1/reinstate", {"reason": "only this one", "sps_id": "S2ACC001"})
    broker.modality("CT1").worklist()
    found = [causes[0]["code"] for causes in told(broker)]
    states = [step.status for step in broker.rows(ScheduledStep)]
    assert (found, states) == (["cancelled", "on_the_list"], ["CANCELED", "SCHEDULED"])
    assert first(broker, sps_id="S2ACC001")["code"] == "on_the_list"
    assert first(broker, sps_id="S9")["code"] == "no_step"


def test_a_hold_is_told_with_its_release(broker):
    broker.place(order("ACC001"))
    ask(broker, "POST", "/1/hold", {"reason": "contrast"})
    cause = first(broker)
    assert (cause["code"], "release" in cause["mend"]) == ("on_hold", True)
    assert "contrast" not in str(cause), "what a person typed may name somebody"


def test_an_exam_that_another_scanner_has_started_is_hidden_by_a_rule_that_is_named(broker):
    broker.place(order("ACC001"))
    other = broker.modality("CT2")
    other.start(other.worklist(ScheduledStationAETitle=""))
    assert broker.modality("CT1").worklist() == []
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["by"]) == ("started", "CT2")
    assert "worklist.hide" in cause["says"]
    mend = cause["mend"].split("--hide ")[1].split()[0]
    change(broker, hide=mend.split(","))
    assert len(broker.modality("CT1").worklist()) == 1, "what is said to mend it does"
    assert codes(broker)[0] == "on_the_list"


# For whom it is


def test_the_funnel_of_the_last_query_shows_which_key_took_everything_away_and_the_alias_mends_it(broker):
    for n in range(3):
        broker.place(order(f"ACC00{n}"))
    assert broker.modality("CT1").worklist(ScheduledStationAETitle="CT_1", Modality="CT") == []
    cause = first(broker)
    assert cause["code"] == "asks_for_unknown_station"
    assert "our orders say CT1" in cause["says"]
    assert cause["evidence"]["funnel"].startswith("3 waiting -> ")
    assert cause["evidence"]["funnel"].endswith("0 after ScheduledStationAETitle = CT_1")
    assert cause["mend"] == "broker node change CT1 --aliases CT_1"
    change(broker, aliases=["CT_1"])
    assert len(broker.modality("CT1").worklist(ScheduledStationAETitle="CT_1", Modality="CT")) == 3
    assert codes(broker)[0] == "on_the_list"


def test_an_ae_title_in_the_order_that_nobody_knows_is_named(broker):
    broker.place(order("ACC001", station="CT_1"))
    assert broker.modality("CT1").worklist() == []
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["key"]) == ("unknown_station", "ScheduledStationAETitle")
    assert cause["mend"] == "if it means CT1: broker node change CT1 --aliases CT_1"


def test_an_exam_of_another_device_is_told_as_such_by_title_alias_and_group(broker):
    change(broker, "CT2", aliases=["CT_B"], groups=["POOL"])
    for n, station in enumerate(("CT2", "CT_B", "POOL")):
        broker.place(order(f"ACC00{n}", station=station))
    assert broker.modality("CT1").worklist() == []
    causes = [first(broker, f"ACC00{n}") for n in range(3)]
    assert [one["code"] for one in causes] == ["other_device"] * 3
    assert "broker node change CT1 --groups POOL" in causes[2]["mend"]
    assert codes(broker, "ACC001", "CT_B") == ["never_asked"], "asked for by an alias, it is the device that is meant"


def test_what_a_device_may_see_is_told_by_the_rule_that_hides_it(broker):
    broker.place(order("ACC001", station="MR1", modality="MR"))
    broker.modality("CT1").worklist(ScheduledStationAETitle="")
    for fields, code in (
        ({"sees": ["own"]}, "other_device"),
        ({"sees": ["modality"]}, "modality"),
        ({"sees": ["own", "location:X"]}, "not_of_this_device"),
        ({"sees": None, "labels": ["ER"]}, "label"),
        ({"labels": None, "hide": ["SCHEDULED", "COMPLETED", "DISCONTINUED"]}, "hidden"),
    ):
        change(broker, **fields)
        assert first(broker)["code"] == code, fields
    change(broker, hide=None)
    assert first(broker)["code"] == "on_the_list"


def test_an_exam_outside_the_days_of_a_device_is_told_with_its_today(broker):
    broker.place(order("ACC001", start=today() + dt.timedelta(days=3)))
    change(broker, days_after=1)
    assert broker.modality("CT1").worklist() == []
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["today"]) == ("date_window", f"{today():%Y%m%d}")


def test_a_label_that_no_list_of_labels_can_name_is_mended_at_the_step(broker):
    broker.place(order("ACC001"))

    def mend(label: str, *labels: str) -> str:
        db.run(lambda session: setattr(session.get_one(ScheduledStep, 1), "label", label))
        change(broker, labels=list(labels))
        cause = first(broker)
        assert cause["code"] == "label"
        return cause["mend"]

    assert mend("SOUTH", "NORTH").startswith("broker node change CT1 --labels NORTH,SOUTH, or POST /api/v1/worklist/1/")
    assert mend("SOUTH", "", "NORTH").startswith("label it with one of NORTH, or POST /api/v1/worklist/1/label")
    assert mend("A,B", "NORTH").startswith("label it with one of NORTH, or POST")
    assert mend("SOUTH", "").startswith("take its label away, or POST")


# What it asked


def test_the_key_that_removes_it_is_named_without_its_value_where_that_names_a_patient(broker):
    broker.place(order("ACC001"))
    scanner = broker.modality("CT1")
    for step, keys, code in (
        ({"Modality": "MR"}, {}, "modality"),
        ({"ScheduledProcedureStepStartDate": f"{today() + dt.timedelta(days=1):%Y%m%d}"}, {}, "date"),
        ({"ScheduledProcedureStepStartTime": "0000-0001" if today().hour else "2300-"}, {}, "time"),
        ({}, {"PatientID": SATO.id}, "key"), ({}, {"PatientName": "SATO*"}, "key"),
    ):  # fmt: skip
        db.run(forget_queries)
        asked = query({"ScheduledStationAETitle": "CT1", **step}, **{"PatientName": "", **keys})
        assert scanner.worklist(asked) == []
        cause = first(broker)
        assert cause["code"] == code
        assert SATO.id not in str(cause)
        assert "SATO" not in str(cause)


def test_one_of_several_questions_that_finds_it_is_enough(broker):
    broker.place(order("ACC001"))
    scanner = broker.modality("CT1")
    scanner.worklist()
    scanner.worklist(query({"ScheduledStationAETitle": ""}, PatientID=SATO.id))
    assert codes(broker) == ["on_the_list", "shown"]


def test_searches_for_patients_are_no_question_for_the_list(broker):
    broker.place(order("ACC001"))
    change(broker, sees=["own"])
    scanner = broker.modality("CT1")
    scanner.worklist()
    for n in range(RUNS_MAX + 2):
        scanner.worklist(query({"ScheduledStationAETitle": "CT1"}, PatientID=f"X{n}"))
    assert codes(broker) == ["on_the_list", "shown"], "however many came since"
    db.run(forget_queries)
    flush(broker)
    for n in range(3):
        scanner.worklist(query({"ScheduledStationAETitle": "CT1"}, PatientID=f"Y{n}"))
    causes = told(broker)[0]
    assert [(one["code"], one["evidence"]["times"]) for one in causes] == [("key", 3), ("shown", 1)]
    assert "searched 3 times for one patient or one number (PatientID)" in causes[0]["says"]
    assert "Y0" not in str(causes)


def test_what_is_said_to_mend_a_device_that_asks_for_today_does(broker):
    broker.place(order("ACC001", start=today() + dt.timedelta(days=5)))
    asked = query({"ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartDate": f"{today():%Y%m%d}"})
    assert broker.modality("CT1").worklist(asked) == []
    mend = first(broker)["mend"]
    assert mend.startswith(
        "broker node change CT1 --quirks today_is_window --days-before 1 --days-after 5 (as the profile asks-for-today)"
    )
    change(broker, quirks=["today_is_window"], days_before=1, days_after=5)
    assert len(broker.modality("CT1").worklist(asked)) == 1
    assert codes(broker)[0] == "on_the_list"
    change(broker, days_after=1)
    cause = first(broker)
    assert (cause["code"], cause["mend"].split(",")[0]) == ("date_window", "broker node change CT1 --days-after 5")


def test_a_day_in_the_zone_of_the_query_is_another_day_here(broker):
    broker.place(order("ACC001", start=dt.datetime(2035, 7, 6, 3, tzinfo=TOKYO)))
    connection = negotiating(broker, b"\x01\x01\x00\x01")
    asked = query({"ScheduledProcedureStepStartDate": "20350706"}, TimezoneOffsetFromUTC="-0500")
    list(connection.send_c_find(asked, ModalityWorklistInformationFind))
    connection.release()
    cause = first(broker)
    assert (cause["code"], "-0500" in cause["says"]) == ("time_zone", True)


def test_a_query_that_finds_too_many_is_told_with_the_limit(broker):
    for n in range(3):
        broker.place(order(f"ACC00{n}"))
    change(broker, matches_max=2)
    with pytest.raises(Refused):
        broker.modality("CT1").worklist()
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["matches_max"]) == ("too_many", 2)
    change(broker, matches_max=3)
    broker.modality("CT1").worklist()
    assert codes(broker)[0] == "on_the_list"


def test_a_query_that_was_refused_is_told_with_its_status(broker):
    broker.place(order("ACC001"))
    asked = query({"ScheduledStationAETitle": "CT1"}, QueryRetrieveLevel="STUDY")
    assert find(broker, asked)[0] == [0xA900]
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["status"]) == ("query_refused", "A900")
    assert "(0008,0052)" in cause["mend"]
    assert "broker node suggest CT1" in cause["mend"]


def test_a_query_that_is_refused_after_one_that_had_the_exam_is_told_with_the_key_at_fault(broker):
    broker.place(order("ACC001"))
    assert len(broker.modality("CT1").worklist()) == 1
    assert find(broker, query({"ScheduledProcedureStepStartDate": "20261399"}))[0] == [0xA900]
    causes = told(broker)[0]
    assert [(one["code"], one["in_the_way"]) for one in causes] == [
        ("on_the_list", False), ("query_refused", False), ("shown", False),
    ]  # fmt: skip
    assert causes[1]["mend"] == "its key (0040,0002) is no date or range of dates: have the device ask otherwise"


# Who asked


def test_a_device_that_never_asked_and_one_that_has_not_asked_since(broker):
    broker.place(order("ACC001"))
    assert first(broker)["code"] == "never_asked"
    broker.modality("CT1").worklist()
    broker.place(order("ACC002", SATO))
    assert first(broker, "ACC002")["code"] == "not_asked_since"
    assert codes(broker) == ["on_the_list", "shown"]


def test_who_is_unknown_may_not_or_comes_from_elsewhere_is_told_what_the_door_said(broker):
    broker.place(order("ACC001"))
    with pytest.raises(Refused):
        broker.modality("CT9").worklist()
    cause = first(broker, ae="CT9")
    assert (cause["code"], cause["evidence"]["refusals"][0]["times"]) == ("unknown_device", 1)
    assert cause["mend"] == "broker node add CT9 --host 127.0.0.1 --port 104"
    change(broker, host="10.9.8.7")
    with pytest.raises(Refused):
        broker.modality("CT1").worklist()
    cause = first(broker)
    assert (cause["code"], cause["evidence"]["host"]) == ("refused_at_the_door", "10.9.8.7")
    assert "broker node change CT1 --host 127.0.0.1" in cause["mend"]
    change(broker, host="127.0.0.1")
    assert first(broker)["code"] == "never_asked", "mended since"
    scanner = broker.modality("CT1")
    scanner.called = "OTHER"
    with pytest.raises(Refused):
        scanner.worklist()
    assert first(broker)["code"] == "refused_at_the_door"
    broker.modality("CT1").worklist()
    assert first(broker)["code"] == "on_the_list", "it came in since"
    change(broker, rights=["store"])
    with pytest.raises(Refused):
        broker.modality("CT1").worklist()
    assert first(broker)["code"] == "no_right"


# How it looks


def test_characters_that_keep_it_from_a_device_and_what_a_device_drops_or_shortens(broker):
    broker.place(order("ACC001", Patient("1", "山田^太郎", "", "19700101", "M")))
    change(broker, character_set="ASCII")
    assert broker.modality("CT1").worklist() == []
    cause = first(broker)
    assert (cause["code"], "romaji" in cause["mend"]) == ("characters", True)
    change(broker, character_set="", requires=["RequestedProcedureComments"])
    broker.modality("CT1").worklist()
    assert codes(broker)[0] == "device_drops"
    change(broker, requires=None, lengths={"RequestedProcedureDescription": 2})
    broker.modality("CT1").worklist()
    assert codes(broker) == ["on_the_list", "shown", "shown_cut"]


# What it was shown


def test_it_is_told_when_it_was_shown_in_which_version_and_when_not_any_more(broker):
    broker.place(order("ACC001"))
    scanner = broker.modality("CT1")
    scanner.worklist()
    scanner.worklist()
    causes = told(broker)[0]
    assert [one["code"] for one in causes] == ["on_the_list", "shown"]
    assert (causes[1]["evidence"]["times"], causes[1]["evidence"]["version_shown"]) == (2, 1)
    broker.place(order("ACC001", start=today() + dt.timedelta(minutes=1)), "XO")
    causes = told(broker)[0]
    assert [one["code"] for one in causes] == ["nothing_in_the_way", "shown_older"]
    assert causes[1]["evidence"]["version"] == 2
    broker.place(order("ACC001"), "CA")
    scanner.worklist()
    assert codes(broker) == ["cancelled", "shown_and_withdrawn"]


def test_a_question_that_a_device_repeats_is_not_crowded_out_by_searches_that_came_later(broker):
    broker.place(order("ACC001"))
    scanner = broker.modality("CT1")
    scanner.worklist()
    for n in range(RUNS_MAX + 2):
        scanner.worklist(query({"ScheduledStationAETitle": "CT1"}, PatientID=f"X{n}"))
    between = clock.now()
    scanner.worklist()
    for at in (between, clock.now()):
        found = was_at(broker, at)
        assert [one["count"] for one in found["queries"]].count(1) == 1, "asked before them, and again after them"


def test_the_list_of_a_time_is_what_the_device_was_shown_then(broker):
    before = clock.now()
    broker.place(order("ACC001"))
    scanner = broker.modality("CT1")
    scanner.worklist()
    scanner.worklist(query({"Modality": "MR"}))
    between = clock.now()
    broker.place(order("ACC001", start=today() + dt.timedelta(minutes=1)), "XO")
    broker.place(order("ACC002", SATO))
    scanner.worklist()
    then, now = was_at(broker, between), was_at(broker, clock.now())
    assert [query["count"] for query in then["queries"]] == [0, 1], "the newest question first"
    (item,) = then["queries"][1]["items"]
    assert (item["version"], item["accession_number"], item["shown"]["Patient ID"]) == (1, "ACC001", YAMADA.id)
    assert item["shown"]["Patient's Name"].endswith("山田^太郎=ヤマダ^タロウ")
    assert [one["version"] for one in now["queries"][0]["items"]] == [1, 2]
    recorded = {row.pk: row.items for row in broker.rows(WorklistAnswer)}
    of = {row.pk: row.answer_pk for row in broker.rows(WorklistQuery)}
    for asked in (*then["queries"], *now["queries"]):
        shown = [[one["step_id"], one["version"], one["state"]] for one in asked["items"]]
        assert shown == recorded[of[asked["query_id"]]]
    nothing = was_at(broker, before)
    assert (nothing["queries"], "had asked nothing until then" in nothing["says"]) == ([], True)
    assert "does not reach back" in was_at(broker, clock.now() - dt.timedelta(days=31))["says"]


def test_the_list_of_a_time_is_in_the_characters_of_that_time(broker):
    db.run(place, broker.settings, "CT1", "ACC001", "TAKAHASHI^ICHIRO=髙橋^一郎", "CT")
    broker.modality("CT1").worklist()
    then = clock.now()
    change(broker, character_set="ISO_IR 192")
    broker.modality("CT1").worklist()
    names = [
        was_at(broker, at)["queries"][0]["items"][0]["shown"]["Patient's Name"].split("=")[1]
        for at in (then, clock.now())
    ]
    assert names == ["高橋^一郎", "髙橋^一郎"]


@pytest.mark.parametrize(
    ("path", "said", "status", "place"),
    [
        (WHY, "ae=CT1", 422, "accession_number"), (WHY, "accession_number=A", 422, "ae"),
        (WHY, "accession_number=A&ae=CT1&colour=red", 422, "colour"), (WHY, "accession_number=A&ae=", 422, "ae"),
        (WHY, "accession_number=A&ae=あ", 422, "ae"), (WHY, "accession_number=%20&ae=CT1", 422, "accession_number"),
        (AT, "ae=あ&time=2020-01-01", 422, "ae"),
        (WHY, "accession_number=A&accession_number=B&ae=CT1", 422, "accession_number"),
        (AT, "ae=CT1&time=noon", 422, "time"), (AT, "ae=CT1&time=2999-01-01", 422, "time"),
        (AT, "time=09:42", 422, "ae"), (AT, "ae=POOL&time=2020-01-01", 422, "ae"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_meant_is_refused(broker, path, said, status, place):
    for title in ("CT1", "CT2"):
        change(broker, title, groups=["POOL"])
    answer = get(broker, f"{path}?{said}", "ris")
    assert (answer.status_code, answer.json()["place"]) == (status, place), answer.text
    assert get(broker, f"{path}?{said}", "ehr").status_code == 403


def test_the_command_line_tells_the_first_thing_in_the_way_and_the_list_as_it_was(broker_command, tmp_path):  # noqa: F811
    broker_command("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104")
    said = ("worklist", "why", "--accession", "ACC001", "--ae", "CT1")
    assert "! there is no order with accession number ACC001  [no_order]" in broker_command(*said)
    (tmp_path / "order.json").write_text(json.dumps(body_of_order()))
    broker_command("order", "place", "order.json")
    text = broker_command(*said)
    assert text.startswith("order 1, step ")
    assert "[never_asked]\n      refresh the list on the device" in text
    found = json.loads(broker_command(*said, "--issuer", "RIS", "--json"))
    assert [one["code"] for one in found["items"][0]["causes"]] == ["never_asked"]
    assert "--issuer" in broker_command(*said, "--issuer", "")
    assert "CT1 had asked nothing until then" in broker_command("worklist", "list", "--ae", "CT1", "--at", "00:00")
    assert json.loads(broker_command("worklist", "list", "--ae", "CT1", "--at", "00:00", "--json"))["queries"] == []
    assert "needs --ae" in broker_command("worklist", "list", "--at", "00:00", status=1)
    assert "must be a time" in broker_command("worklist", "list", "--ae", "CT1", "--at", "", status=1)
    assert "--at: lies ahead" in broker_command("worklist", "list", "--ae", "CT1", "--at", "2199-01-01", status=1)
    assert "no device, alias or group has this AE title" in broker_command(
        "worklist", "list", "--ae", "CT7", "--at", "00:00"
    )
    assert "goes without --at" in broker_command(
        "worklist", "list", "--ae", "CT1", "--as-shown", "--at", "00:00", status=1
    )
