"""The import directions and the house rules, read from the source: nobody has to know them by heart."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "broker").rglob("*.py"))

# Lowest first. A module may import its own layer and those below; services of one layer are listed together.
LAYERS = [
    {"clock", "ids", "errors", "states", "config", "log", "descriptors"},
    {"db", "deadline", "statements", "model", "schema"},
    {"outbox", "audit", "access", "leases", "casebook", "dicom"},
    {"mwl", "migrations"},
    {"mpps"},
    {"archive"},
    {"ris_bridge"},
    {"site", "site_toml"},
    {"web"},
    {"jobs"},
    {"serve"},
    {"sim"},
    {"cli", "commands", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# package -> where it may be imported. Exact file or folder below broker/.
ONLY_IN = {
    "pynetdicom": ("dicom/", "sim/"),
    "fastapi": ("web/", "routes.py"),
    "starlette": ("web/", "routes.py"),
    "asyncio": ("mllp.py", "serve.py", "web/live.py", "web/http_protocol.py"),
    "hl7apy": ("ris_bridge/hl7/",),
    "httpx": ("client.py", "sim/"),
    "apscheduler": ("jobs.py",),
    "typer": ("cli.py", "commands/"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile"}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve"}
STATE_COLUMNS = {"state", "status"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "broker"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_downwards(path):
    own = name_of(path).split("/")[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANK, f"{own} has no place in LAYERS"
    for module in imports(tree_of(path)):
        if module.startswith("broker.") and (other := layer_of(module)) in RANK:
            assert RANK[other] <= RANK[own], f"{name_of(path)} imports {module}, which lies above it"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_library_is_imported_only_where_it_belongs(path):
    name = name_of(path)
    for module in imports(tree_of(path)):
        package = module.split(".")[0]
        assert package not in FORBIDDEN_IMPORTS, f"{name} imports {package}"
        places = ONLY_IN.get(package)
        assert places is None or any(name.startswith(place) or name.endswith(place) for place in places), (
            f"{name} imports {package}, which belongs in {', '.join(places)}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_runner_commits_and_nothing_is_evaluated(path):
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            assert name_of(path) == "db.py", f"{name_of(path)}:{node.lineno} commits"
        if isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{name_of(path)}:{node.lineno} calls {node.func.id}"
        for keyword in node.keywords:
            assert not (keyword.arg == "shell" and getattr(keyword.value, "value", False)), f"{name_of(path)}: a shell"


def names_advance(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) and getattr(part.func, "attr", getattr(part.func, "id", "")) == "advance"
               for part in ast.walk(node))  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_state_column_changes_only_by_advance(path):
    """An assignment `row.state = …` or `row.status = …` takes its value from states.advance (invariant 4)."""
    if name_of(path).startswith(("sim/", "web/", "dicom/", "archive/status.py")):
        return  # no machine's rows there: HTTP and DIMSE statuses, and the derived state of an order
    tree = tree_of(path)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        advanced = {
            target.id
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and names_advance(node.value)
            for target in ast.walk(node)
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(part, ast.Attribute) and part.attr in STATE_COLUMNS:
                        from_name = any(isinstance(v, ast.Name) and v.id in advanced for v in ast.walk(node.value))
                        assert names_advance(node.value) or from_name, f"{name_of(path)}:{node.lineno} sets a state"


SERVICES = {
    "mwl/orders.py", "mwl/order_changes.py", "mwl/order_finding.py", "mwl/order_identity.py", "mwl/steps.py",
    "mwl/slots.py", "mwl/visits.py", "mwl/reports.py", "mwl/patients.py", "mwl/merges.py", "mwl/merge_log.py",
    "mwl/belongings.py", "mwl/items.py", "mwl/identity.py", "casebook.py", "outbox.py", "audit.py",
    "mpps/service.py", "mpps/link.py", "archive/ingest.py", "archive/cases.py", "archive/release.py",
    "archive/candidates.py", "archive/gather.py", "ris_bridge/effects.py", "ris_bridge/mapping/store.py",
    "ris_bridge/upstream_effect.py", "mwl/exceptions.py",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_reads_no_clock_opens_no_file_and_sends_nothing(name):
    path = ROOT / "broker" / name
    for module in imports(tree_of(path)):
        assert module.split(".")[0] not in {"socket", "httpx", "subprocess", "os", "pathlib", "shutil"}, module
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert text not in {"clock.now", "open", "time.sleep", "dt.datetime.now"}, f"{name_of(path)}:{node.lineno}"


RULES = {
    "states.py", "dicom/habits.py", "mwl/keys.py", "mwl/texts.py", "mwl/view.py", "mwl/learned.py",
    "mwl/matching.py", "mwl/questions.py", "mwl/names.py", "mwl/kana.py", "mwl/normalise.py", "mwl/commands.py",
    "ris_bridge/upstream_item.py", "ris_bridge/upstream_elements.py",
    "ris_bridge/hl7/message.py", "ris_bridge/hl7/charset.py", "ris_bridge/hl7/names.py", "ris_bridge/hl7/values.py",
    "ris_bridge/hl7/batch.py", "ris_bridge/hl7/orders_in.py", "ris_bridge/hl7/patients_in.py",
    "ris_bridge/hl7/visits_in.py", "ris_bridge/hl7/schedule_in.py", "ris_bridge/hl7/reports_in.py",
    "ris_bridge/mapping/paths.py", "ris_bridge/mapping/targets.py", "ris_bridge/mapping/profile.py",
    "ris_bridge/mapping/lines.py", "ris_bridge/mapping/reads.py",
    "mpps/rules.py", "archive/grades.py", "archive/links.py", "archive/detectors.py", "archive/situation.py",
    "archive/decide.py", "archive/facts.py", "archive/changes.py", "archive/coerce.py",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_has_no_clock_and_no_database(name):
    for module in imports(tree_of(ROOT / "broker" / name)):
        assert not module.startswith(("broker.db", "broker.clock", "broker.model", "sqlmodel", "sqlalchemy")), module


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_logs_are_events_with_keys_and_carry_no_patient(path):
    """`log.info("step.started", step=…)`: a constant event name, no formatted text, no key named after a person."""
    for node in ast.walk(tree_of(path)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"info", "warning", "error", "exception", "debug"}
            and "log" in ast.unparse(node.func.value)
        ):
            where = f"{name_of(path)}:{node.lineno}"
            assert isinstance(node.args[0], ast.Constant), f"{where}: the event name is not a constant"
            assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", node.args[0].value), f"{where}: {node.args[0].value}"
            for keyword in node.keywords:
                assert keyword.arg is None or not re.search(r"name$|birth|patient_id$|accession", keyword.arg), (
                    f"{where} logs {keyword.arg}"
                )


def test_every_limit_in_the_settings_ends_in_its_unit():
    from broker.config import Limits

    units = ("_max", "_min", "_seconds", "_bytes", "_percent", "_advertised", "_connections", "_between")
    for name in Limits.model_fields:
        assert name.endswith(units), name


def test_the_repository_speaks_of_itself_alone():
    """No path of a machine, no leftover marks, nothing fetched from elsewhere at run time."""
    marks = re.compile(r"(TO" + r"DO|FIX" + r"ME|XX" + r"X\b|/(root|home|work)/|https?://(cdn|unpkg|fonts\.google))")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".html", ".css", ".yml", ""} and path.is_file():
            found = marks.search(path.read_text("utf-8", "replace"))
            assert not found, f"{name}: {found.group()}"
