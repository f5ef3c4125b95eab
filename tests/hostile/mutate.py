"""HL7 messages with mistakes of every kind, made by chance from good ones: the same seed makes the same again."""

import random
from collections.abc import Callable, Iterator

from broker.sim.ris import omi
from tests.world import SATO, TAKAHASHI, YAMADA, order

PERSONS = (YAMADA, SATO, TAKAHASHI)
HEAD = "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|20351201085500||{kind}|{n}|P|{version}||||||UNICODE UTF-8\r"
PID = f"PID|1||{YAMADA.id}^^^HOSP^PI||山田^太郎^^^^^L^I~ヤマダ^タロウ^^^^^L^P||{YAMADA.birth_date}|M\r"
NUMBERS = "PACC001^HIS|FACC001^RIS"
OTHERS = {  # kind, version: what comes after MSH
    ("ORM^O01", "2.3.1"): PID + f"ORC|NW|{NUMBERS}||SC||^^^20351201093000^^R\rOBR|1|{NUMBERS}|CT^CT^L^CT1^CT1^L"
    "||||||||||||||ACC001|R1|S1||||CT\rZDS|1.2.3^A^Application^DICOM\r",
    ("OMG^O19^OMG_O19", "2.5"): PID + f"ORC|SN|{NUMBERS}||SC\rTQ1|1||||||20351201093000||R\r"
    f"OBR|1|{NUMBERS}|60000002000000000000000000000000^胸部^JJ1017-32||||||||||||||ACC001|R1|S1||||CT\r",
    ("ADT^A08^ADT_A01", "2.5.1"): "EVN|A08|20351201085500\r" + PID + "PV1|1|O|01^^^^^C||||||||||||||||V1^^^HOSP\r",
    ("ADT^A40^ADT_A39", "2.5.1"): "EVN|A40|20351201085500\r" + PID + f"MRG|{TAKAHASHI.id}^^^HOSP^PI\r",
    ("SIU^S13", "2.3.1"): "SCH|A1^HIS|F1^RIS|||||||||^^^20351201100000\r" + PID + "RGS|1\rAIS|1||CT^CT^L|20351201100000\r",
    ("ORU^R01", "2.3.1"): PID + f"ORC|RE|{NUMBERS}\rOBR|1|{NUMBERS}|CT^CT^L||||||||||||||ACC001|||||||F\r"
    "OBX|1|TX|R^Report||所見なし\\.br\\next||||||F\r",
}  # fmt: skip
NASTY = [
    b"", b'""', b"^", b"~", b"&", b"\\", b"^^^^^^^^^^", b"~~~~~~~~", b"&&&&", b"\\X0D\\", b"\\X00\\", b"\\XFF\\", b"\\X1B2442\\",
    b"\\C2842\\", b"\\M1234\\", b"\\.br\\", b"\\Z\\", b"\\E\\\\F\\", b"\x00", b"\x1b$B", b"\x1b(J", b"\x1b$(D", b"\xff\xfe", b"\x80",
    b"\xe5\xb1", "本田".encode(), "表".encode("cp932"), b"A" * 65, b"9" * 400, b"-1", b"1e9", b"20351301", b"00000000",
    b"20351201250000+9900", b"NW", b"CA", b"ZZ", b"1.2.03", b"1." + b"2" * 70, b"'; --", b"%s%n", b"../..", b"\n", b"\x85",
]  # fmt: skip
SETS = [b"", b"ASCII", b"~ISO IR87", b"ISO IR14~ISO IR87", b"UNICODE UTF-8", b"8859/1", b"GB 18030-2000", b"CP932", b"EUC-JP",
        b"UNICODE UTF-16", b"EBCDIC", b"KS X 1001", b"BIG-5"]  # fmt: skip


def messages() -> list[bytes]:
    """Good ones of every kind."""
    others = [(HEAD.format(kind=kind, version=version, n=n) + body).encode()
              for n, ((kind, version), body) in enumerate(OTHERS.items())]  # fmt: skip
    return [omi(order("ACC001")), omi(order("ACC002", SATO)), omi(order(), "XO"),
            omi(order(), "CA"), *others]  # fmt: skip


def _bytes(raw: bytes, chance: random.Random) -> bytes:
    at, gone = chance.randrange(len(raw) + 1), chance.randint(0, 3)
    return raw[:at] + chance.randbytes(chance.randint(0, 3)) + raw[at + gone :]


def _cut(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def _segments(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\r")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(4)
    if kind == 0:
        lines.insert(at, lines[other])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at : at + 1] = [lines[at]] * chance.choice([2, 30, 600])
    return b"\r".join(lines)


def _field(raw: bytes, chance: random.Random) -> bytes:
    """Most of what a real sender gets wrong."""
    lines = raw.split(b"\r")
    at = chance.randrange(len(lines))
    fields = lines[at].split(b"|")
    number = chance.randrange(len(fields) + 1)
    value = b"".join(chance.choices(NASTY, k=chance.choice([1, 1, 1, 2, 40])))
    fields[number : number + 1] = [value]
    lines[at] = b"|".join(fields)
    return b"|".join(fields) if len(lines) == 1 else b"\r".join(lines)


def _head(raw: bytes, chance: random.Random) -> bytes:
    """MSH: set, version, mode, delimiters."""
    line, end, rest = raw.partition(b"\r")
    fields = [*line.split(b"|"), *[b""] * 20][:21]
    number, values = chance.choice(
        [
            (17, SETS), (11, [b"2.2", b"2.3.1", b"2.5", b"2.8", b"3", b""]), (10, [b"P", b"T", b"", b"P^T"]),
            (14, [b"AL", b"NE", b"ER", b"SU", b"X"]), (15, [b"AL", b"NE", b"ER", b"SU", b"X"]), (19, [b"", b"ISO 2022-1994", b"?"]),
            (1, [b"^~\\&", b"^~\\", b"^", b"@~\\&", b"^^^^", b"", b"^~\\&#"]), (9, [b"", b"X" * 500, b"\\X0D\\"]),
        ]
    )  # fmt: skip
    fields[number] = chance.choice(values)
    return b"|".join(fields) + end + rest


def _batch(raw: bytes, chance: random.Random) -> bytes:
    inside = raw * chance.choice([0, 1, 2])
    count = chance.choice([b"1", b"2", b"", b"x", b"99999999999"])
    return b"BHS|^~\\&|HIS|HOSP|||1||||B1\r" + inside + b"BTS|" + count + b"\r"


def _ends(raw: bytes, chance: random.Random) -> bytes:
    return raw.replace(b"\r", chance.choice([b"\n", b"\r\n", b"\r\r", b"\n\r"]))


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    _field, _field, _field, _field, _bytes, _bytes, _head, _head, _segments, _cut, _ends, _batch,
]  # fmt: skip


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """The same with one to five mistakes. It holds no bytes that begin or end a frame."""
    for _ in range(chance.randint(1, 5)):
        raw = chance.choice(MUTATIONS)(raw, chance)
    return raw.replace(b"\x0b", b"").replace(b"\x1c", b"")


def mutated(seed: int, cases: int) -> Iterator[tuple[str, bytes]]:
    """(what makes it again, message)"""
    good = messages()
    for n in range(cases):
        chance = random.Random(f"{seed}:{n}")
        yield f"seed {seed}, message {n}", mutate(chance.choice(good), chance)


def secrets() -> list[bytes]:
    """What no answer may say, in every set that it may be written in."""
    found = {person.id.encode() for person in PERSONS} | {person.birth_date.encode() for person in PERSONS}
    for person in PERSONS:
        for name in (*person.kanji.split("^"), *person.kana.split("^")):
            found |= {name.encode(), name.encode("cp932"), name.encode("euc_jp", "ignore")}
            found.add(name.encode("iso2022_jp", "ignore").removeprefix(b"\x1b$B").removesuffix(b"\x1b(B"))
    return sorted(one for one in found if len(one) > 2)


def told(answer: bytes) -> Iterator[bytes]:
    """MSA-3 and every field of ERR of each message in it: our own words."""
    for line in answer.replace(b"\x0b", b"").replace(b"\x1c", b"").split(b"\r"):
        if line.startswith(b"MSA"):
            yield line[3:4].join(line.split(line[3:4])[3:])
        elif line.startswith(b"ERR"):
            yield line
