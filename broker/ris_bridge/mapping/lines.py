"""What is wrong in a TOML file, and in which line. tomllib keeps no lines, so they are looked up."""

import re

from pydantic import ValidationError

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
    where, sentence = fault(error)
    return ".".join(where), sentence


def fault(error: ValidationError) -> tuple[list[str], str]:
    """The first thing wrong: where, part by part, and a sentence; the value itself is not repeated (it may be a
    secret)."""
    first = error.errors(include_input=False, include_url=False)[0]
    sentence = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return [str(part) for part in first["loc"] if part != "[key]"], sentence
