import json
import sqlite3
from dataclasses import replace

import pytest
import tiny
import torch
from click.testing import CliRunner

from suite import run
from suite.commands.main import bitfrontier
from suite.models.checkpoint import load_model
from suite.rows import SpeedRow
from suite.runtime import plain_runtime
from suite.runtime.choice import _crossing
from suite.runtime.record import measure_speed
from suite.runtime.speed import Spread, race
from suite.store import Store

RECIPE = "Recipe(weights=Target(Integer(bits=4, group=32)))"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("speed")
    path = tiny.save(tiny.model_of("llama", hidden_size=64, intermediate_size=96), root / "model")
    tokens = [str(tiny.save_tokens(root / f"{name}.npy", 6, tiny.CONTEXT, seed)) for seed, name in enumerate("ab", 1)]
    run(str(path), recipes=[RECIPE], save=root / "packed", calibration=tokens[0], evaluation=tokens[1],
        store=root / "s.db", jobs=1)  # fmt: skip
    return root


@pytest.fixture(scope="module")
def row(root):
    before = torch.get_num_threads()
    found = measure_speed(str(root / "packed"), product="int4pack", prompt=8, tokens=4, rounds=2)
    torch.set_num_threads(before)
    return found


def test_a_spread_is_a_median_between_quartiles():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(3.0, 2.0, 4.0)


def test_the_crossing_is_where_two_straight_lines_meet():
    first, second = (2.0, 2.0 + 127 * 3), (50.0, 50.0 + 127 * 1)  # 2 + 3 (n - 1) and 50 + (n - 1) meet at n = 25
    assert _crossing((1, 128), first, second) == 25


def test_a_token_reads_weights_and_the_cache(root):
    plain = plain_runtime(load_model(str(root / "model")))
    parameters = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + tiny.VOCABULARY * 64  # no embedding
    assert plain.token_bytes == 2 * parameters
    found = race({"plain": plain}, torch.arange(1, 9), 5, 1)
    # 4 steps behind 8 tokens: 10 in the middle, keys and values of 2 heads of 16 channels, in 3 blocks
    assert found.speeds["plain"].token_bytes == 2 * parameters + 10 * 3 * 2 * 2 * 16 * 2
    assert found.decode_ratio["plain"] == Spread(1.0, 1.0, 1.0) and found.bandwidth > 0
    assert found.speeds["plain"].roofline(1e9) == 1e9 / found.speeds["plain"].token_bytes


def test_a_tied_head_is_read_and_counted(tmp_path):
    path = tiny.save(tiny.model_of("llama", tie_word_embeddings=True), tmp_path)
    plain = plain_runtime(load_model(str(path)), torch.float32)
    assert plain.token_bytes == sum(p.nbytes for p in plain.model.parameters())


def test_speeds_go_into_the_store_and_into_their_records(root, row):
    with Store(root / "s.db") as store:
        (before,) = store.records()
        store.put_speed(row)
        store.put_speed(row)
        assert store.rows(SpeedRow) == [row]
        (after,) = store.records()
    assert before.tokens_per_second is None and after == replace(before, tokens_per_second=row.decode)


def test_other_models_records_are_left_alone(root, row, tmp_path):
    with Store(root / "s.db") as store:
        (record,) = store.records()
    others = [replace(record, tokens_per_second=None, **changed)
              for changed in ({"cell": "a", "seed": 1}, {"cell": "b", "code": "older"}, {"cell": "c", "recipe": "x"},
                              {"cell": "d", "model_sha256": "another"}, {"cell": "e", "bits": 3})]  # fmt: skip
    with Store(tmp_path / "s.db") as store:
        for other in others:
            store.put(other)
        store.put_speed(row)
        assert all(found.tokens_per_second is None for found in store.records())


def test_stores_from_before_there_was_a_runtime_are_read_and_written(root, row, tmp_path):
    path = tmp_path / "old.db"
    with Store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("drop table speeds")
    connection.close()
    with Store(path, create=False) as store:
        assert store.rows(SpeedRow) == []
    with Store(path) as store:
        store.put_speed(row)
        assert store.rows(SpeedRow) == [row]


def test_a_row_says_what_was_taken(row):
    found = json.loads(row.products)
    assert found == {"taken": [{"products": "Int4Pack", "layers": 21}], "measured": []}
    assert (row.device, row.product, row.prompt, row.tokens, row.rounds) == ("cpu", "int4pack", 8, 4, 2)
    assert json.loads(row.fallbacks) == [] and row.base_token_bytes > 2 * row.token_bytes


def test_a_model_whose_base_is_gone_is_timed_alone(root, tmp_path):
    moved = tmp_path / "packed"
    moved.mkdir()
    for file in (root / "packed").glob("*.*"):
        (moved / file.name).write_bytes(file.read_bytes())
    before = torch.get_num_threads()
    row = measure_speed(str(moved), product="dequantize", prompt=4, tokens=3, rounds=1)
    torch.set_num_threads(before)
    assert row.base_decode is None and row.decode_ratio is None and row.decode > 0
    assert any(note.startswith("base: ") for note in json.loads(row.fallbacks))


def test_the_command_prints_and_stores(root):
    store = root / "command.db"
    before = torch.get_num_threads()
    asked = ["speed", str(root / "packed"), "--prompt", "8", "--tokens", "3", "--rounds", "1", "--threads", "1",
             "--product", "int8pack", "--store", str(store)]  # fmt: skip
    found = CliRunner().invoke(bitfrontier, asked, catch_exceptions=False)
    torch.set_num_threads(before)
    assert found.exit_code == 0
    for text in ("decode ", "prefill ", "bfloat16 ", "roofline ", "21 layers: Dequantize", "int8pack does not take"):
        assert text in found.output
    with Store(store, create=False) as opened:
        (row,) = opened.rows(SpeedRow)
    assert row.product == "int8pack" and row.threads == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--product", "int5"], "product 'int5': expected one of"),
        (["--prompt", "60"], "has a context of 64"),
        (["--tokens", "1"], "Invalid value"),
        (["--base", "nowhere"], "base nowhere"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "there is no GPU")]),
    ],
)
def test_bad_input_is_refused_and_nothing_written(root, options, text, tmp_path):
    before = torch.get_num_threads()
    asked = ["speed", str(root / "packed"), "--prompt", "8", "--tokens", "8", "--store", str(tmp_path / "s.db")]
    found = CliRunner().invoke(bitfrontier, [*asked, *options])
    torch.set_num_threads(before)
    assert found.exit_code != 0 and text in f"{found.output} {found.exception}"
    assert not (tmp_path / "s.db").exists()


def test_what_is_not_packed_is_refused(root):
    with pytest.raises(ValueError, match="expected a directory that `run --save` wrote"):
        measure_speed(str(root / "model"))
