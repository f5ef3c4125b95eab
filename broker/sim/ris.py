"""A RIS: makes orders as IHE RAD-4 OMI^O23 and sends them over MLLP."""

import datetime as dt
import socket
import ssl
from dataclasses import dataclass, field

from broker import ids

START, END = b"\x0b", b"\x1c\x0d"


@dataclass(frozen=True)
class Patient:
    """romaji, kanji, kana: `FAMILY^GIVEN`."""

    id: str
    kanji: str
    kana: str
    birth_date: str
    sex: str
    romaji: str = ""
    issuer: str = "HOSP"


@dataclass(frozen=True)
class Step:
    sps_id: str
    modality: str
    station: str
    code: str = "6000000200000000"
    description: str = "胸部単純CT"


@dataclass(frozen=True)
class Order:
    """One accession with one requested procedure. start: aware."""

    accession: str
    patient: Patient
    start: dt.datetime
    steps: tuple[Step, ...]
    procedure_id: str
    study_uid: str
    description: str = "胸部CT"
    placer: str = ""
    filler: str = ""
    code: str = "CTCHEST"
    extra: dict[str, str] = field(default_factory=dict)


def omi(order: Order, control: str = "NW", *, control_id: str = "", sent: dt.datetime | None = None) -> bytes:
    """OMI^O23 2.5.1 in ISO-2022-JP, as a Japanese RIS sends it. control: ORC-1."""
    at = (sent or dt.datetime.now(dt.UTC)).astimezone(order.start.tzinfo)
    stamp = at.strftime("%Y%m%d%H%M%S%z")
    patient = order.patient
    names = [f"{patient.kanji}^^^^^L^I", f"{patient.kana}^^^^^L^P"]
    if patient.romaji:
        names.insert(0, f"{patient.romaji}^^^^^L^A")
    placer, filler = f"{order.placer or 'P' + order.accession}^HIS", f"{order.filler or 'F' + order.accession}^RIS"
    segments = [
        f"MSH|^~\\&|HIS|HOSP|BROKER|HOSP|{stamp}||OMI^O23^OMI_O23|{control_id or ids.control_id()}|P|2.5.1"
        "|||||JPN|~ISO IR87||ISO 2022-1994",
        f"PID|0001||{patient.id}^^^{patient.issuer}^PI||{'~'.join(names)}||{patient.birth_date}|{patient.sex}",
        f"PV1|0001|O|01^^^^^C||||||||||||||||V{order.accession}^^^HOSP",
        f"ORC|{control}|{placer}|{filler}||{'CA' if control in ('CA', 'DC') else 'SC'}||||{stamp[:14]}"
        "|||110^医師^一郎^^^^^^^L^^^^^I",
        f"TQ1|1||||||{order.start:%Y%m%d%H%M%S}||R^Routine^HL70485",
        f"OBR|1|{placer}|{filler}|{order.code}^{order.description}^99LOCAL" + "|" * 40
        + f"{order.code}^{order.description}^99LOCAL",
    ]  # fmt: skip
    segments += [
        f"IPC|{order.accession}^RIS|{order.procedure_id}^RIS|{order.study_uid}^RIS|{step.sps_id}^RIS|{step.modality}"
        f"|{step.code}^{step.description}^JJ1017-16M|{step.station}|{step.modality}室1|{step.station}"
        for step in order.steps
    ]
    return ("\r".join(segments) + "\r").encode("iso2022_jp")


class Ris:
    """One MLLP connection. tls: a client's context, with its certificate."""

    def __init__(self, host: str, port: int, timeout_seconds: float = 30, tls: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection((host, port), timeout_seconds)
        self._socket = tls.wrap_socket(plain, server_hostname=host) if tls else plain
        self._buffer = b""

    def send(self, message: bytes) -> bytes:
        """The acknowledgement as received: the first, where enhanced mode has two. Raises ConnectionError when the
        other side closes without one."""
        self.put(message)
        return self.receive()

    def put(self, message: bytes) -> None:
        self._socket.sendall(START + message + END)

    def receive(self) -> bytes:
        """The next message."""
        while END not in self._buffer:
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError("closed without an acknowledgement")
            self._buffer += more
        frame, _, self._buffer = self._buffer.partition(END)
        return frame.lstrip(START)

    def close(self) -> None:
        self._socket.close()


def code_of(answer: bytes) -> str:
    """MSA-1 of an acknowledgement."""
    msa = next(line for line in answer.split(b"\r") if line.startswith(b"MSA|"))
    return msa.split(b"|")[1].decode("ascii")
