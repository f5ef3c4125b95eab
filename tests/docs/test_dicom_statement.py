"""docs/conformance/dicom.md says what the program does, in the order of PS3.2: what changes in one must change in both."""

import ast
import datetime as dt
import re
import socket
import threading
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pydicom.config
import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_context, build_role
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    UserIdentityNegotiation,
)
from typer.main import get_command

from broker import access, cli, clock, config, errors
from broker.archive import changes, coerce
from broker.archive import scp as storage_scp
from broker.config import Limits, Settings, Site
from broker.dicom import (
    association,
    charset,
    dimse,
    find_client,
    habits,
    listener,
    negotiate,
    pdu,
    service,
    variants,
    verification,
)
from broker.dicom.storage_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES
from broker.errors import BrokerError
from broker.mpps import rules
from broker.mpps import scp as mpps_scp
from broker.mwl import answers, dataset, keys, learned, matching, snapshot, view
from broker.mwl import scp as mwl_scp
from broker.ris_bridge import upstream, upstream_item

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "docs" / "conformance" / "dicom.md"
STATEMENT = PATH.read_text("utf-8")
PROSE = " ".join(STATEMENT.split())
NONE = "–"
COMMANDS = {
    "C-ECHO": service.C_ECHO_RQ, "C-FIND": service.C_FIND_RQ, "C-CANCEL": service.C_CANCEL_RQ,
    "C-STORE": service.C_STORE_RQ, "N-CREATE": service.N_CREATE_RQ, "N-SET": service.N_SET_RQ,
    "N-GET": service.N_GET_RQ,
}  # fmt: skip
SETTINGS = {name: value for name, value, _ in config.show(Settings(), {})}


def rows(first: str) -> list[list[str]]:
    """Of the table whose first heading is that."""
    table = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", STATEMENT, re.M)
    assert table, first
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table[1].strip().split("\n")]


def bare(cell: str) -> str:
    return cell.strip("`")


def section(heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}.*?\n(.*?)(?=^#|\Z)", STATEMENT, re.M | re.S)
    assert found, heading
    return found[1]


def listed(heading: str) -> list[tuple[str, str]]:
    return re.findall(r"^- `([0-9.]+)` (.*)$", section(heading), re.M)


def tag_in(cell: str) -> int:
    return int(cell.strip("()").replace(",", ""), 16)


def words_of(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def registry() -> service.Registry:
    """As serve.py makes it."""
    made, settings = service.Registry(), Settings()
    unused: Any = None
    for sop_class, offer in (
        *verification.offers(), *mwl_scp.offers(settings, unused, unused), *mpps_scp.offers(settings),
    ):  # fmt: skip
        made.add(sop_class, offer)
    storage_scp.register(made, settings, unused)
    return made


# Structure


def test_its_chapters_are_those_of_ps3_2():
    assert re.findall(r"^## (\d) (\w+)", STATEMENT, re.M) == [
        ("1", "Conformance"), ("2", "Contents"), ("3", "Introduction"), ("4", "Networking"), ("5", "Media"),
        ("6", "Support"), ("7", "Security"), ("8", "Annexes"),
    ]  # fmt: skip
    assert re.findall(r"^### (4\.\d) ", STATEMENT, re.M) == ["4.1", "4.2", "4.3", "4.4"]
    assert re.findall(r"^#### (4\.2\.\d) ", STATEMENT, re.M) == ["4.2.1", "4.2.2", "4.2.3", "4.2.4"]


def anchors(text: str) -> set[str]:
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    }  # fmt: skip


def test_its_links_lead_to_files_and_headings():
    for target in re.findall(r"\]\(([^)]+)\)", STATEMENT):
        name, _, anchor = target.partition("#")
        path = (PATH.parent / name).resolve() if name else PATH
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), target


def test_its_commands_exist():
    for words in set(re.findall(r"`broker ([a-z ]+)", STATEMENT)):
        command = get_command(cli.app)
        for word in words.split():
            if hasattr(command, "commands"):
                assert word in command.commands, words
                command = command.commands[word]


# SOP classes, roles, syntaxes


def test_each_sop_class_has_the_operations_that_are_served():
    made = registry()
    documented = {row[1]: row for row in rows("SOP class")}
    storage = documented.pop("[8.1.3](#813-storage-sop-classes)")
    assert documented.keys() == made.offers.keys() - set(STORAGE_CLASSES)
    for uid, (name, _, _, operations) in documented.items():
        assert name == UID(uid).name.removesuffix(" SOP Class")
        assert {COMMANDS[one] for one in operations.split(", ")} == made.offers[uid].commands
    assert {COMMANDS[storage[3]]} == made.any_storage.commands
    assert storage[0] == f"all {len(STORAGE_CLASSES)} storage classes that the tables name, and any private one"


def test_each_storage_class_is_listed():
    assert sorted(listed("8.1.3 Storage SOP classes")) == sorted((uid, UID(uid).name) for uid in STORAGE_CLASSES)


def test_transfer_syntaxes_of_storage_are_listed_in_our_order():
    assert listed("4.2.4.5 Storage") == [(uid, UID(uid).name) for uid in TRANSFER_SYNTAXES]


def test_presentation_contexts_are_those_that_are_offered():
    made = registry()
    uids = {row[0]: row[1] for row in rows("SOP class")}
    for name, syntaxes, role, extended in rows("service"):
        offer = made.any_storage if name == "storage" else made.offers[uids[name]]
        expected = ", ".join(UID(one).name for one in offer.transfer_syntaxes)
        assert syntaxes == ("those of [4.2.4.5](#4245-storage)" if name == "storage" else expected)
        assert (role, extended != "none") == ("SCP", offer.extended is not None)
        assert not offer.requestor_may_be_scp
    assert {row[0] for row in rows("service")} == {name for name, uid in uids.items() if uid[0] == "1"} | {"storage"}
    named = re.search(r"Deflated ones \((.*?)\) are never accepted", PROSE)
    assert named
    assert set(re.findall(r"`([0-9.]+)`", named[1])) == negotiate.DEFLATED


def test_we_are_scu_of_what_is_asked_for_and_of_nothing_else():
    calls = [
        ast.unparse(node.args[1])
        for path in (ROOT / "broker").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "find_client.ask"
    ]
    asked = {getattr(upstream, name) for name in calls}
    assert asked == {row[1] for row in rows("SOP class") if row[2] == "C-FIND"}
    assert {row[2] for row in rows("SOP class")} == {"C-FIND", NONE}


# Associations


def request(*items: Any, bytes_max: int = 16384) -> bytes:
    """The body of an A-ASSOCIATE-RQ."""
    asked = A_ASSOCIATE()
    asked.application_context_name = UID(negotiate.APPLICATION_CONTEXT)
    asked.calling_ae_title, asked.called_ae_title = "CT1", "BROKER"
    context = build_context(mpps_scp.MPPS)
    context.context_id = 1
    asked.presentation_context_definition_list = [context]
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = bytes_max, UID("1.2.3")
    asked.user_information = [length, implementation, *items]
    made = A_ASSOCIATE_RQ()
    made.from_primitive(asked)
    encoded: bytes = made.encode()
    return encoded[6:]


def told(information: Iterable[Any]) -> tuple[int, str, str]:
    """Maximum length, implementation class and version."""
    found = {type(one): one for one in information}
    return (
        found[MaximumLengthNotification].maximum_length_received,
        str(found[ImplementationClassUIDNotification].implementation_class_uid),
        found[ImplementationVersionNameNotification].implementation_version_name,
    )


def test_an_association_is_accepted_as_the_statement_says():
    window, user = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    user.user_identity_type, user.primary_field, user.positive_response_requested = 1, b"x", True
    role = build_role(mpps_scp.MPPS, scu_role=True, scp_role=True)
    limits = Limits()
    answer, contexts = negotiate.Negotiator(registry(), limits.dicom_pdu_bytes_advertised).accept(
        request(window, user, role), limits.dicom_contexts_max
    )
    accepted = A_ASSOCIATE_AC()
    accepted.decode(answer)
    information = accepted.to_primitive().user_information
    assert len(information) == 3  # the default roles, no window, no user
    assert contexts[1].transfer_syntax == "1.2.840.10008.1.2.1"
    length, class_uid, version = told(information)
    assert length == int(SETTINGS["limits.dicom_pdu_bytes_advertised"])
    assert f"class UID `{class_uid}`, version name `{version}`" in PROSE
    assert f"application context name is {negotiate.APPLICATION_CONTEXT}." in PROSE


@pytest.mark.parametrize(("bytes_max", "is_taken"), [(0, True), (1, False), (127, False), (128, True)])
def test_maximum_lengths_that_are_none_are_aborted(bytes_max, is_taken):
    assert "0 is no limit, 1 to 127 is A-ABORT" in PROSE
    try:
        negotiate.read(request(bytes_max=bytes_max), 128)
    except pdu.Violation:
        assert not is_taken
    else:
        assert is_taken


def test_each_rejection_has_its_code():
    documented = {row[1].removeprefix("A-ASSOCIATE-RJ ") for row in rows("who") if row[1].startswith("A-ASSOCIATE-RJ")}
    codes = (listener.UNKNOWN_CALLING, listener.UNKNOWN_CALLED, listener.LOCAL_LIMIT)
    assert documented == {"/".join(map(str, code)) for code in codes}


def test_an_association_is_initiated_as_the_statement_says():
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as provider:

        def refuse() -> None:
            sock, _ = provider.accept()
            with sock:
                heard.append(bytes(pdu.Wire(sock, 1 << 20, 5).read(5)[1]))
                sock.sendall(pdu.reject(1, 1, 7))

        thread = threading.Thread(target=refuse)
        thread.start()
        source = upstream.Upstream(name="x", host="127.0.0.1", port=provider.getsockname()[1], ae_title="OTHER")
        answers_ = upstream.question(source, Settings(), clock.now()).ask()
        thread.join()
    asked = negotiate.read(heard[0], 128)
    (context,) = asked.primitive.presentation_context_definition_list
    ((proposed, syntax, role, extended),) = rows("proposed")
    assert (proposed, syntax) == (
        UID(context.abstract_syntax).name, ", ".join(UID(one).name for one in context.transfer_syntax)
    )  # fmt: skip
    assert (role, extended) == ("SCU", "none")
    length, class_uid, version = told(asked.primitive.user_information)
    assert len(asked.primitive.user_information) == 3
    assert (asked.calling, length) == (SETTINGS["dicom.ae_title"], int(SETTINGS["limits.dicom_pdu_bytes_max"]))
    assert (class_uid, version) == (negotiate.IMPLEMENTATION_CLASS_UID, negotiate.IMPLEMENTATION_VERSION)
    assert find_client.REJECTIONS[1, 7] in answers_.error


def test_what_a_provider_says_is_told_as_the_statement_says():
    assert {row[0]: row[1] for row in rows("source/reason")} == {
        f"{source}/{reason}": said for (source, reason), said in find_client.REJECTIONS.items()
    }
    documented = {row[0].replace("xx", "00"): row[1] for row in rows("final status")}
    ours = {f"{status:04X}": said for status, said in find_client.ENDINGS.items()}
    assert documented == {"0000": "the list is complete", **ours, "any other": find_client.UNABLE}
    over, canceled = (", ".join(words) for words in (upstream_item.OVER, upstream_item.CANCELED))
    assert f"SPS Status is {over} count as over; {canceled} as not listed any more" in PROSE


# Keys


TABLES = (
    ("attribute of the identifier", keys.RETURNED, matching.MATCHED | {matching.STEP_SEQUENCE}, matching.MATCHED),
    ("attribute of the step", keys.STEP_RETURNED, matching.STEP_MATCHED, matching.STEP_MATCHED),
    ("attribute of other items", keys.ITEM_RETURNED, matching.ITEM_MATCHED, matching.ITEM_MATCHED),
)
REQUIRED = {
    "PatientName", "PatientID", "ScheduledProcedureStepSequence", "ScheduledStationAETitle",
    "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
    "ScheduledPerformingPhysicianName",
}  # fmt: skip
SAMPLES = {"DA": "20250705", "TM": "103000", "UI": "1.2.3"}


def kinds(tag: int, matched: frozenset[int]) -> str:
    """How a key finds a value, tried."""
    vr = dictionary_VR(tag)
    if vr == "SQ":
        return "sequence"
    value = SAMPLES.get(vr, "ABC")
    tried = {"single": value, "wildcard": value[:2] + "*", "range": f"{value}-{value}", "list": f"9\\{value}"}
    found = [kind for kind, key in tried.items() if finds(tag, key, value, matched)]
    return ", ".join(found).replace("single", "name" if vr == "PN" else "single")


def finds(tag: int, key: str, value: str, matched: frozenset[int]) -> bool | None:
    """None: it is an error."""
    vr = dictionary_VR(tag)
    try:
        matching.check({tag: (vr, key)}, matched)
    except errors.InvalidValue:
        return None
    return matching.element_matches(tag, key, {tag: (vr, value)})


@pytest.mark.parametrize(("first", "returned", "matched", "probed"), TABLES, ids=[table[0] for table in TABLES])
def test_each_key_is_in_its_table_with_how_it_matches(first, returned, matched, probed):
    table = rows(first)
    assert sorted(tag_in(row[1]) for row in table) == sorted(returned)
    for keyword, tag, vr, match, *_ in table:
        assert (bare(keyword), vr) == (keyword_for_tag(tag_in(tag)), dictionary_VR(tag_in(tag)))
        role = "R" if bare(keyword) in REQUIRED and first != TABLES[2][0] else "O"
        how = f"{role}: {kinds(tag_in(tag), probed)}" if tag_in(tag) in matched else NONE
        assert match == how, keyword


def test_types_1_and_1c_are_what_an_item_is_made_of():
    types = {bare(row[0]): row[4] for table in TABLES[:2] for row in rows(table[0])}
    type_1 = {*dataset.TYPE_1, *dataset.STEP_TYPE_1, "ScheduledProcedureStepSequence"}
    assert {keyword for keyword, said in types.items() if said == "1"} == type_1
    told_by_code = {keyword_for_tag(tag) for pair in answers.CODES_OF.items() for tag in pair}
    assert told_by_code <= {keyword for keyword, said in types.items() if said == "1C"}


def test_what_providers_are_asked_for_is_marked():
    _, asked = upstream_item.question(upstream_item.Reads(Site(), Limits()), {})
    for table, tags in zip(TABLES, (asked, keys.step_keys(asked)), strict=False):
        assert {tag_in(row[1]) for row in rows(table[0]) if row[5] == "upstream"} == tags.keys()


def test_the_value_representations_with_wildcards_are_named():
    assert f"are wildcards in {', '.join(sorted(matching.WILDCARD_VRS))}, also where" in PROSE


@pytest.mark.parametrize(("keyword", "key", "value", "said"), rows("key"))
def test_an_example_of_a_key_is_true(keyword, key, value, said):
    tag = tag_for_keyword(bare(keyword))
    matched = matching.STEP_MATCHED if tag in matching.STEP_MATCHED else matching.MATCHED
    found = finds(tag, bare(key), "" if value == "no value" else bare(value), matched)
    assert said == {True: "yes", False: "no", None: "error"}[found]


# What is shown


def test_each_state_of_a_step_is_shown_as_the_statement_says():
    now = clock.now()
    usual, whole = (
        view.of(None, "X", settings, now)
        for settings in (Settings(), Settings.model_validate({"worklist": {"hide": []}}))
    )
    expected = []
    for state in get_args(config.StepState):
        is_shown, is_usual = (state in one.waiting or one.border(state) is not None for one in (whole, usual))
        by_default = "shown" if is_usual else "hidden (`worklist.hide`)" if is_shown else "never shown"
        expected.append([state, view.SHOWN_AS.get(state, state) if is_shown else NONE, by_default])
    assert rows("state of the step") == expected
    assert usual.started_if_asked is not None


def test_each_habit_profile_and_quirk_is_named():
    assert [bare(row[0]) for row in rows("field of a node")] == [one.name for one in fields(habits.Habits)]
    assert {bare(row[0]): row[1] for row in rows("profile")} == dict(habits.SENTENCES)
    assert {bare(row[0]): row[1] for row in rows("quirk")} == dict(habits.QUIRKS)
    assert f"proposes {', '.join(f'`{name}`' for name in learned.SHOWN_BY)} or its character set" in PROSE


# Statuses

FIND = (
    errors.InvalidValue, errors.TooMany, errors.DatabaseAway, errors.Unreadable, errors.NotAllowed, errors.Unsupported,
)  # fmt: skip
STORE = (
    errors.NoRoom, errors.DatabaseAway, errors.InvalidValue, errors.OtherInstance, errors.Unreadable, errors.MissingUid,
    errors.NotAllowed, errors.Unsupported,
)  # fmt: skip
PERFORMED = (
    errors.InvalidValue, errors.InvalidInstance, errors.MissingField, errors.EmptyField, errors.DuplicateKey,
    errors.UnknownKey, errors.WrongState, errors.NotAllowed, errors.Unsupported, errors.DatabaseAway, errors.Unreadable,
)  # fmt: skip
ELSEWHERE = {"BrokerError", "ConfigError", "Stale", "Parked"}
RAISED_IN = {
    "C-FIND status": (FIND, ("mwl/scp.py", "mwl/keys.py", "mwl/matching.py", "mwl/answers.py", "mwl/worklist.py",
                             "mwl/plan.py", "mwl/snapshot.py", "dicom/tree.py", "dicom/charset.py")),
    "MPPS status": (PERFORMED, ("mpps/scp.py", "mpps/service.py", "mpps/rules.py", "mpps/link.py")),
    # intake: of a file that another node has, which is compared as unreadable then
    "C-STORE status": ((*STORE, errors.UnknownKey), ("archive/scp.py", "archive/intake.py", "archive/ingest.py",
                                                     "archive/staging.py", "archive/volume.py", "archive/header.py",
                                                     "archive/walk.py", "archive/part10.py")),
}  # fmt: skip


def statuses(first: str) -> set[int]:
    cells = [re.sub(r"Error ID \w+", "", row[0]) for row in rows(first)]
    return {int(found, 16) for cell in cells for found in re.findall(r"[0-9A-F]{4}", cell)}


def test_every_error_that_can_be_raised_was_thought_of():
    known = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, BrokerError)}
    assert {one.__name__ for one in (*FIND, *STORE, *PERFORMED)} | ELSEWHERE == known


@pytest.mark.parametrize("first", RAISED_IN)
def test_no_service_raises_what_its_table_does_not_have(first):
    allowed, files = RAISED_IN[first]
    known = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, BrokerError)}
    found = {
        ast.unparse(node.func).rpartition(".")[2]
        for name in files
        for node in ast.walk(ast.parse((ROOT / "broker" / name).read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    assert found & known <= {one.__name__ for one in allowed}


def test_each_status_of_c_find_is_in_its_table():
    ours = {mwl_scp.MATCH, mwl_scp.MATCH_WITH_UNSUPPORTED_KEYS, mwl_scp.DONE, mwl_scp.CANCELLED}
    refused = {mwl_scp._refused(error("x")).status for error in FIND}
    assert statuses("C-FIND status") == ours | refused | {association.UNABLE_TO_PROCESS}


def test_each_status_of_c_store_is_in_its_table():
    refused = {service.refusal(error("x"), dimse_n=False).status for error in STORE}
    assert statuses("C-STORE status") == {0x0000, association.OUT_OF_RESOURCES} | refused


def test_each_status_of_mpps_is_in_its_table():
    ours = {mpps_scp.SUCCESS, mpps_scp.UNSUPPORTED_ATTRIBUTES, mpps_scp.IGNORED_ATTRIBUTES, mpps_scp.PROCESSING_FAILURE}
    refused = {service.refusal(error("x"), dimse_n=True).status for error in PERFORMED}
    assert statuses("MPPS status") == ours | refused | {association.PROCESSING_FAILURE}
    assert f"0110, Error ID {mpps_scp.NO_LONGER_UPDATED:04X}" in [row[0] for row in rows("MPPS status")]


def in_step(tag: int, key: Any) -> dict[int, Any]:
    return {matching.STEP_SEQUENCE: ("SQ", [{tag: (dictionary_VR(tag), key)}])}


MALFORMED: tuple[dict[int, Any], ...] = (
    {keys.QUERY_LEVEL: ("CS", "PATIENT")},
    {matching.STEP_SEQUENCE: ("SQ", [{}, {}])},
    in_step(matching.START_DATE, "20250230"),
    in_step(matching.START_TIME, "-"),
    {matching.TIMEZONE: ("SH", "0900")},
    {0x00100020: ("LO", "1\\2")},
    {0x00100020: ("LO", "1" * (matching.KEY_CHARACTERS_MAX + 1))},
    {0x0020000D: ("UI", "1" * (matching.LONG_KEY_CHARACTERS_MAX + 1))},
    {0x00100020: ("LO", "1\x012")},
    {0x00100020: ("UN", b"12")},
)


def test_each_error_comment_of_a_malformed_key_is_quoted():
    named = re.search(r"Of A900 it begins with the tag of the key, followed by: (.*?)\. An identifier", PROSE)
    assert named
    said = set()
    for query in MALFORMED:
        with pytest.raises(errors.InvalidValue) as refused:
            keys.check(query)
        response = mwl_scp._refused(refused.value)
        tag = words_of(response.offending[0])
        assert response.comment.startswith(f"{tag}: ")
        said.add(re.sub(r"(VR) \w+$", r"\1 …", response.comment.removeprefix(f"{tag}: ")))
    assert said == set(re.findall(r"`([^`]+)`", named[1]))
    written = {
        ast.unparse(node.args[1])
        for name in ("keys.py", "matching.py")
        for node in ast.walk(ast.parse((ROOT / "broker" / "mwl" / name).read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("_malformed", "InvalidValue")
    } - {"text"}  # what `_malformed` hands on
    assert len(written) == len({re.sub(r"\d+", "N", one) for one in said})  # none is tried by nobody


def test_each_other_error_comment_of_c_find_is_quoted():
    comments = [row[2] for row in rows("C-FIND status")]
    peer = service.Peer("X", "BROKER", "", "", service.NodeInfo(1, "X", "", True, "X", frozenset(), "", None))
    context = negotiate.Context(1, "", "", registry().offers[mwl_scp.MODALITY_WORKLIST_FIND])
    with pytest.raises(errors.NotAllowed) as barred:
        association.permit(peer, context)
    late = snapshot.Snapshot.__new__(snapshot.Snapshot)
    late.settings, late.taken_at = Settings(), None
    with pytest.raises(errors.DatabaseAway) as away:
        late.engine("X")
    source = (ROOT / "broker" / "mwl" / "worklist.py").read_text("utf-8")
    (looked_at,) = re.findall(r'TooMany\("", "(.+)"\)', source)
    for error in (barred.value, away.value, errors.TooMany(""), errors.TooMany("", looked_at)):
        assert f"`{dimse.comment(str(error)).strip()}`" in comments


# MPPS


def attributes(table: Iterable[rules.Attribute], depth: int = 0, settable: bool | None = None) -> Iterable[list[str]]:
    for one in table:
        may_be_set = one.settable if settable is None else settable
        yield [
            "&gt;" * depth + f"`{keyword_for_tag(one.tag)}`", words_of(one.tag), str(one.create),
            "yes" if may_be_set else NONE, "1" if not depth and one.tag in rules.FINAL_TYPE_1 else NONE,
        ]  # fmt: skip
        yield from attributes(one.items, depth + 1, may_be_set)


def test_attributes_of_performed_steps_are_those_of_the_table():
    assert rows("attribute of the performed step") == list(attributes(rules.TABLE))
    assert f"({', '.join(rules.WRONG_ENTRY)})" in PROSE


# Character sets


def test_every_character_set_is_named_with_its_escapes():
    alone = {bare(row[0]) for row in rows("defined term")}
    assert alone == charset.ALONE.keys() - {""} | {"ISO_IR 13"}
    extended = {bare(row[0]): row[2] for row in rows("term with code extensions")}
    assert extended.keys() == {f"ISO 2022 IR {number}" for number in charset.SETS if number}
    for term, escapes in extended.items():
        number = term.removeprefix("ISO 2022 IR ")
        sets = [one for one in charset.SETS[number] if one is not charset.ASCII or number == "6"]
        assert escapes == ", ".join(escape.hex(" ").upper() for _, escape, _ in sets)
    assert all(charset.supported((term,)) for term in alone | extended.keys())


def test_what_answers_are_written_in_is_told():
    japanese, other = Settings(), Settings.model_validate({"site": {"language": "en"}})
    ja, en = japanese.worklist_character_set, other.worklist_character_set
    assert f"empty: `{ja}` with `site.language` = `ja`, else `{en}`" in PROSE
    for kanji, form in re.findall(r"(\S) is (\S)[,)]", section("6 Support of character sets")):
        assert variants.variant(kanji) == form
    habit = habits.Habits(character_set=ja, character_sets_also=("ISO 2022 IR 159", "ISO_IR 192"))
    assert answers._tried(ja, habit) == (ja, f"{ja}\\ISO 2022 IR 159", "ISO_IR 192")  # the order of the list
    assert f"the copy is in `{coerce.UTF8}`" in PROSE


# Settings and figures


def test_every_setting_is_named_with_its_default():
    table = {bare(row[0]): "" if row[1] == NONE else bare(row[1]) for row in rows("setting")}
    assert {name: SETTINGS.get(name) for name in table} == table
    named = set(re.findall(r"`((?:site|dicom|worklist|mpps|reconcile|limits)\.[a-z0-9_]+)`", STATEMENT))
    assert named | {name for name in SETTINGS if name.startswith("dicom.")} == table.keys()


FIGURES: tuple[tuple[object, str], ...] = (
    (association.FIRST_ANSWERS, "{} answers leave at once"),
    (round(association.CANCEL_SECONDS * 1000), "no sooner than {} ms after the first"),
    (round(access.CACHE_SECONDS), "A change of a node counts after {} seconds"),
    (mwl_scp.VIEW_SECONDS, "These hours may end {} seconds late"),
    (snapshot.WAIT_SECONDS_MAX, "the device waits {} seconds"),
    (round(snapshot.AGAIN_SECONDS), "each {} seconds one query asks whether"),
    (snapshot.BEGUN_HOURS, "What began or ended more than {} hours ago"),
    (dimse.COMMENT_CHARACTERS_MAX, "Error Comment is ASCII, at most {} characters"),
    (matching.KEY_CHARACTERS_MAX, "a control character, more than {} characters"),
    (matching.LONG_KEY_CHARACTERS_MAX, "({} of UI, UC, UT, UR, LT and ST;"),
    (learned.QUERIES_MIN, "where at least {} queries say so"),
    (variants.VERSION, "version {} of the table"),
    (len(variants.KANJI.split()), "of the table has {} kanji"),
)


@pytest.mark.parametrize(("value", "sentence"), FIGURES)
def test_a_figure_of_the_text_is_that_of_the_code(value, sentence):
    assert sentence.format(value) in PROSE


# Stored objects


def received(**more: str) -> Dataset:
    ds = Dataset()
    with pydicom.config.disable_value_validation():
        for keyword in (*changes.PERSONAL, "PatientID", "PatientName", "AccessionNumber"):
            setattr(ds, keyword, "000Y" if keyword == "PatientAge" else "OLD")
        for keyword in changes.PERSONAL_SEQUENCES:
            setattr(ds, keyword, [Dataset()])
        for keyword, value in more.items():
            setattr(ds, keyword, value)
    return ds


def test_every_attribute_that_a_rendition_changes_is_named():
    identity = changes.Identity("NEW", "HOSP", "NEW^NAME=新^名", "19700101", "M", frozenset({"OLD"}))
    requests = [{"AccessionNumber": "A1", "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "HOSP"}]}]
    changed: set[str] = set()
    for by_person in (False, True):
        target = changes.Target(identity, requests)
        changed |= changes.changes_for(received(), target, only_name=False, by_person=by_person).keys()
    record = coerce.Record("COERCE", "CT1", "BROKER", dt.datetime(2025, 7, 5, tzinfo=dt.UTC), "Asia/Tokyo")
    before = received(SpecificCharacterSet="ISO_IR 100")
    made = coerce.coerce(before, {"PatientName": "NEW^NAME=新^名"}, record)
    changed |= {keyword_for_tag(one.tag) for one in made if one.tag not in before or made[one.tag] != before[one.tag]}
    assert changed == {bare(row[0]) for row in rows("changed attribute")}
    assert f"{', '.join(f'`{one}`' for one in sorted(coerce.NEVER))} never change" in PROSE


# What is not there


def imported_by(folder: str) -> set[str]:
    return {
        alias.name
        for path in (ROOT / "broker" / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }


def test_what_the_statement_denies_is_not_there():
    for said in (
        "Not there: storage commitment, query and retrieve",
        "TLS on the DICOM port",
        "None is made or needed",
    ):
        assert said in PROSE
    made = registry()
    commitment, study_root_find, study_root_move = "1.20.1", "5.1.4.1.2.2.1", "5.1.4.1.2.2.2"
    for suffix in (commitment, study_root_find, study_root_move):
        assert negotiate.Negotiator(made, 1).offer(f"1.2.840.10008.{suffix}") is None
    assert "ssl" not in imported_by("dicom")


def test_the_rights_that_are_asked_for_are_named():
    asked_for = {offer.service.right for offer in registry().offers.values()} - {""}
    assert set(re.findall(r"the right is `(\w+)`", PROSE)) == asked_for
    assert "The node rights `commitment`, `query` and `retrieve` are names that nothing asks for yet." in PROSE
    assert not asked_for & {"commitment", "query", "retrieve"}
