"""The floors of the house: a module imports from those below its own, and none from evaluate."""

import ast
from pathlib import Path

from conftest import ROOT

FLOORS = [
    {"loss", "layers", "optimizer", "utils.cli"},
    {"data", "prior", "utils.device", "utils.images"},
    {"model"},
    {"estimators", "utils.checkpoint"},
    {"posterior", "utils.flags"},
    {"train", "evaluate", "hubconf"},
    {"vis", "benchmarks", "pretrained"},
    {"papers"},
]
FOLDERS = ("", "utils/", "vis/**/", "papers/**/", "benchmarks/", "pretrained/")
FILES = [path.relative_to(ROOT) for folder in FOLDERS for path in ROOT.glob(f"{folder}*.py")]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(node.module.split(".")[0])
    return names


def test_no_import_goes_upwards():
    assert len(FILES) > 20
    for path in FILES:
        name = path.with_suffix("").as_posix().replace("/", ".")
        floor = FLOOR_OF.get(name, FLOOR_OF.get(path.parts[0]))
        for other in imported(path) & FLOOR_OF.keys() - {path.parts[0]}:
            assert FLOOR_OF[other] < floor, f"{path} imports {other}"
            assert other != "evaluate", path
