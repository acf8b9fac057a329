"""Text to adapt to: parts of packages are of different files, and problems held out are none that are trained on."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from conftest import DATA
from hypothesis import given
from hypothesis import strategies as st

from suite.commands.main import bitfrontier
from suite.models.checkpoint import load_model
from suite.reasoning.letters import Letters
from suite.reasoning.problems import training_row
from suite.reference.text import LENGTH, Package, cut_rows, part_of, read_files, repeats_of
from suite.texts import Wanted, collect, split_at
from suite.tokens import Tokens, load_tokens, save_tokens

PARTS = ("training", "calibration", "validation", "evaluation")


@pytest.fixture(scope="module")
def checkpoint(llama):
    return load_model(str(llama))


@pytest.fixture(scope="module")
def shipped():
    return load_model("reference")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of 200 short files, one of which is not UTF-8."""
    root = tmp_path / "site" / "little"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(200):
        words = rng.integers(0, 10**6, 40)  # no two files have a run of 32 characters in common
        (root / ("sub" if i % 2 else ".") / f"m{i}.py").write_text(" ".join(map(str, words)))
    (root / "odd.py").write_bytes("# café\n".encode("latin-1") * 20)
    (root / "data.txt").write_text("no source " * 40)
    info = tmp_path / "site" / "little_dist-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: little-dist\nVersion: 1.2.3\n")
    (info / "top_level.txt").write_text("little\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def wanted(part="training", length=tiny.CONTEXT, **options):
    return Wanted(part=part, length=length, **options)


# A file of rows


@given(rows=st.integers(1, 6), per_row=st.integers(1, 3), rest=st.integers(0, 3), data=st.data())
def test_what_is_saved_is_loaded_with_its_clusters(checkpoint, tmp_path_factory, rows, per_row, rest, data):
    length = 4
    clusters = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    ids = np.random.default_rng(rows).integers(0, tiny.VOCABULARY, (rows, per_row * length + rest))
    path = tmp_path_factory.mktemp("kept") / "t.npz"
    save_tokens(path, Tokens(ids, clusters), checkpoint, "{}")
    found = load_tokens(str(path), "training", checkpoint, length)
    assert np.array_equal(found.rows, ids[:, : per_row * length].reshape(rows * per_row, length))
    assert np.array_equal(found.clusters, np.repeat(clusters, per_row)) and found.rows.dtype == np.int64
    whole = load_tokens(str(path), "training", checkpoint, ids.shape[1])
    assert whole.sha256 == Tokens(ids, clusters).sha256


def test_a_file_of_rows_is_the_same_bytes_again(checkpoint, tmp_path):
    tokens = Tokens(np.arange(12).reshape(3, 4), np.array([0, 0, 5]))
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        save_tokens(file, tokens, checkpoint, "about")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_of_another_vocabulary_are_refused(llama, checkpoint, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    spoken = json.loads((other / "tokenizer.json").read_text())
    vocabulary = spoken["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(spoken))
    save_tokens(tmp_path / "t.npz", Tokens(np.zeros((2, 4), dtype=int), np.arange(2)), checkpoint, "{}")
    with pytest.raises(ValueError, match=r"t\.npz: written in another model's tokens, .*other has another vocabulary"):
        load_tokens(str(tmp_path / "t.npz"), "training", load_model(str(other)), 4)
    bare = tiny.save(tiny.model_of("llama"), tmp_path / "bare")  # has no tokenizer to compare, as with .npy
    assert len(load_tokens(str(tmp_path / "t.npz"), "training", load_model(str(bare)), 4).rows) == 2


@pytest.mark.parametrize(("arrays", "message"), [
    ({"rows": np.zeros((2, 4), int)}, "cannot be read as what `bitfrontier tokens` writes"),
    ({"rows": np.zeros((2, 4)), "clusters": np.arange(2), "vocabulary": np.array("")}, "expected integers of shape"),
    ({"rows": np.zeros((2, 4), int), "clusters": np.arange(3), "vocabulary": np.array("")}, "a cluster for each of 2"),
    ({"rows": np.zeros((2, 4), int), "clusters": np.zeros(2), "vocabulary": np.array("")}, "a cluster for each of 2"),
    (None, "cannot be read as what"),
])  # fmt: skip
def test_files_of_something_else_are_refused(arrays, message, checkpoint, tmp_path):
    path = tmp_path / "t.npz"
    path.write_bytes(b"PK not really") if arrays is None else np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as found:
        load_tokens(str(path), "training", checkpoint, 4)
    assert str(path) in str(found.value) and "\n" not in str(found.value)


def test_an_array_under_the_name_of_a_file_of_rows_is_refused(checkpoint, tmp_path):
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="cannot be read as what"):
        load_tokens(str(tmp_path / "t.npz"), "training", checkpoint, 4)


# Packages


def test_every_file_of_a_package_is_in_exactly_one_part(package):
    found = Package.find("little")
    assert (found.name, found.version) == ("little", "1.2.3")
    parts = {part: found.files(part) for part in PARTS}
    names = [name for files, odd in parts.values() for name in (*files, *odd)]
    assert sorted(names) == sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    assert all(part_of(name) == part for part, (files, odd) in parts.items() for name in (*files, *odd))
    assert [name for _, odd in parts.values() for name in odd] == ["odd.py"]


@pytest.mark.parametrize("part", ["training", "evaluation"])
def test_rows_of_a_package_are_its_files_cut_and_clustered_by_file(part, package, checkpoint):
    tokens, (text,) = collect(["little"], wanted(part), checkpoint)
    files, _ = Package.find("little").files(part)
    assert (text.name, text.clusters, text.documents) == ("little 1.2.3", "file", len(files))
    assert text.rows == len(tokens.rows) > 5 and text.repeated == 0
    assert text.n_tokens == text.n_bytes == sum(map(len, files.values()))  # a token a character
    assert text.left_out == (("odd.py",) if part_of("odd.py") == part else ())
    shown = checkpoint.tokenizer()
    contents = list(files.values())
    for row, owner in zip(tokens.rows, tokens.clusters, strict=True):
        assert "".join(shown.convert_ids_to_tokens(row)) in contents[owner]


def test_evaluation_rows_that_repeat_training_are_dropped(package, checkpoint):
    before, _ = collect(["little"], wanted("evaluation"), checkpoint)
    files, _ = Package.find("little").files("evaluation")
    copied = next(text for text in files.values() if len(text) >= tiny.CONTEXT)
    trained = next(iter(Package.find("little").files("training")[0]))
    (package / trained).write_text("a" * 50 + copied[5:37])  # 32 characters of the first row, in the middle of a file
    after, (text,) = collect(["little"], wanted("evaluation"), checkpoint)
    assert text.repeated == 1 and len(after.rows) == len(before.rows) - 1
    (package / trained).write_text("a" * 50 + copied[5:36])  # 31 are not a run
    assert collect(["little"], wanted("evaluation"), checkpoint)[0].sha256 == before.sha256


def test_the_reference_text_is_a_package_like_others(shipped):
    tokens, (text,) = collect(["sympy"], wanted("calibration", LENGTH), shipped)
    assert tokens.sha256 == load_tokens(None, "calibration", shipped, LENGTH).sha256
    assert text.documents == len(read_files("calibration")) and 0.2 < text.n_tokens / text.n_bytes < 0.5


@pytest.mark.slow
def test_the_reference_text_loses_the_rows_that_its_card_lists(shipped):
    tokens, (text,) = collect(["sympy"], wanted("evaluation", LENGTH), shipped)
    assert text.repeated > 0 and tokens.sha256 == load_tokens(None, "evaluation", shipped, LENGTH).sha256


@pytest.mark.parametrize(("name", "message"), [
    ("no_such_package_anywhere", "expected the import name of an installed package"),
    ("a-b", "expected the import name"), ("six.moves", "expected the import name"), ("tokens.json", "expected the imp"),
    ("this", "one directory of files"), ("sys", "expected the import name"),
])  # fmt: skip
def test_what_is_no_package_is_refused(name, message):
    with pytest.raises(ValueError, match=message) as found:
        Package.find(name)
    assert name in str(found.value)


def test_a_package_that_nothing_installed_is_refused_and_the_standard_library_has_pythons_version(
    tmp_path, monkeypatch
):
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="lonely: no installed distribution has this package"):
        Package.find("lonely")
    assert Package.find("json").version == ".".join(map(str, sys.version_info[:3]))


# Files and documents


@given(st.lists(st.sampled_from(["# a", "#b", "text", "", "## c", " # d"]), max_size=12))
def test_documents_are_the_text_and_begin_at_headings(lines):
    text = "\n".join(lines)
    headings = [line for line in lines if re.fullmatch("# .*", line)]
    if not headings:
        with pytest.raises(ValueError, match=r"heading '# \.\*': no line of x\.txt is one"):
            split_at(text, "# .*", "x.txt")
        return
    documents = split_at(text, "# .*", "x.txt")
    assert "".join(documents) == text and all(documents)
    begun = [document.split("\n")[0] for document in documents]
    assert begun[-len(headings) :] == headings and len(documents) - len(headings) == (lines[0] != "# a")


def test_a_heading_that_is_no_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"heading '\(': not a regular expression"):
        split_at("text", "(", "x.txt")


def test_text_files_have_clusters_by_document_or_by_row_and_drop_what_is_trained_on(checkpoint, tmp_path):
    rng = np.random.default_rng(1)
    said = ["# one\n" + " ".join(map(str, rng.integers(0, 10**6, n))) + "\n" for n in (40, 70, 10)]
    (tmp_path / "x.txt").write_text("".join(said))
    plain, (text,) = collect([str(tmp_path / "x.txt")], wanted(), checkpoint)
    assert plain.sha256 == load_tokens(str(tmp_path / "x.txt"), "training", checkpoint, tiny.CONTEXT).sha256
    assert (text.clusters, text.documents) == ("row", 1)
    split, (text,) = collect([str(tmp_path / "x.txt")], wanted(heading="# .*"), checkpoint)
    assert (text.clusters, text.documents) == ("document", 3)
    assert split.clusters.tolist() == [i for i, part in enumerate(said) for _ in range(len(part) // tiny.CONTEXT)]
    trained = Tokens(split.rows[[1, 4]], split.clusters[[1, 4]])
    left, (text,) = collect([str(tmp_path / "x.txt")], wanted(heading="# .*"), checkpoint, trained)
    assert text.repeated == 2 and np.array_equal(left.rows, np.delete(split.rows, [1, 4], axis=0))
    with pytest.raises(ValueError, match=r"x\.txt: its training part .* 64 tokens, 12 repeat training"):
        collect([str(tmp_path / "x.txt")], wanted(heading="# .*"), checkpoint, split)


def test_several_sources_keep_their_clusters_apart_and_give_so_many_rows_each(package, checkpoint, tmp_path):
    (tmp_path / "x.txt").write_text("the text of a file " * 50)
    sources = [str(tmp_path / "x.txt"), "little", str(tmp_path / "x.txt")]
    tokens, texts = collect(sources, wanted(rows=5), checkpoint)
    assert [text.rows for text in texts] == [5, 5, 5] and len(tokens.rows) == 15
    owners = [set(tokens.clusters[at : at + 5].tolist()) for at in (0, 5, 10)]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert np.array_equal(tokens.rows[:5], tokens.rows[10:])


# Problems


def asked_of(texts):
    return {line.split(":")[0] for text in texts for line in text.split("\n") if line}


@given(st.integers(0, 2**32 - 1), st.integers(20, 300))
def test_held_out_problems_are_none_that_are_trained_on(seed, length):
    rows = {held: [training_row(np.random.default_rng(seed + i), length, held_out=held)[0] for i in range(3)]
            for held in (False, True)}  # fmt: skip
    assert not asked_of(rows[False]) & asked_of(rows[True])
    assert all(len(row) == length for found in rows.values() for row in found)


def test_problems_are_drawn_by_the_seed_and_written_a_token_a_character(shipped):
    letters = Letters.of(shipped.tokenizer().backend_tokenizer, "reference")
    shown = {token: character for character, token in letters.ids.items()}
    parts = {
        part: collect(["reasoning"], wanted(part, LENGTH, rows=20), shipped) for part in ("training", "evaluation")
    }
    texts = {part: ["".join(shown[i] for i in row) for row in found.rows] for part, (found, _) in parts.items()}
    assert not asked_of(texts["training"]) & asked_of(texts["evaluation"])
    assert parts["training"][0].clusters.tolist() == list(range(20))
    again, _ = collect(["reasoning"], wanted("training", LENGTH, rows=20), shipped)
    other, _ = collect(["reasoning"], wanted("training", LENGTH, rows=20, seed=1), shipped)
    assert again.sha256 == parts["training"][0].sha256 != other.sha256
    with pytest.raises(ValueError, match="reasoning: its parts are training and evaluation, not validation"):
        collect(["reasoning"], wanted("validation", LENGTH), shipped)


# Runs


@pytest.mark.parametrize("training", [np.zeros(0, dtype=np.int64), np.zeros(31, dtype=np.int64)])
def test_less_training_than_a_run_is_repeated_by_nothing(training):
    assert not repeats_of(np.zeros((3, 40), dtype=np.int64), training).any()


def test_rows_shorter_than_a_run_cannot_be_compared():
    with pytest.raises(ValueError, match="rows of 16 tokens: expected at least 32"):
        repeats_of(np.zeros((3, 16), dtype=np.int64), np.zeros(100, dtype=np.int64))


# The command


def test_the_command_writes_what_run_takes_and_says_what_it_is(package, llama, checkpoint, tmp_path):
    out = tmp_path / "t.npz"
    asked = ["tokens", str(out), "little", "--model", str(llama), "--rows", "7"]
    found = CliRunner().invoke(bitfrontier, asked, catch_exceptions=False)
    assert found.exit_code == 0 and found.output.startswith("little 1.2.3: ")
    assert "1.000 tokens per byte; 7 rows of 64 tokens, clustered by file" in found.output
    tokens = load_tokens(str(out), "training", checkpoint, tiny.CONTEXT)
    assert tokens.sha256 in found.output and len(tokens.rows) == 7
    with np.load(out) as kept:
        about = json.loads(str(kept["about"]))
    assert about["wanted"]["part"] == "training" and about["texts"][0]["name"] == "little 1.2.3"


@pytest.mark.parametrize(("changes", "message"), [
    (["t.npy", "json"], r"t\.npy: expected a name that ends in \.npz"),
    (["t.npz", "json", "--length", "65"], "length 65: .* takes rows of 2 to 64"),
    (["t.npz", "json", "--part", "evaluation", "--length", "20"], "rows of 20 tokens: expected at least 32"),
    (["no/such/t.npz", "nothing_at_all"], "nothing_at_all: expected the import name"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(changes, message, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(bitfrontier, ["tokens", *changes, "--model", str(llama)])
    assert isinstance(found.exception, ValueError) and re.search(message, str(found.exception))
    assert not list(tmp_path.iterdir())


# Real text


def test_wikitext_is_cut_by_article(shipped):
    path = DATA / "wikitext-2" / "test.txt"
    if not path.is_file():
        pytest.skip("WikiText-2 is not beside this checkout")
    tokens, (text,) = collect([str(path)], wanted("evaluation", LENGTH, heading=" = [^=].* = "), shipped)
    assert text.documents == 63 and text.clusters == "document"  # one is what is before the first article
    assert len(np.unique(tokens.clusters)) == 61  # that and another one are shorter than a row
    assert 0.4 < text.n_tokens / text.n_bytes < 0.5 and len(cut_rows([range(text.n_tokens)], LENGTH)[0]) > text.rows
