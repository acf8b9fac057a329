"""What the README says runs, and its table of methods is the suite's."""

import re
import shlex
from pathlib import Path

import pytest

from suite.command import run
from suite.methods import METHODS
from suite.recipe import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_of_the_readme_runs(code: str) -> None:
    assert "assert" in code
    exec(compile(code, "README.md", "exec"), {})


def test_the_table_of_methods_is_complete() -> None:
    rows = re.findall(r"^\| `([a-z0-9_-]+)` \| .* \| (\d)-(\d) \| (\w+) \|$", README, re.MULTILINE)
    assert rows == [(m.name, str(m.bits[0]), str(m.bits[-1]), m.needs) for m in METHODS]


def test_the_table_of_results_has_every_method_at_every_width_of_the_default_tier() -> None:
    rows = re.findall(r"^ ([a-z-]+) +(\d) ", README, re.MULTILINE)
    assert sorted(rows) == sorted((m.name, str(bits)) for m in METHODS for bits in (2, 3, 4, 8))


COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("bitfrontier run")])
def test_run_commands_have_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)[2:]
    context = run.make_context("run", words)
    for recipe in context.params["recipes"]:
        assert str(parse(recipe)) == str(parse(str(parse(recipe))))
