import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("kernels", "suite", "theory", "reports")  # each may import only itself and the ones before it
ROOT = Path(__file__).parents[1]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield str(node.module)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_the_ones_above_it(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    above = FOLDERS[: FOLDERS.index(folder) + 1]
    found = {(file.relative_to(ROOT).as_posix(), name) for file in files for name in imported(file)}
    assert not {(file, name) for file, name in found if name.split(".")[0] in set(FOLDERS).difference(above)}


@pytest.mark.parametrize("module", ["suite", "suite.store", "suite.plugin"])
def test_what_reports_and_pytest_load_imports_no_torch(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
