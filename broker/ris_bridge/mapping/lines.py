"""What is wrong in a TOML file, and in which line. tomllib keeps no lines, so they are looked up."""

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

HEADER = re.compile(r"\s*\[\[?[^\[\]=]*\]")


def line_of(text: str, word: str, index: int = 0, key: str = "") -> int:
    """Where the index-th table `word` stands, or `key` inside it. word empty: the keys above all tables."""
    name = re.escape(word)
    header = re.compile(rf"\s*\[\[?\s*{name}(?=[\s.\]])|\s*{name}\s*=") if word else None
    assignment = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
    seen, found = -1 if word else 0, 1
    for number, line in enumerate(text.splitlines(), 1):
        if header and header.match(line):
            seen += 1
            if seen > index:
                break
            found = number if seen == index else found
        elif not word and HEADER.match(line):
            break
        elif seen == index and key and assignment.match(line):
            return number
    return found


def problem(error: ValidationError) -> tuple[str, str]:
    """The first thing wrong, as field and sentence."""
    where, sentence = faults(error)[0]
    return ".".join(where), sentence


def faults(error: ValidationError) -> list[tuple[list[str], str]]:
    """Each thing wrong: where, part by part, and a sentence; the value itself is not repeated (it may be a secret)."""

    def sentence(one: ErrorDetails) -> str:
        return "no such key" if one["type"] == "extra_forbidden" else one["msg"].removeprefix("Value error, ")

    found = error.errors(include_input=False, include_url=False)
    return [([str(part) for part in one["loc"] if part != "[key]"], sentence(one)) for one in found]
