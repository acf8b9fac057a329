"""What the README says runs, and its table of methods is the suite's."""

import re
import shlex
from pathlib import Path

import pytest

from suite.commands.main import run
from suite.methods import METHODS
from suite.recipe import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_of_the_readme_runs(code: str) -> None:
    assert "assert" in code
    exec(compile(code, "README.md", "exec"), {})


def bits_of(method):
    """The widths of a method as the table has them: 4, or 1-8, or 2-8, 16."""
    if method.fixed:
        return f"{method.bits[0]:g}"
    whole = [bits for bits in method.bits if bits <= 8 and bits == int(bits)]
    return f"{whole[0]}-{whole[-1]}" + (", 16" if 16 in method.bits else "")


def test_the_table_of_methods_is_complete() -> None:
    rows = re.findall(r"^\| `([a-z0-9_-]+)` \| .* \| ([\d., -]+) \| (\w+) \|$", README, re.MULTILINE)
    assert rows == [(m.name, bits_of(m), m.needs) for m in METHODS]


def test_the_table_of_results_has_every_method_of_four_bits() -> None:
    rows = re.findall(r"^ ([a-z0-9_-]+) +([\d.]+)  ", README, re.MULTILINE)
    assert sorted(rows) == sorted((m.name, "4") for m in METHODS if 4 in m.bits and m.needs != "training")


COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("bitfrontier run") and "$(" not in line])
def test_run_commands_have_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    context = run.make_context("run", words)
    for recipe in context.params["recipes"]:
        assert str(parse(recipe)) == str(parse(str(parse(recipe))))
