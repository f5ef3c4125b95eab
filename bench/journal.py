"""The journal at a million messages: milliseconds for each kind of search, on both databases.

See README.md. The rows are inserted in bulk, shaped as a site's: most applied, one in a hundred refused, few kinds."""

import argparse
import datetime as dt
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from bench.servers import database
from broker import clock, db, schema
from broker.config import Limits, Settings
from broker.ris_bridge import journal
from broker.ris_bridge.journal import Wanted

CHUNK = 20_000
FIRST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
TYPES = ("ORM^O01",) * 6 + ("OMI^O23",) * 3 + ("ADT^A08",) * 6 + ("ADT^A01", "SIU^S13", "ORU^R01", "ADT^A40", "ORM^O01")
LIMITS = Limits()


def rows(start: int, stop: int, bytes_each: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    messages, keys = [], []
    for n in range(start, stop):
        refused = n % 100 == 0
        raw = f"MSH|^~\\&|S{n % 8}|H|||20250101||{TYPES[n % len(TYPES)]}|C{n}|P|2.5.1\rPID|||P{n // 9}\r".encode()
        messages.append(
            {
                "pk": n, "created_at": time_of(0), "updated_at": time_of(0), "direction": "in",
                "protocol": "rest" if n % 50 == 1 else "hl7", "peer": "10.0.0.1", "sender": f"S{n % 8}|H",
                "control_id": f"C{n}", "message_time": "20250101", "type": TYPES[n % len(TYPES)],
                "raw": raw.ljust(bytes_each, b"."), "sha256": f"{n:064x}",
                "state": ("DISMISSED" if n % 200 else "REJECTED") if refused else "APPLIED", "answer": b"MSH" * 60,
                "answer_sent": True, "error_code": ("204", "205", "101")[n % 3] if refused else "",
                "error_place": "", "error_text": "", "became": f"NW order {n}", "mapping": "", "noted": "",
                "order_pk": None, "received_at": time_of(n),
            }
        )  # fmt: skip
        found = {"patient": n // 9, "accession": n // 3, "placer": n // 3, "filler": n // 3, "study": n // 3}
        keys += [
            {
                "created_at": time_of(0),
                "updated_at": time_of(0),
                "message_pk": n,
                "kind": kind,
                "value": f"{kind[:1].upper()}{value}",
            }
            for kind, value in found.items()
        ]
    return messages, keys


def time_of(n: int) -> str:
    """As both databases keep it."""
    return (FIRST + dt.timedelta(seconds=20 * n)).strftime("%Y-%m-%d %H:%M:%S.%f")


def fill(count: int, bytes_each: int) -> None:
    for start in range(1, count + 1, CHUNK):
        messages, keys = rows(start, min(start + CHUNK, count + 1), bytes_each)
        with db.engine().begin() as connection:
            put(connection, "message", messages)
            put(connection, "message_key", keys)
    with db.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not db.is_sqlite():  # as its autovacuum does by itself
            for table in ("message", "message_key"):
                connection.execute(text(f"VACUUM ANALYZE {table}"))


def put(connection: Connection, table: str, found: list[dict[str, Any]]) -> None:
    """By the driver itself: the rows are not what is measured."""
    names, cursor = list(found[0]), connection.connection.cursor()
    if db.is_sqlite():
        marks = ", ".join(f":{name}" for name in names)
        cursor.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", found)
        return
    with cursor.copy(f"COPY {table} ({', '.join(names)}) FROM STDIN") as copy:  # type: ignore[attr-defined]
        for row in found:
            copy.write_row(list(row.values()))


def searches(count: int) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    middle = FIRST + dt.timedelta(seconds=10 * count)
    day = dt.timedelta(days=1)
    asked = {
        "nothing: the newest": Wanted(),
        "accession number": Wanted(accession=f"A{count // 6}"),
        "patient ID": Wanted(patient=f"P{count // 18}"),
        "a number of any kind": Wanted(number=f"P{count // 6}"),
        "study UID": Wanted(study=f"S{count // 6}"),
        "sender": Wanted(sender="S3|H"),
        "type": Wanted(type="ORM"),
        "rare type": Wanted(type="ADT^A40"),
        "state refused": Wanted(state="REJECTED"),
        "state applied": Wanted(state="APPLIED"),
        "error code": Wanted(error_code="205"),
        "protocol": Wanted(protocol="rest"),
        "one day, long ago": Wanted(since=middle, until=middle + day),
        "sender, type, one day": Wanted(sender="S3|H", type="ORM", since=middle, until=middle + day),
        "sender and type, common": Wanted(sender="S3|H", type="ORM^O01"),
        "patient ID and type": Wanted(patient=f"P{count // 18}", type="ADT"),
        "refused, sender, type": Wanted(state="REJECTED", sender="S0|H", type="ORM"),
        "what is not there": Wanted(accession="NONE"),
        "common things that never meet": Wanted(sender="S1|H", type="ADT^A40"),
    }
    now = clock.now()
    for name, wanted in asked.items():
        yield (
            name,
            lambda session, wanted=wanted: journal.messages(
                session, wanted, now=now, limit=100, looked_at=LIMITS.journal_rows_max
            ),
        )
    yield (
        "page 1,000 of the newest",
        lambda session: journal.messages(
            session, Wanted(), now=now, limit=100, looked_at=LIMITS.journal_rows_max, after=count - 100_000
        ),
    )
    yield (
        "what waits for a person, counted",
        lambda session: journal.exceptions(session, now=now, looked_at=LIMITS.journal_rows_max),
    )
    yield (
        "one message, whole",
        lambda session: journal.message(session, count // 2, settings=Settings(), language="ja", now=now),
    )


def measure(count: int, bytes_each: int, repeats: int) -> dict[str, Any]:
    begun = time.perf_counter()
    fill(count, bytes_each)
    figures: dict[str, Any] = {"seconds to fill": round(time.perf_counter() - begun, 1)}
    for name, search in searches(count):
        times = []
        for _ in range(repeats):
            begun, worked = time.perf_counter(), time.process_time()
            found = db.read(search)
            times.append((1000 * (time.perf_counter() - begun), 1000 * (time.process_time() - worked)))
        wall, own = (statistics.median(column) for column in zip(*times, strict=True))
        figures[name] = f"{wall:.1f} ms ({own:.1f} of processor; the first {times[0][0]:.1f})" + (
            f", {len(found['items'])} found" if "items" in found else ""
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=1_200, help="of one message")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--folder", type=Path, help="where to work; several gigabytes")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-journal-", dir=wanted.folder) as name:
        folder = Path(name)
        folder.chmod(0o755)
        for kind in wanted.database or ["sqlite", "postgresql"]:
            with database(kind, folder) as url:
                db.open_engine(url, job_seconds=3600)
                schema.upgrade()
                print(json.dumps({kind: measure(wanted.messages, wanted.bytes, wanted.repeats)}, indent=1), flush=True)
                db.close_engine()


if __name__ == "__main__":
    main()
