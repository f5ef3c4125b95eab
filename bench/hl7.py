"""Orders over HL7: our broker, durable before AA, beside hl7apy's and python-hl7's servers, which store nothing.

See README.md. Everybody gets the same bytes from the same client; rounds are interleaved, figures are medians."""

import argparse
import asyncio
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import functools
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import platform
import re
import socket
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from bench.servers import broker, database

START, END, CR = b"\x0b", b"\x1c\x0d", b"\x0d"
ENCODING = "iso2022_jp"  # both peers can be told so, and then read what a Japanese RIS sends
CONNECTIONS = 8
CHANGES = 4  # XO after each NW, where the order of messages is looked at
READY_SECONDS_MAX = 60
ANSWER_SECONDS_MAX = 60
HOSTILE_BYTES, HOSTILE_SEGMENTS, HOSTILE_CPU_SECONDS_MAX = 1024**2, 20_000, 1.0
FIRST = dt.datetime(2025, 12, 1, 9, 0)  # noqa: DTZ001  as messages say it
FAMILIES = (("山田", "ヤマダ"), ("春日", "カスガ"), ("本間", "ホンマ"), ("五味", "ゴミ"), ("渡邉", "ワタナベ"))
GIVEN = (("太郎", "タロウ"), ("花子", "ハナコ"), ("三千代", "ミチヨ"), ("京子", "キョウコ"), ("万里", "マリ"))
SPAWN = multiprocessing.get_context("spawn")


# What is sent: 1.5 KB each; in kanji, bytes that look like delimiters


@dataclasses.dataclass(frozen=True)
class Sent:
    """control_id: MSH-10. accession, start_time: what the order must say when this message was the last of it."""

    raw: bytes
    control_id: str
    accession: str
    start_time: str


def order(number: int, changes: int = 0) -> list[Sent]:
    """NW, then XO that each put the exam off by a minute. Two in turn are one patient's; OMI and ORM alternate."""
    return [_message(number, n) for n in range(changes + 1)]


def _message(number: int, change: int) -> Sent:
    at, start = FIRST + dt.timedelta(seconds=change), FIRST + dt.timedelta(days=number % 28, minutes=change)
    patient = number // 2
    (family, family_kana), (given, given_kana) = FAMILIES[patient % 5], GIVEN[patient // 5 % 5]
    said = {
        "control": "XO" if change else "NW", "id": f"M{number}-{change}", "at": f"{at:%Y%m%d%H%M%S}",
        "start": f"{start:%Y%m%d%H%M%S}", "patient": f"{patient:08d}", "accession": f"A{number}", "n": str(number),
        "kanji": f"{family}^{given}", "kana": f"{family_kana}^{given_kana}",
        "born": f"19{30 + patient % 70}{1 + patient % 12:02d}{1 + patient % 28:02d}", "sex": "FM"[patient % 2],
    }  # fmt: skip
    raw = (OMI if number % 2 else ORM).format(**said).replace("\n", "\r").encode(ENCODING)
    return Sent(raw, said["id"], said["accession"], said["start"][8:])


DOCTOR = "110^医師^一郎^^^^^^^L^^^^^I~110^イシ^イチロウ^^^^^^^L^^^^^P"
PATIENT = (
    "PID|0001||{patient}^^^HOSP^PI||{kanji}^^^^^L^I~{kana}^^^^^L^P||{born}|{sex}"
    "|||^^横浜市西区^神奈川県^2200012^JPN^H^神奈川県横浜市西区みなとみらい1-2-3 日本大通りハイツ105号||"
    "^PRN^PH^^^045^1234567|^WPN^PH^^^045^7654321||M\n"
    f"PV1|0001|O|01^^^^^C||||{DOCTOR}|{DOCTOR}||01||||||||V{{n}}^^^HOSP\n"
)
OMI = (
    "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|{at}+0900||OMI^O23^OMI_O23|{id}|P|2.5.1|||||JPN|~ISO IR87||ISO 2022-1994\n"
    + PATIENT
    + f"ORC|{{control}}|P{{n}}^HIS|F{{n}}^RIS||SC||||{{at}}|20^技師^次郎^^^^^^^L^^^^^I||{DOCTOR}|01^^^^^C"
    "|^WPN^PH^^^045^1|||01^内科^99Z01\n"
    "TQ1|1||||||{start}||R^Routine^HL70485\n"
    "OBR|1|P{n}^HIS|F{n}^RIS|CTCHEST^胸部CT^99LOCAL|||||||||造影剤アレルギーの既往なし、喘息なし|||"
    + DOCTOR
    + "|||||||||||||||^咳嗽が続く。肺野に結節影の疑い、精査をお願いします。"
    + "|" * 13
    + "CTCHEST^胸部CT^99LOCAL\n"
    "NTE|1|L|前回の検査は本年五月。息止め可能。車椅子で来室の予定。\n"
    "NTE|2|L|検査後に外来へ戻ります。画像はその日のうちに見たいとのこと。\n"
    "IPC|A{n}^RIS|R{n}^RIS|1.2.392.99999.1.{n}^RIS|S{n}^RIS|CT|6000000200000000^胸部単純CT^JJ1017-16M|CT室1|CT室1|CT1\n"
)
ORM = (
    "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|{at}+0900||ORM^O01|{id}|P|2.3.1|||||JPN|~ISO IR87||ISO 2022-1994\n"
    + PATIENT
    + f"ORC|{{control}}|P{{n}}^HIS|F{{n}}^RIS||SC||1^^^{{start}}^^R||{{at}}|20^技師^次郎^^^^^^^L^^^^^I||"
    f"{DOCTOR}|01^^^^^C|^WPN^PH^^^045^1|||01^内科^99Z01|MR1\n"
    "OBR|1|P{n}^HIS|F{n}^RIS|MRHEAD^頭部MRI^99LOCAL^6000000200000000^頭部単純MRI^JJ1017-16M|||||||||体内金属なし、閉所恐怖症なし|||"
    + DOCTOR
    + "||A{n}|R{n}|S{n}||||MR|||1^^^{start}^^R||||^頭痛が続く。日中の眠気あり。占拠性病変の有無をお願いします。\n"
    "NTE|1|L|前回の検査は本年五月。仰臥位を保てる。車椅子で来室の予定。\n"
    "NTE|2|L|検査後に外来へ戻ります。画像はその日のうちに見たいとのこと。\n"
    "ZDS|1.2.392.99999.1.{n}^RIS^Application^DICOM\n"
)


def hostile() -> dict[str, bytes]:
    """Messages of 20,000 segments in a mebibyte, each of another shape."""
    omi, orm = (order(n)[0].raw.split(b"\r")[:-1] for n in (1, 2))
    pairs = [
        (b"ORC|NW|P%d|F%d" % (n, n), b"OBR|1|||C^T" + b"|" * 14 + b"A%d|R%d|S%d||||MR" % (n, n, n))
        for n in range(10_000)
    ]
    shapes = {
        "notes": [*omi, *[b"NTE|3|L|" + b"text " * 8] * HOSTILE_SEGMENTS],
        "escapes": [*omi, *[b"NTE|3|L|" + b"\\X41\\" * 8] * HOSTILE_SEGMENTS],
        "unknown segments": [*omi, *[b"ZZZ|" + b"a^b~" * 10] * HOSTILE_SEGMENTS],
        "patients": [omi[0], *[b"PID|||1^^^HOSP^PI||A^B||19700101|M"] * HOSTILE_SEGMENTS],
        "steps of one procedure": [
            *omi, *(b"IPC|A1^RIS|R1^RIS|1.2.392.99999.1.1|S%d|CT||||CT1" % n for n in range(HOSTILE_SEGMENTS)),
        ],
        "procedures of one order": [*orm[:3], *(re.sub(rb"\|A\d+", b"|A1", line) for line in itertools.chain(*pairs))],
        "orders": [*orm[:3], *itertools.chain(*pairs)],
        "bare order groups": [*orm[:3], *[b"ORC|NW", b"OBR|1"] * HOSTILE_SEGMENTS],
    }  # fmt: skip
    return {name: _filled(lines[: HOSTILE_SEGMENTS - 1]) for name, lines in shapes.items()}


def _filled(lines: list[bytes]) -> bytes:
    """With a last segment that takes what is left of the mebibyte: an OBX, which may be long."""
    body = b"\r".join(lines) + b"\rOBX|1|TX|1||"
    return body + b"x" * (HOSTILE_BYTES - len(body) - 1) + b"\r"


# The client: another process, raw sockets, everything made before the clock starts


@dataclasses.dataclass(frozen=True)
class Run:
    """seconds: from the first byte to the last answer. codes: MSA-1 by control id. waits: of each message, in ms."""

    seconds: float
    codes: dict[str, str]
    waits: list[float]

    @property
    def rate(self) -> float:
        return len(self.codes) / self.seconds


def send(port: int, streams: Sequence[Sequence[Sent]]) -> Run:
    """Each stream on its own connection, one message after another, each after the answer of the one before."""
    codes: dict[str, str] = {}
    waits: list[float] = []
    failed: list[BaseException] = []
    ready = threading.Barrier(len(streams) + 1)

    def work(stream: Sequence[Sent]) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS_MAX) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.wait()
                for one in stream:
                    began = time.perf_counter()
                    code, control_id = exchange(connection, one.raw)
                    waits.append((time.perf_counter() - began) * 1000)
                    assert control_id == one.control_id, "the answer is another message's"
                    codes[one.control_id] = code
        except BaseException as error:
            ready.abort()
            failed.append(error)

    threads = [threading.Thread(target=work, args=[stream]) for stream in streams]
    for thread in threads:
        thread.start()
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if failed:
        raise failed[0]
    return Run(seconds, codes, waits)


def exchange(connection: socket.socket, raw: bytes) -> tuple[str, str]:
    """MSA-1 and MSA-2; the answer as well where it is a refusal. Raises ConnectionError where none comes."""
    connection.sendall(START + raw + END)
    answer = b""
    while not answer.endswith(END):
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("closed without an answer")
        answer += more
    msa = next(line for line in answer.split(CR) if line.startswith(b"MSA|")).split(b"|")
    code = msa[1].decode()
    return (code if code == "AA" else f"{code}: {answer.strip(START + END).decode('latin_1')!r}"), msa[2].decode()


# The peers


def serve_hl7apy(port: Any) -> None:
    """Its own server and parser. Two changes in its favour: it reads on after a message, where it would close, and it
    reads a frame at once, where it reads byte by byte."""
    from hl7apy.mllp import AbstractHandler, MLLPRequestHandler, MLLPServer
    from hl7apy.parser import parse_message

    class Order(AbstractHandler):
        def reply(self) -> str:
            message = parse_message(self.incoming_message)
            return _aa(message.msh.msh_10.value)

    class KeepsOpen(MLLPRequestHandler):
        encoding = ENCODING

        def handle(self) -> None:
            for frame in _frames(self.request):
                message = self._extract_hl7_message(frame.decode(self.encoding))
                self.wfile.write(self._route_message(message).encode(self.encoding))

    handlers = {"OMI^O23^OMI_O23": (Order,), "ORM^O01": (Order,)}
    server = MLLPServer("127.0.0.1", 0, handlers, timeout=ANSWER_SECONDS_MAX, request_handler_class=KeepsOpen)
    server.daemon_threads = True
    port.send(server.server_address[1])
    server.serve_forever()


def _frames(connection: socket.socket) -> Iterator[bytes]:
    """With their framing, which hl7apy's pattern wants to see."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = b""
    while more := connection.recv(65536):
        buffer += more
        if buffer.endswith(END):  # the client waits for each answer
            yield buffer
            buffer = b""


def serve_python_hl7(port: Any) -> None:
    """Its own asyncio server, which parses what it reads; the answer is its own ACK."""
    from hl7.mllp import start_hl7_server

    async def on_connection(reader: Any, writer: Any) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await reader.readmessage()
                writer.writemessage(message.create_ack())
                await writer.drain()

    async def main() -> None:
        server = await start_hl7_server(on_connection, "127.0.0.1", 0, encoding=ENCODING)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def _aa(control_id: str) -> str:
    body = f"MSH|^~\\&|PEER|PEER|HIS|HOSP|20251201090000||ACK|1|P|2.5\rMSA|AA|{control_id}\r"
    return f"\x0b{body}\x1c\r"


@contextlib.contextmanager
def peer(serve: Callable[[Any], None]) -> Iterator[int]:
    """The port of a peer in a process of its own."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=[theirs], daemon=True)
    process.start()
    try:
        assert ours.poll(READY_SECONDS_MAX), "the peer does not start"
        yield ours.recv()
    finally:
        process.kill()
        process.join()


# What must be in the database


def faults(url: str, sent: Sequence[Sent]) -> list[str]:
    """Orders lost, there twice, or changed out of their order. sent: every message that was answered AA, as sent."""
    engine = create_engine(url)
    with engine.connect() as connection:

        def rows(query: str) -> list[Any]:
            return list(connection.execute(text(query)))

        journal = rows("SELECT control_id, state FROM message")
        steps = rows("SELECT accession_number, start_time FROM scheduled_step")
        counts = rows(
            "SELECT o.accession_number, count(*) FROM imaging_order o"
            " JOIN requested_procedure p ON p.order_pk = o.pk GROUP BY o.pk, o.accession_number"
        )
        published = rows("SELECT document FROM status_change ORDER BY sequence")
    engine.dispose()
    wanted: dict[str, list[str]] = {}
    for one in sent:
        wanted.setdefault(one.accession, []).append(one.start_time)
    shown: dict[str, list[str]] = {accession: [] for accession in wanted}
    for (document,) in published:
        said = json.loads(document)
        shown[said["accession_number"]].append(said["steps"][0]["scheduled_start"][11:19].replace(":", ""))
    compared = {
        "the journal is not what was answered": (journal, [(one.control_id, "APPLIED") for one in sent]),
        "orders lost or there twice": (counts, [(accession, 1) for accession in wanted]),
        "steps lost, there twice, or not as the last message says": (steps, [(a, t[-1]) for a, t in wanted.items()]),
        "changes out of their order": (shown.items(), wanted.items()),
    }
    return [what for what, (have, want) in compared.items() if sorted(map(tuple, have)) != sorted(want)]


# The figures


class Bench:
    def __init__(self, ports: dict[str, int], client: concurrent.futures.Executor, seconds: float) -> None:
        self.ports, self._client, self._seconds = ports, client, seconds
        self.sent: list[Sent] = []  # to us
        self._numbers = itertools.count(1)

    def round(self, name: str, count: int, connections: int, changes: int) -> Run:
        """count: orders. On several connections, two that stand side by side speak of one patient."""
        orders = [order(next(self._numbers), changes) for _ in range(count)]
        streams = [list(itertools.chain(*orders[n::connections])) for n in range(connections)]
        run: Run = self._client.submit(send, self.ports[name], streams).result()
        refused = sorted({code for code in run.codes.values() if code != "AA"})
        assert not refused, f"{name} answered {refused}"
        if name == OURS:
            self.sent += itertools.chain(*orders)
        return run

    def compare(self, rounds: int, connections: int, changes: int) -> dict[str, list[Run]]:
        """A first round for each, not counted, says how many orders fill the time."""
        size, runs = {}, {name: [] for name in self.ports}  # type: dict[str, int], dict[str, list[Run]]
        for name in self.ports:
            self.round(name, connections, connections, changes)
            trial = self.round(name, 2 * connections, connections, changes)
            orders_per_second = trial.rate / (changes + 1)
            size[name] = max(2, round(orders_per_second * self._seconds / connections)) * connections
        for n in range(rounds):
            names = list(self.ports)
            for name in names[n % len(names) :] + names[: n % len(names)]:
                runs[name].append(self.round(name, size[name], connections, changes))
        return runs


OURS, HL7APY, PYTHON_HL7 = "ris-broker", "hl7apy", "python-hl7"
PEERS = {HL7APY: serve_hl7apy, PYTHON_HL7: serve_python_hl7}


def report(title: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    print(f"\n{title}")
    print(f"  {'round':<7}" + "".join(f"{name:>14}" for name in runs) + "".join(f"{'÷ ' + n:>14}" for n in PEERS))
    rates = {name: [run.rate for run in each] for name, each in runs.items()}
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates[OURS], rates[name], strict=True)] for name in PEERS
    }  # of one round, so that what slows the machine slows both
    columns = [*rates.values(), *ratios.values()]
    for n, row in enumerate(zip(*columns, strict=True), start=1):
        print(f"  {n:<7}" + "".join(f"{value:14.1f}" for value in row))
    for what, of in (("median", statistics.median), ("lowest", min), ("highest", max)):
        print(f"  {what:<7}" + "".join(f"{of(column):14.1f}" for column in columns))
    waits = {name: sorted(itertools.chain(*(run.waits for run in each))) for name, each in runs.items()}
    shown = {name: [round(each[int(len(each) * share)], 2) for share in (0.5, 0.99)] for name, each in waits.items()}
    print("  ms p50 / p99: " + ", ".join(f"{name} {p50} / {p99}" for name, (p50, p99) in shown.items()))
    return {"rates": rates, "ratios": ratios, "median_ratio": {n: statistics.median(r) for n, r in ratios.items()},
            "median_rate": {name: statistics.median(each) for name, each in rates.items()}, "ms": shown}  # fmt: skip


def attack(folder: Path) -> list[dict[str, Any]]:
    """Each hostile message on a broker of its own, so that none pays for another."""
    print(
        f"\n{HOSTILE_SEGMENTS:,} segments in {HOSTILE_BYTES:,} bytes: processor seconds of the broker until its answer"
    )
    shown = []
    for n, (name, raw) in enumerate(hostile().items()):
        inside = folder / f"hostile{n}"
        inside.mkdir()
        with (
            broker(inside, "", "hl7") as ours,
            socket.create_connection(("127.0.0.1", ours.ports["hl7"]), ANSWER_SECONDS_MAX) as peer_,
        ):
            before, began = ours.cpu_seconds(), time.perf_counter()
            try:
                answer = exchange(peer_, raw)[0][:2]
            except ConnectionError:
                answer = "closed"
            except TimeoutError:
                answer = "none"
            cpu, wall = ours.cpu_seconds() - before, time.perf_counter() - began
        over = "" if cpu <= HOSTILE_CPU_SECONDS_MAX else "   OVER"
        size = f"{raw.count(CR)} segments, {len(raw)} bytes"
        print(f"  {name:<26}{size:<34}{answer:<7}{cpu:7.2f} s, by the clock {wall:.2f} s{over}")
        shown.append({"shape": name, "answer": answer, "cpu_seconds": cpu, "seconds": wall})
    return shown


def versions() -> dict[str, str]:
    names = ("ris-broker", "hl7apy", "hl7", "SQLAlchemy")
    return {
        "python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "cores": str(os.cpu_count()),
        **{name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each server in each round")
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql (a new server), or a URL")
    parser.add_argument("--folder", type=Path, help="where the data folder is made: the disk that is measured")
    parser.add_argument("--only", choices=("one", "eight", "hostile"), help="one of the three parts")
    args = parser.parse_args()
    wanted = (args.only,) if args.only else ("one", "eight", "hostile")
    figures: dict[str, Any] = {"bench": "hl7", "database": args.database.partition(":")[0], "versions": versions()}
    print(" ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    sizes = [len(one.raw) for n in (1, 2) for one in order(n)]
    print(f"messages of {sizes[0]} (OMI^O23) and {sizes[1]} bytes (ORM^O01) in ISO-2022-JP, the same for all;")
    print(f"{OURS} on {figures['database']}: durable before AA; {HL7APY} and {PYTHON_HL7}: parse, store nothing")
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-hl7-", dir=args.folder)))
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        url = stack.enter_context(database(args.database, folder))
        client = stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, SPAWN))
        if {"one", "eight"} & set(wanted):
            ports = {name: stack.enter_context(peer(serve)) for name, serve in PEERS.items()}
            ports[OURS] = stack.enter_context(broker(folder, url, "hl7")).ports["hl7"]
            compare = functools.partial(Bench.compare, bench := Bench(ports, client, args.seconds), args.rounds)
            if "one" in wanted:
                title = "one connection, one new order after another, orders per second"
                figures["one"] = report(title, compare(1, 0))
            if "eight" in wanted:
                title = f"{CONNECTIONS} connections, NW and {CHANGES} XO of each order, messages per second"
                figures["eight"] = report(title, compare(CONNECTIONS, CHANGES))
            wrong = faults(url, bench.sent)
            verdict = ", ".join(wrong) or "none lost, none twice, none out of its order"
            print(f"\n{len(bench.sent)} messages to {OURS}, compared with its database: {verdict}")
            figures["faults"] = wrong
        if "hostile" in wanted:
            figures["hostile"] = attack(folder)
            wrong += [one["shape"] for one in figures["hostile"] if one["cpu_seconds"] > HOSTILE_CPU_SECONDS_MAX]
    print(json.dumps(figures, ensure_ascii=False))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
