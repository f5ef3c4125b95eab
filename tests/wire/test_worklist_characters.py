"""Names and texts in every character set, as they come out of three foreign readers: pydicom, DCMTK, Orthanc."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import ModalityWorklistInformationFind
from sqlmodel import Session

from broker import access, clock, db, ids, site
from broker.config import Settings
from broker.mwl import orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from tests import commands
from tests.house import House, eventually

IR87, IR13 = r"\ISO 2022 IR 87", r"ISO 2022 IR 13\ISO 2022 IR 87"
NAME = "YAMADA^TARO=山田^太郎=やまだ^たろう"
KANA = "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"
# What a device reads in a set: names, and descriptions; of the record, and where it shows others. Bytes of 京 万 春 本 五
# 日 look like delimiters of ASCII.
Texts = tuple[str, ...]
JAPANESE: list[Texts] = [
    (NAME, "胸部単純CT（造影なし）"),
    ("KYOMAN^HARU=京万^春=キョウマン^ハル", "本五日、〜−￥"),
    ("=五日^本=ゴカ^モト", "ラーメンー・ヴァ"),
    ("OOTANI^JOU=大谷^譲", "±３℃→A"),
    ("TAKAHASHI=髙﨑^𠮷=ﾀｶｻﾞｷ", "葛\U000e0100城～－¥①", "TAKAHASHI=高崎^吉=タカザキ", "葛城〜−￥(1)"),
]
ANY: list[Texts] = [
    ("TAKAHASHI^ICHIRO=髙橋^一郎=タカハシ^イチロウ", "①²㎡℡"),
    ("YOSHINO=𠮷野=ヨシノ", "葛\U000e0100城～〜−￥"),
    ("HONG^GILDONG=洪^吉洞=홍^길동", "Übergröße"),
    ("ZHANG=张^小东", "ﾔﾏ¥"),
    ("ΔΗΜΗΤΡΙΟΣ^ΝΙΚΟΣ", "Люк"),
]
SHOWN: dict[str, list[Texts]] = {
    "": JAPANESE,  # the site's: \ISO 2022 IR 87
    r"ISO 2022 IR 6\ISO 2022 IR 87": JAPANESE,
    IR13: [*JAPANESE[:4], (KANA, "ｱ-ﾝ ﾞﾟ｡")],
    r"\ISO 2022 IR 87\ISO 2022 IR 159": [*JAPANESE[:4], ("KUSANAGI^TSUYOSHI=草彅^剛", "彅本彅")],
    "ISO_IR 13": [("ﾔﾏﾀﾞ^ﾀﾛｳ", "ｷｮｳﾌﾞ CT")],
    "ISO_IR 192": [*JAPANESE[:4], *ANY, (KANA, "彅")],
    "GB18030": [*ANY[:3], ("WANG^XIAODONG=王^小东", "区東僞籠"), ("QU=區^東梶", "頭部")],
    "GBK": [("WANG^XIAODONG=王^小东", "头部東僞籠"), ("QU=區^東梶", "頭部")],
    r"\ISO 2022 IR 58": [("ZHANG^XIAODONG=张^小东", "头部")],
    r"\ISO 2022 IR 149": [("HONG^GILDONG=洪^吉洞=홍^길동", "흉부 CT")],
    "ISO_IR 100": [("BUC^JÉRÔME", "Schädel ¥ ÿ")],
    r"\ISO 2022 IR 100": [("MÜLLER^JÖRG", "Schädel")],
    "ISO_IR 101": [("WAŁĘSA^ŚĆ", "Čeština ř")],
    "ISO_IR 109": [("ĦAŻ^ĠU", "ĉ")],
    "ISO_IR 110": [("ĀBOLS", "ķ")],
    "ISO_IR 126": [("ΔΗΜΗΤΡΙΟΣ^ΝΙΚΟΣ", "θώρακας")],
    "ISO_IR 127": [("قباني^لنزار", "صدر")],
    "ISO_IR 138": [("שרון^דבורה", "חזה")],
    "ISO_IR 144": [("ЛЮКСЕМБУРГ", "грудь")],
    "ISO_IR 148": [("ÇAVUŞOĞLU^İ", "göğüs ı")],
    "ISO_IR 166": [("นามสกุล^ชื่อ", "ปอด")],
}
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
DEVICES = {f"C{n:02}": setting for n, setting in enumerate(SHOWN)}


Read = dict[str, tuple[str, str]]  # accession number -> name, description


def expected(ae_title: str) -> Read:
    return {f"{ae_title}N{n}": (texts[-2], texts[-1]) for n, texts in enumerate(SHOWN[DEVICES[ae_title]])}


@pytest.fixture
def scheduled(broker: House) -> House:
    """A device of each set, and on its worklist what it can write."""
    db.run(schedule, broker.settings)
    access.forget()
    return broker


def schedule(session: Session, settings: Settings) -> None:
    for ae_title, setting in DEVICES.items():
        site.add_node(session, ae_title, host="127.0.0.1", port=11999, character_set=setting, now=clock.now(),
                      actor="test")  # fmt: skip
        for n, (name, text, *_) in enumerate(SHOWN[setting]):
            place(session, settings, ae_title, f"{ae_title}N{n}", name, text)


def place(session: Session, settings: Settings, ae_title: str, accession: str, name: str, text: str) -> None:
    step = StepCommand(f"S{accession}", "CT", (ae_title,), "20350705", "093000", text)
    procedure = ProcedureCommand(
        requested_procedure_id=f"R{accession}", study_instance_uid=ids.derived_uid("2.25", accession),
        placer_number=f"P{accession}", description=text, steps=(step,),
    )  # fmt: skip
    person = PersonCommand((Identifier(f"ID{accession}", "HOSP"),), name, "19700101", "M")
    command = OrderCommand(
        control="NW", accession_number=accession, accession_issuer="RIS", patient=person, at=clock.now(),
        procedures=(procedure,),
    )  # fmt: skip
    orders.apply(session, command, now=clock.now(), actor="test", site=settings.site)


def query(ae_title: str) -> Dataset:
    made, step = Dataset(), Dataset()
    made.PatientName = made.AccessionNumber = made.RequestedProcedureDescription = ""
    step.ScheduledStationAETitle, step.ScheduledProcedureStepDescription = ae_title, ""
    made.ScheduledProcedureStepSequence = [step]
    return made


def test_pydicom_reads_what_the_record_says(scheduled):
    read = {ae_title: read_by_pydicom(scheduled, ae_title) for ae_title in DEVICES}
    assert read == {ae_title: expected(ae_title) for ae_title in DEVICES}


def read_by_pydicom(broker: House, ae_title: str) -> Read:
    found = {}
    for item in find(broker, ae_title):
        (step,) = item.ScheduledProcedureStepSequence
        assert step.ScheduledProcedureStepDescription == item.RequestedProcedureDescription
        name, text = str(item.PatientName), item.RequestedProcedureDescription
        # Of ISO 2022 IR 58 it leaves the escapes in the text.
        found[item.AccessionNumber] = (name.replace("\x1b$)A", ""), text.replace("\x1b$)A", ""))
    return found


def find(broker: House, ae_title: str) -> list[Dataset]:
    ae = AE(ae_title)
    ae.add_requested_context(ModalityWorklistInformationFind)
    connection = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER")
    answers = connection.send_c_find(query(ae_title), ModalityWorklistInformationFind)
    found = [item for _, item in answers if item is not None]
    connection.release()
    return found


def test_dcmtk_reads_what_the_record_says(scheduled, tmp_path):
    folders = {ae_title: tmp_path / ae_title for ae_title in DEVICES}
    with ThreadPoolExecutor(4) as at_once:
        list(at_once.map(partial(received_by_dcmtk, scheduled), folders, folders.values()))
    read = {ae_title: {} for ae_title in DEVICES}
    converted = [folder for ae_title, folder in folders.items() if "IR 87" not in (DEVICES[ae_title] or IR87)]
    for ae_title, accession, name, text in dumped(converted, "+U8"):
        read[ae_title][accession] = (name.decode(), text.decode())
    # Where its library for characters has no JIS, as on Debian, it shows the bytes.
    for ae_title, accession, name, text in dumped([folders[one] for one in DEVICES if folders[one] not in converted]):
        read[ae_title][accession] = (jis(name), jis(text))
    assert read == {ae_title: expected(ae_title) for ae_title in DEVICES}


def received_by_dcmtk(broker: House, ae_title: str, folder: Path) -> None:
    folder.mkdir()
    keys = ("PatientName", "AccessionNumber", "RequestedProcedureDescription",
            f"ScheduledProcedureStepSequence[0].ScheduledStationAETitle={ae_title}")  # fmt: skip
    command = ["findscu", "-W", "-X", "-od", folder, "-aet", ae_title, "-aec", "BROKER", "127.0.0.1",
               str(broker.ports["dicom"]), *(part for key in keys for part in ("-k", key))]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)


def dumped(folders: Sequence[Path], *options: str) -> Iterator[tuple[str, str, bytes, bytes]]:
    """AE title, accession number, name and description of each file."""
    files = sorted(file for folder in folders for file in folder.iterdir())
    tags = [part for tag in ("0008,0050", "0010,0010", "0032,1060") for part in ("+P", tag)]
    said = subprocess.run(["dcmdump", "+L", *options, *tags, *files], check=True, capture_output=True, timeout=60)
    values = re.findall(rb"^\(.{9}\) .. \[(.*)\] +# +\d+, *\d+ ", said.stdout, re.MULTILINE)
    assert len(values) == 3 * len(files), said.stdout
    for accession, name, text in zip(*[iter(values)] * 3, strict=True):
        yield accession.decode()[:3], accession.decode(), name, text


def jis(data: bytes) -> str:
    """By Python's own reading of ISO-2022-JP, which has no 8-bit kana."""
    parts = re.split(rb"([\xa1-\xdf]+)", data)
    return "".join(part.decode("shift_jis" if n % 2 else "iso2022_jp_1") for n, part in enumerate(parts))


def test_orthanc_reads_what_the_record_says(scheduled, orthanc):
    """Of several sets it heeds the first alone where that has a name, so `ISO 2022 IR 6\\…` it cannot read."""
    able = [ae_title for ae_title, setting in DEVICES.items() if setting.startswith("\\") or "\\" not in setting]
    assert len(DEVICES) - len(able) == 2
    assert {ae_title: read_by_orthanc(scheduled, orthanc, ae_title) for ae_title in able} == {
        ae_title: {key: (name, alike(ae_title, text)) for key, (name, text) in expected(ae_title).items()}
        for ae_title in able
    }


def alike(ae_title: str, text: str) -> str:
    """It reads 〜 and − of JIS X 0208 as the signs that Windows has there."""
    return text.translate(str.maketrans("〜−", "～－")) if "IR 87" in (DEVICES[ae_title] or IR87) else text


def read_by_orthanc(broker: House, orthanc: httpx.Client, ae_title: str) -> Read:
    modality = {"AET": "BROKER", "Host": "127.0.0.1", "Port": broker.ports["dicom"], "LocalAet": ae_title}
    assert orthanc.put(f"/modalities/{ae_title}", json=modality).status_code == 200
    keys = {
        "PatientName": "", "AccessionNumber": "", "RequestedProcedureDescription": "",
        "ScheduledProcedureStepSequence": [{"ScheduledStationAETitle": ae_title}],
    }  # fmt: skip
    answer = orthanc.post(f"/modalities/{ae_title}/find-worklist", json=keys)
    return {
        item["AccessionNumber"]: (item["PatientName"], item["RequestedProcedureDescription"]) for item in answer.json()
    }


def test_a_device_is_shown_what_its_own_habits_make_of_an_item(broker):
    """MWL-17"""
    add("H1", IR13, quirks=["half_width_kana"])
    add("H2", IR87, character_sets_also=["ISO 2022 IR 159", "ISO_IR 192"])
    add("H3", IR87, lengths={"RequestedProcedureDescription": 2})
    for n, (ae_title, name) in enumerate(
        (("H1", NAME), ("H2", "=草彅"), ("H2", "=髙橋"), ("H3", "A=草彅^剛=クサナギ"))
    ):
        db.run(place, broker.settings, ae_title, f"A{n}", name, "胸部CT")
    (in_kana,), (with_159, in_utf_8), (short,) = (find(broker, ae_title) for ae_title in ("H1", "H2", "H3"))
    assert in_kana.PatientName.original_string == bytes.fromhex(  # PS3.5 H.3.2
        "D4CFC0DE5EC0DBB33D1B24423B3345441B284A5E1B244242404F3A1B284A3D1B2442246424"
        "5E24401B284A5E1B2442243F246D24261B284A"
    )
    assert (str(with_159.PatientName), with_159.SpecificCharacterSet[-1]) == ("=草彅", "ISO 2022 IR 159")
    assert (str(in_utf_8.PatientName), in_utf_8.SpecificCharacterSet) == ("=髙橋", "ISO_IR 192")
    assert (str(short.PatientName), short.RequestedProcedureDescription) == ("A==クサナギ", "胸部")


def test_the_command_line_tells_what_a_device_will_show_and_where_it_differs(
    database, database_url, settings, tmp_path
):
    add(
        "CT1",
        IR87,
        lengths={"RequestedProcedureDescription": 2},
        requires=["ReferringPhysicianName"],
        aliases=["SCANNER"],
    )
    db.run(place, settings, "CT1", "A0", "TAKAHASHI=髙橋", "胸部CT")
    environment = commands.environment(database_url, tmp_path / "data")

    def said(*arguments: str) -> str:
        process = commands.begin(["worklist", "list", "--as-shown", *arguments], environment, tmp_path)
        process.join(60)
        return (tmp_path / ("stderr" if process.exitcode else "stdout")).read_text("utf-8")

    page = said("--ae", "CT1").splitlines()
    assert page[0] == "20350705 093000 SA0 SCHEDULED"
    assert "  Patient's Name: TAKAHASHI=高橋  [record: TAKAHASHI=髙橋]" in page
    assert "  Accession Number: A0" in page
    assert page[-3:] == [
        "  ! the ideographic group of Patient's Name is shown as 高橋",
        "  ! Requested Procedure Description is cut to 2 of 4 characters: 胸部",
        "  ! this device drops items without Referring Physician's Name",
    ]
    (item,) = json.loads(said("--ae", "SCANNER", "--json"))
    assert item["warnings"] == [line.removeprefix("  ! ") for line in page[-3:]]
    assert "needs --ae" in said()
    assert "broker node add CT7" in said("--ae", "CT7")


def add(ae_title: str, character_set: str, **habits: object) -> None:
    db.run(site.add_node, ae_title, host="127.0.0.1", port=11999, character_set=character_set, now=clock.now(),
           actor="test", **habits)  # fmt: skip
    access.forget()


@pytest.fixture(scope="session")
def orthanc(workshop: Path) -> Iterator[httpx.Client]:
    """One that nobody else knows: its own files, its own port, as SCU only."""
    folder = workshop / "orthanc"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = {
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": port, "DicomServerEnabled": False,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [], "DefaultEncoding": "Utf8",
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
    try:
        assert eventually(lambda: answers(client)), (folder / "log").read_text()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(20)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/system").status_code == 200
    except httpx.TransportError:
        return False
