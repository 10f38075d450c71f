"""The architecture: imports go downwards, lines and functions stay short."""

import ast

import pytest
from conftest import ROOT

FLOORS = "utils | loss layers | prior data | model | estimators checkpoint | "
FLOORS += "train evaluate hubconf | vis pretrained | papers benchmarks"
FLOOR_OF = {name: n for n, names in enumerate(FLOORS.split("|")) for name in names.split()}
PATTERNS = ("*.py", *(f"{name}/**/*.py" for name in FLOOR_OF))
FILES = sorted(path.relative_to(ROOT) for pattern in PATTERNS for path in ROOT.glob(pattern))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_downwards_and_lines_and_functions_are_short(path):
    text = (ROOT / path).read_text()
    here = path.parts[0].removesuffix(".py")
    assert here in FLOOR_OF
    assert max(map(len, text.splitlines()), default=0) <= 100
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for other in {name.split(".")[0] for name in names} & FLOOR_OF.keys() - {here}:
            assert FLOOR_OF[other] < FLOOR_OF[here], f"{here} imports {other}"
