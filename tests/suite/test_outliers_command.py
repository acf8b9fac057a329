"""`bitfrontier outliers`: a model's outliers in the coordinates of methods, and doses of them."""

import sys
from dataclasses import replace

import pytest

from suite.bench import Setting, open_bench
from suite.calibration import Calibration
from suite.commands.main import main
from suite.commands.outliers import dosed
from suite.models.architecture import linear
from suite.outliers.figures import ALPHAS, FRACTIONS, Origin, measure_outliers
from suite.outliers.metrics import CRITERIA, dynamic_range, eigenvector_incoherence, excess_kurtosis, incoherence
from suite.rows import OutlierRow, SalienceRow, SmoothingRow
from suite.store import Store

ORIGIN = Origin(model="tiny", model_sha256="0" * 64, data_sha256="1" * 64, code="c", env="e",
                command="bitfrontier outliers", started="now")  # fmt: skip
HADAMARD = "(RotateResidual(kind='hadamard'),)"


def bench_of(model, inputs):
    return open_bench(Setting(model=str(model), calibration=inputs["calibration"], evaluation=inputs["evaluation"]), 0)


def test_figures_are_those_of_the_inputs_and_of_the_weights(llama, inputs):
    bench = bench_of(llama, inputs)
    found = measure_outliers(bench, "none", ORIGIN)
    rows = {(r.layer, r.tensor): r for r in found.outliers}
    assert len(rows) == len(found.outliers) == 3 * (4 + 7)
    assert {(r.coordinates, r.transforms) for r in found.outliers} == {("none", "()")}
    layer = "model.layers.1.mlp.down_proj"
    statistics = Calibration.of(bench.checkpoint, bench.calibration, 1).statistics(1)["mlp.down_proj"]
    W = linear(bench.checkpoint.block(1), "mlp.down_proj").weight
    inputs_row, weights_row = rows[layer, "inputs"], rows[layer, "weights"]
    assert inputs_row.kurtosis == excess_kurtosis(statistics.sample)
    assert inputs_row.dynamic_range == dynamic_range(statistics.sample)
    assert inputs_row.incoherence == eigenvector_incoherence(statistics.gram)
    assert (inputs_row.normal, weights_row.normal, inputs_row.n_channels) == (0, None, 80)
    assert (weights_row.incoherence, weights_row.kurtosis) == (incoherence(W), excess_kurtosis(W))


def test_alphas_and_saliences_are_there_for_every_layer(llama, inputs):
    found = measure_outliers(bench_of(llama, inputs), "none", ORIGIN)
    assert [r.alpha for r in found.smoothing] == list(ALPHAS) * (3 * 4)
    assert {r.criterion for r in found.salience} == set(CRITERIA)
    assert len(found.salience) == 3 * 7 * len(CRITERIA) * len(FRACTIONS)
    for r in found.salience:
        assert r.share is not None and r.share < 1 and abs(r.protected - r.fraction) < 1 / 48


@pytest.mark.parametrize("kind", ["norm", "linear"])
def test_channels_that_the_dial_turned_up_are_normal_outliers(kind, llama, inputs):
    rows = measure_outliers(bench_of(f"{llama}+outliers:{kind}:256", inputs), "none", ORIGIN).outliers
    turned = {"norm": ("q_proj", "gate_proj"), "linear": ("o_proj", "down_proj")}[kind]
    for row in (r for r in rows if r.tensor == "inputs"):
        heads = 2 if row.layer.endswith("o_proj") else 1  # query heads that read one value head
        assert row.normal == (heads if row.layer.endswith(turned) else 0), row.layer


def test_outliers_of_a_norms_gain_leave_rotated_coordinates_as_they_were(llama, inputs):
    plain, turned = (measure_outliers(bench_of(name, inputs), HADAMARD, ORIGIN).outliers
                     for name in (llama, f"{llama}+outliers:norm:64"))  # fmt: skip
    assert plain == turned and {r.coordinates for r in plain} == {"custom"}
    spread = [r for r in measure_outliers(bench_of(f"{llama}+outliers:norm:64", inputs), "none", ORIGIN).outliers
              if r.tensor == "inputs" and r.normal]  # fmt: skip
    rotated = {(r.layer, r.tensor): r for r in turned}
    for row in spread:
        assert rotated[row.layer, "inputs"].normal == 0
        assert rotated[row.layer, "inputs"].max_to_median < row.max_to_median / 4


@pytest.mark.parametrize("method", ["quarot", "duquant"])
def test_in_the_coordinates_of_rotations_no_outliers_are_left(method, llama, inputs):
    bench = bench_of(f"{llama}+outliers:256", inputs)
    before, after = (
        {r.layer: r for r in measure_outliers(bench, name, ORIGIN).outliers if r.tensor == "inputs"}
        for name in ("none", method)
    )
    assert len(before) == len(after) == 3 * 4 and all(r.normal for r in before.values())
    for layer, row in after.items():
        assert (row.coordinates, row.normal, row.massive) == (method, 0, 0)
        assert row.dynamic_range < before[layer].dynamic_range / 2, layer


def outliers(monkeypatch, folder, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["bitfrontier", "outliers", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_writes_its_rows_and_a_second_run_changes_nothing(llama, inputs, tmp_path, monkeypatch, capsys):
    kept = []
    for _ in range(2):
        assert outliers(monkeypatch, tmp_path, llama, "--coordinates", "none,smoothquant", "--transforms", HADAMARD,
                        "--calibration", inputs["calibration"], "--jobs", 1) == 0  # fmt: skip
        with Store(tmp_path / "bitfrontier.db", create=False) as store:
            found = [row for kind in (OutlierRow, SmoothingRow, SalienceRow) for row in store.rows(kind)]
            kept.append([replace(row, started="") for row in found])
    assert kept[0] == kept[1] and len(kept[0]) == 3 * 33 + 12 * len(ALPHAS) + 3 * 21 * len(CRITERIA) * len(FRACTIONS)
    assert {r.model for r in kept[0]} == {str(llama)}
    printed = capsys.readouterr().out
    assert printed.index("none") < printed.index("smoothquant") < printed.index("custom")


def test_doses_are_run_once_and_kept(llama, inputs, tmp_path, monkeypatch, capsys):
    arguments = [llama, "--doses", "--kinds", "norm,linear", "--factors", "64,1", "--methods", "rtn,smoothquant",
                 "--activation-bits", "4", "--calibration", inputs["calibration"], "--evaluation", inputs["evaluation"],
                 "--jobs", 1]  # fmt: skip
    kept = []
    for _ in range(2):
        assert outliers(monkeypatch, tmp_path, *arguments) == 0
        with Store(tmp_path / "bitfrontier.db", create=False) as store:
            kept.append(store.records())
    assert kept[0] == kept[1]  # to the moment they were started
    names = [str(llama), f"{llama}+outliers:norm:64", f"{llama}+outliers:linear:64"]
    assert {(r.model, r.method) for r in kept[0]} == {(n, m) for n in names for m in ("rtn", "smoothquant")}
    kl = {(r.model, r.method): r.kl for r in kept[0]}
    assert kl[names[1], "rtn"] > 1.5 * kl[names[0], "rtn"]
    printed = capsys.readouterr().out
    assert printed.index("rtn, W4A4") < printed.index("smoothquant, W4A4")


def test_a_dose_of_one_is_the_model_itself():
    assert dosed("m", ("linear", "norm"), (4, 1)) == ["m", "m+outliers:linear:4", "m+outliers:norm:4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinates", "quarto"], "unknown method 'quarto'"),
        (["--coordinates", "none", "--transforms", "(RotateNothing(),)"], "unknown name RotateNothing"),
        (["--doses", "--factors", "3"], "FACTOR a power of two from 1 to 256"),
        (["--doses", "--kinds", "norms"], "KIND one of norm, linear, both"),
        (["--doses", "--methods", "rtm"], "did you mean rtn"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_no_store(arguments, message, llama, tmp_path, monkeypatch, capsys):
    assert outliers(monkeypatch, tmp_path, llama, *arguments) == 2 and not list(tmp_path.iterdir())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_doses_of_a_dosed_model_are_refused(llama, tmp_path, monkeypatch, capsys):
    assert outliers(monkeypatch, tmp_path, f"{llama}+outliers:norm:4", "--doses") == 2
    assert "--doses turns the dial itself" in capsys.readouterr().err
