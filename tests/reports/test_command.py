import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from synthetic import fill, fill_entropy, measured

from reports.command import report
from suite.store import Store


def run(*arguments):
    return CliRunner().invoke(report, [str(a) for a in arguments])


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_store_gives_the_same_bytes_in_another_process(store_path, tmp_path):
    result = run("--store", store_path, "--out", tmp_path / "a", "--figures")
    assert result.exit_code == 0, result.exception
    code = "from reports.command import report; report()"
    arguments = [sys.executable, "-c", code, "--store", store_path, "--out", tmp_path / "deep" / "b", "--figures"]
    elsewhere = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(arguments, check=True, capture_output=True, env=elsewhere)
    first = tree(tmp_path / "a")
    assert first == tree(tmp_path / "deep" / "b")
    assert {name.rsplit(".", 1)[1] for name in first} == {"html", "svg", "pdf", "csv"}
    assert len([name for name in first if "kernels" not in name]) == 1 + 10 * 3 and "kernels.html" in first
    assert sorted(result.output.splitlines()) == sorted(str(tmp_path / "a" / name) for name in first)
    assert not any(str(tmp_path).encode() in content for content in first.values())


def test_a_store_with_codes_has_a_second_page_the_same_in_every_process(tmp_path):
    store = fill_entropy(tmp_path / "s.db", [measured("tiny", "rtn", 3), measured("tiny", "hqq", 4)])
    result = run("--store", store, "--out", tmp_path / "a", "--figures")
    assert result.exit_code == 0, result.exception
    code = "from reports.command import report; report()"
    arguments = [sys.executable, "-c", code, "--store", store, "--out", tmp_path / "b", "--figures"]
    elsewhere = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run(arguments, check=True, capture_output=True, env=elsewhere)
    first = tree(tmp_path / "a")
    assert first == tree(tmp_path / "b")
    assert {"entropy.html", "report.html", "figures/entropy-gap.pdf", "figures/entropy-tiny-coded.csv"} <= set(first)
    assert len([name for name in first if "kernels" not in name]) == 2 + (5 + 8) * 3


def test_without_figures_only_pages_are_written_and_the_store_is_left_alone(store_path, tmp_path):
    before = store_path.read_bytes()
    result = run("--store", store_path, "--out", tmp_path)
    assert result.output == f"{tmp_path / 'report.html'}\n{tmp_path / 'kernels.html'}\n"
    assert list(tree(tmp_path)) == ["kernels.html", "report.html"]
    assert store_path.read_bytes() == before


def no_store(folder):
    return folder / "none.db", "no store at"


def empty_file(folder):
    (folder / "zero.db").touch()
    return folder / "zero.db", "is empty"


def no_records(folder):
    return fill(folder / "new.db", []), "has no records"


def another_file(folder):
    (folder / "notes.db").write_text("no database at all, but long enough to be read as one" * 20)
    return folder / "notes.db", "is not a bitfrontier store"


def torn_store(folder):
    path = fill(folder / "torn.db", [])
    with Store(path) as store:
        store._connection.execute("drop table records")
    return path, "cannot read the store"


@pytest.mark.parametrize("make", [no_store, empty_file, no_records, another_file, torn_store])
def test_a_bad_store_is_named_and_nothing_is_written(make, tmp_path):
    path, message = make(tmp_path)
    before = tree(tmp_path)
    result = run("--store", path, "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception) and str(path) in str(result.exception)
    assert "\n" not in str(result.exception)
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


def test_a_bad_folder_is_named_and_nothing_is_written(store_path, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "page" / "report.html").mkdir(parents=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "figures").touch()
    for out in ("file", "file/below", "page", "half"):
        result = run("--store", store_path, "--out", tmp_path / out, "--figures")
        assert isinstance(result.exception, ValueError)
        assert "cannot write" in str(result.exception) and str(tmp_path / out) in str(result.exception)
    assert tree(tmp_path) == {"file": b"", "half/figures": b""}


def test_reports_import_no_torch():
    code = "import reports, reports.command; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
