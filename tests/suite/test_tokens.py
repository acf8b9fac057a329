import importlib.metadata
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from suite.models.checkpoint import load_model
from suite.reference import text
from suite.reference.text import cut_rows, part_of, read_files, repeats_of, rows_sha256
from suite.tokens import Tokens, load_tokens

LENGTH = 16


@pytest.fixture(scope="module")
def checkpoint(llama):
    return load_model(str(llama))


def loaded(source, checkpoint, length=LENGTH):
    return load_tokens(str(source), "evaluation", checkpoint, length)


def random_rows(rows=7, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(0, tiny.VOCABULARY, (rows, length))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_integers_of_any_type_are_the_same_rows(kind, checkpoint, tmp_path):
    rows = random_rows()
    np.save(tmp_path / "t.npy", rows.astype(kind))
    found = loaded(tmp_path / "t.npy", checkpoint)
    assert found.rows.dtype == np.int64 and np.array_equal(found.rows, rows)
    assert np.array_equal(found.clusters, np.arange(7))  # each row is a cluster of its own
    assert np.array_equal(found.tensor().numpy(), rows)


def test_longer_rows_are_cut_into_several_of_the_same_cluster_and_the_rest_is_dropped(checkpoint, tmp_path):
    rows = random_rows(3, 2 * LENGTH + 5)
    np.save(tmp_path / "t.npy", rows)
    found = loaded(tmp_path / "t.npy", checkpoint)
    assert np.array_equal(found.rows, rows[:, : 2 * LENGTH].reshape(6, LENGTH))
    assert found.clusters.tolist() == [0, 0, 1, 1, 2, 2]


def test_shorter_rows_stay_as_they_are(checkpoint, tmp_path):
    rows = random_rows(3, LENGTH - 3)
    np.save(tmp_path / "t.npy", rows)
    assert np.array_equal(loaded(tmp_path / "t.npy", checkpoint).rows, rows)


@pytest.mark.parametrize("least, most, bad", [(0, tiny.VOCABULARY, tiny.VOCABULARY), (-1, 5, -1)])
def test_ids_outside_the_vocabulary_are_refused(least, most, bad, checkpoint, tmp_path):
    rows = random_rows()
    rows[2, 3], rows[4, 5] = least, most
    np.save(tmp_path / "t.npy", rows)
    with pytest.raises(ValueError, match=rf"t.npy: token id {bad} is outside the model's vocabulary of 101"):
        loaded(tmp_path / "t.npy", checkpoint)


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.zeros((3, 16)), "expected integers of shape .*, found float64 of shape"),
        (np.zeros(16, dtype=int), "expected integers of shape .*, found int64 of shape"),
        (np.zeros((0, 16), dtype=int), "expected integers"),
        (np.zeros((3, 1), dtype=int), "rows of 1 token predict nothing"),
        (np.array([{}], dtype=object), "cannot be read as .npy"),
    ],
)
def test_arrays_that_are_not_token_rows_are_refused(rows, message, checkpoint, tmp_path):
    np.save(tmp_path / "t.npy", rows, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as found:
        loaded(tmp_path / "t.npy", checkpoint)
    assert str(tmp_path / "t.npy") in str(found.value)


def test_a_text_is_tokenized_with_the_models_own_tokenizer(checkpoint, tmp_path):
    content = "A quick brown fox, 17 times: over the lazy dog."
    (tmp_path / "t.txt").write_text(content)
    found = loaded(tmp_path / "t.txt", checkpoint)
    ids = checkpoint.tokenizer()(content, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(content)  # a token a character, none added
    assert found.rows.tolist() == [ids[:LENGTH], ids[LENGTH : 2 * LENGTH]]
    assert found.clusters.tolist() == [0, 1]


@pytest.mark.parametrize(
    "content, message",
    [("", "empty"), (" \n", "empty"), ("short", "less than one row of 16"), (None, "cannot be read")],
)
def test_a_text_without_a_row_is_refused(content, message, checkpoint, tmp_path):
    if content is not None:
        (tmp_path / "t.txt").write_text(content)
    with pytest.raises(ValueError, match=message) as found:
        loaded(tmp_path / "t.txt", checkpoint)
    assert str(tmp_path / "t.txt") in str(found.value)


def test_a_text_that_is_not_utf_8_is_refused(checkpoint, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00" * 40)
    with pytest.raises(ValueError, match="cannot be read as text"):
        loaded(tmp_path / "t.txt", checkpoint)


def test_a_file_of_another_kind_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"tokens\.json: expected a \.txt, \.npy or \.npz file"):
        loaded("tokens.json", checkpoint)


def test_the_hash_follows_from_rows_their_shape_and_clusters():
    tokens = Tokens(random_rows(), np.arange(7))
    same = Tokens(random_rows().astype(np.int32), np.arange(7))
    assert tokens.sha256 == same.sha256
    changed = tokens.rows.copy()
    changed[-1, -1] += 1
    others = [replace(tokens, rows=changed), replace(tokens, clusters=np.zeros(7, dtype=int)),
              Tokens(tokens.rows.reshape(14, 8), np.arange(7))]  # fmt: skip
    assert len({tokens.sha256, *(other.sha256 for other in others)}) == 4


def test_spread_takes_the_first_the_last_and_what_lies_evenly_between():
    tokens = Tokens(random_rows(101), np.arange(101))
    assert tokens.spread(11 * LENGTH).clusters.tolist() == list(range(0, 101, 10))
    assert np.array_equal(tokens.spread(11 * LENGTH).rows, tokens.rows[::10])
    assert len(tokens.spread(1).rows) == 1
    for everything in (None, 101 * LENGTH, 10**9):
        assert tokens.spread(everything) is tokens and tokens.draw(everything, 0) is tokens


def test_draw_takes_different_rows_in_their_order_and_follows_from_the_seed():
    tokens = Tokens(random_rows(101), np.arange(101))
    drawn = tokens.draw(11 * LENGTH + 3, 0)
    assert len(drawn.rows) == 11 and bool((np.diff(drawn.clusters) > 0).all())
    assert np.array_equal(drawn.rows, tokens.rows[drawn.clusters])
    np.random.seed(1)  # the global generator must not matter
    assert tokens.draw(11 * LENGTH, 0).sha256 == drawn.sha256 != tokens.draw(11 * LENGTH, 1).sha256


def test_rows_are_cut_from_documents_without_crossing_from_one_to_the_next():
    rows, owners = cut_rows([list(range(7)), [9] * 2, list(range(100, 106))], 3)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5], [100, 101, 102], [103, 104, 105]]
    assert owners.tolist() == [0, 0, 2, 2]
    empty, none = cut_rows([[1, 2]], 3)
    assert empty.shape == (0, 3) and none.shape == (0,)
    assert rows_sha256(rows, owners) != rows_sha256(rows, owners + 1)


def test_repeats_are_those_that_a_search_by_hand_finds():
    generator = np.random.default_rng(0)
    training, run = generator.integers(0, 5, 400), 5  # few ids, so that runs do repeat
    rows = generator.integers(0, 5, (60, 9))
    rows[0, :5], rows[1, 4:] = training[:5], training[-5:]  # the first and the last run of the stream
    seen = {tuple(training[i : i + run]) for i in range(len(training) - run + 1)}
    expected = [any(tuple(row[i : i + run]) in seen for i in range(len(row) - run + 1)) for row in rows]
    assert expected[:2] == [True, True] and 0 < sum(expected) < 60
    assert repeats_of(rows, training, run).tolist() == expected


def test_every_file_of_the_text_is_in_exactly_one_part():
    parts = {part: read_files(part) for part in ("training", "calibration", "validation", "evaluation")}
    names = [name for files in parts.values() for name in files]
    assert len(names) == len(set(names)) > 1500
    assert all(part_of(name) == part for part, files in parts.items() for name in files)
    sizes = {part: sum(map(len, files.values())) for part, files in parts.items()}
    assert 0.8 < sizes["training"] / sum(sizes.values()) < 0.95  # 45 of 50 files, which differ in size
    assert min(sizes.values()) > 100_000


@pytest.mark.parametrize("version", ["1.13.3", None])
def test_another_sympy_or_none_is_one_line_that_says_what_to_install(version, monkeypatch):
    if version is None:
        monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ValueError, match=rf"needs sympy==1.14.0, found {version or 'none'}: pip install") as found:
        read_files("calibration")
    assert "\n" not in str(found.value)


def test_without_a_file_the_reference_text_is_tokenized_for_the_model(checkpoint, monkeypatch):
    files = {"a.py": "import this and that " * 3, "b.py": "short", "c.py": "print(1, 2, 3, 4, 5)"}
    monkeypatch.setattr("suite.tokens.read_files", lambda part: files)
    found = load_tokens(None, "evaluation", checkpoint, LENGTH)
    assert found.clusters.tolist() == [0, 0, 0, 2]  # the file each row is from
    decoded = ["".join(checkpoint.tokenizer().convert_ids_to_tokens(row)) for row in found.rows]
    assert "".join(decoded[:3]) == files["a.py"][: 3 * LENGTH] and decoded[3] == files["c.py"][:LENGTH]
    again = load_tokens(None, "evaluation", checkpoint, LENGTH)
    assert again.sha256 == found.sha256


def test_a_model_without_a_tokenizer_asks_for_token_files(llama, tmp_path):
    path = tiny.save(tiny.model_of("llama"), tmp_path / "bare")
    (tmp_path / "t.txt").write_text("any text that is long enough for a row")
    with pytest.raises(ValueError, match="no tokenizer in this directory; give tokens as"):
        loaded(tmp_path / "t.txt", load_model(str(path)))
    (path / "tokenizer.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(ValueError, match="no tokenizer in this directory; give tokens as"):
        loaded(tmp_path / "t.txt", load_model(str(path)))
