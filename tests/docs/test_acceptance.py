"""No acceptance case of order intake gets lost: each id stands in the docstring of a test that runs on both databases."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent.parent
# Section 4 (HL7) of the acceptance tests that every release passes; gaps are intended.
HL7 = (1, 2, 4, 6, 7, 9, 11, 12, 14, 16, 17, 19, 21, 22, 24, 26, 27, 29, 31, 32, 34, 36, 37, 39, 41, 42)


def cases() -> Iterator[tuple[str, str]]:
    """(id, file) of each id in the docstring of a test."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for found in re.findall(r"\b[A-Z0-9]{2,4}-[0-9]{2}\b", ast.get_docstring(node) or ""):
                    yield found, path.relative_to(TESTS).as_posix()


def test_each_case_of_order_intake_is_in_the_docstring_of_a_test_that_stands_on_a_database():
    found = {name for name, path in cases() if name.startswith("HL7-") and not path.startswith(("unit/", "docs/"))}
    assert found == {f"HL7-{number:02}" for number in HL7}


def test_each_of_the_twelve_findings_has_a_test():
    text = (TESTS / "flow" / "test_twelve_findings.py").read_text("utf-8")
    tests = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"]
    numbers = [re.match(r"Finding (\d+):", ast.get_docstring(node) or "") for node in tests]
    assert [int(number[1]) for number in numbers if number] == list(range(1, 13))
    assert len(tests) == 12
