"""Bad input ends with one line on standard error that names it, exit status 2, and nothing written."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from suite.commands.main import main
from suite.store import VERSION, Store


def spoiled(llama, folder, change):
    """A copy of the model whose tensors `change` has edited in place."""
    path = shutil.copytree(llama, folder / "model")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return [path]


def no_directory(llama, folder):
    return [folder / "nowhere"], "nowhere: no such directory"


def empty_directory(llama, folder):
    (folder / "model").mkdir()
    return [folder / "model"], "model: no config.json"


def truncated_safetensors(llama, folder):
    (path,) = spoiled(llama, folder, dict)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return [path], "model.safetensors is not a readable safetensors file"


def pickle_checkpoint(llama, folder):
    path = shutil.copytree(llama, folder / "model")
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return [path], "expected weights in safetensors, found pytorch_model.bin, and pickles are not read"


def nan_weight(llama, folder):
    name = "model.layers.1.mlp.down_proj.weight"
    return spoiled(llama, folder, lambda t: t[name].view(-1)[7].fill_(torch.nan)), f"{name} holds NaN"


def infinite_weight(llama, folder):
    return spoiled(llama, folder, lambda t: t["model.norm.weight"][0].fill_(torch.inf)), "model.norm.weight holds NaN"


def missing_tensor(llama, folder):
    name = "model.layers.2.input_layernorm.weight"
    return spoiled(llama, folder, lambda t: t.pop(name)), f"1 tensors are missing, the first is {name}"


def unsupported_architecture(llama, folder):
    path = shutil.copytree(llama, folder / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    return [path], "unsupported architecture 'opt': expected one of llama, mistral, qwen2, qwen3, bitnet"


def ids_beyond_the_vocabulary(llama, folder):
    np.save(folder / "t.npy", np.full((3, 16), tiny.VOCABULARY))
    return [llama, "--evaluation", folder / "t.npy"], "token id 101 is outside the model's vocabulary of 101"


def floating_tokens(llama, folder):
    np.save(folder / "t.npy", np.zeros((3, 16)))
    return [llama, "--calibration", folder / "t.npy"], "expected integers of shape (sequences, length)"


def empty_text(llama, folder):
    (folder / "t.txt").touch()
    return [llama, "--evaluation", folder / "t.txt"], "t.txt: the text is empty"


def missing_tokens(llama, folder):
    return [llama, "--evaluation", folder / "none.npy"], "none.npy: cannot be read"


def tokens_of_another_kind(llama, folder):
    return [llama, "--evaluation", folder / "tokens.json"], "expected a .txt, .npy or .npz file"


def a_row_beyond_the_context(llama, folder):
    return [llama, "--length", 65], "length 65: .* takes rows of 2 to 64 tokens"


def a_row_of_one(llama, folder):
    return [llama, "--length", 1], "length 1: .* takes rows of 2 to 64 tokens"


def no_bits(llama, folder):
    return [llama, "--bits", "0"], "bits 0: rtn takes 1 to 8"


def seventeen_bits(llama, folder):
    return [llama, "--bits", "4,17"], "bits 17: rtn takes 1 to 8"


def bits_that_are_no_number(llama, folder):
    return [llama, "--bits", "x"], "'x' is not a list of numbers like 1.58,2,3"


def unknown_method(llama, folder):
    return [llama, "--methods", "gtpq"], "unknown method 'gtpq': did you mean gptq?"


def group_of_nothing(llama, folder):
    return [llama, "--group", 0], "group 0: expected a positive integer"


def recipe_that_does_not_parse(llama, folder):
    return [llama, "--recipe", "Target(Integer(bits=4)"], "recipe 'Target(Integer(bits=4)' does not parse"


def recipe_of_unknown_names(llama, folder):
    return [llama, "--recipe", "__import__('os').getcwd()"], "is neither a constant, a tuple nor a constructor"


def newer_store(llama, folder):
    with Store(folder / "s.db") as store:
        store._connection.execute(f"pragma user_version = {VERSION + 1}")
    return [llama, "--store", folder / "s.db"], f"s.db has store version {VERSION + 1}, this bitfrontier reads version"


def no_store(llama, folder):
    (folder / "s.db").write_text("not a store, but a letter to the reader " * 9)
    return [llama, "--store", folder / "s.db"], "s.db is not a bitfrontier store"


def another_programs_store(llama, folder):
    connection = sqlite3.connect(folder / "s.db")
    connection.execute("create table mail (sender)")
    connection.close()
    return [llama, "--store", folder / "s.db"], "s.db is not a bitfrontier store: it is another program's SQLite file"


def store_below_a_file(llama, folder):
    (folder / "file").touch()
    return [llama, "--store", folder / "file" / "s.db"], "cannot write .*s.db: .*file is a file"


def store_in_no_directory(llama, folder):
    return [llama, "--store", folder / "nowhere" / "s"], "cannot .*nowhere"


def output_below_a_file(llama, folder):
    (folder / "file").touch()
    return [llama, "--save", folder / "file" / "out"], "cannot write .*out: .*file is a file"


def export_below_a_file(llama, folder):
    (folder / "file").touch()
    return [llama, "--export", folder / "file" / "deep" / "out"], "cannot write .*out: .*file is a file"


def output_that_is_a_file(llama, folder):
    (folder / "file").touch()
    return [llama, "--save", folder / "file"], "'.*file' is a file"


def unknown_option(llama, folder):
    return [llama, "--bit", "4"], "No such option '--bit'"


def negative_seed(llama, folder):
    return [llama, "--seed", "-1"], "-1 is not in the range"


CASES = [
    no_directory, empty_directory, truncated_safetensors, pickle_checkpoint, nan_weight, infinite_weight,
    missing_tensor, unsupported_architecture, ids_beyond_the_vocabulary, floating_tokens, empty_text, missing_tokens,
    tokens_of_another_kind, a_row_beyond_the_context, a_row_of_one, no_bits, seventeen_bits, bits_that_are_no_number,
    unknown_method, group_of_nothing, recipe_that_does_not_parse, recipe_of_unknown_names, newer_store, no_store,
    another_programs_store, store_below_a_file, store_in_no_directory, output_below_a_file, export_below_a_file,
    output_that_is_a_file, unknown_option, negative_seed,
]  # fmt: skip


def tree(*folders):
    return {path: path.read_bytes() if path.is_file() else None for f in folders for path in sorted(f.rglob("*"))}


def command(arguments, inputs):
    """`bitfrontier run` with these arguments, and good ones where they say nothing."""
    words = [str(word) for word in arguments]
    for option, value in (("--calibration", inputs["calibration"]), ("--evaluation", inputs["evaluation"]),
                          ("--methods", "rtn"), ("--bits", "4"), ("--jobs", "1")):  # fmt: skip
        if option not in words and not (option in ("--methods", "--bits") and "--recipe" in words):
            words += [option, value]
    return ["run", *words]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.replace("_", " "))
def test_one_line_exit_status_two_and_nothing_written(case, llama, inputs, tmp_path, monkeypatch, capfd):
    folder, here = tmp_path / "folder", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    arguments, message = case(llama, folder)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["bitfrontier", *command(arguments, inputs)])
    before = tree(folder, here, llama)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and out == ""
    assert err.startswith("bitfrontier: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert re.search(message if ".*" in message else re.escape(message), err), err
    assert "Traceback" not in err
    assert tree(folder, here, llama) == before


@pytest.mark.parametrize("subcommand", ["show", "report"])
def test_commands_that_read_a_store_refuse_what_is_none(subcommand, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.db").write_text("not a store, but a letter to the reader " * 9)
    for store, message in (("none.db", "no store at"), ("letter.db", "is not a bitfrontier store")):
        monkeypatch.setattr(sys, "argv", ["bitfrontier", subcommand, "--store", store])
        with pytest.raises(SystemExit) as ended:
            main()
        err = capfd.readouterr().err
        assert ended.value.code == 2 and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["letter.db"]


def test_good_input_ends_with_zero_and_a_dry_run_writes_nothing(llama, inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for extra, files in ((["--dry-run"], []), ([], ["bitfrontier.db"])):
        monkeypatch.setattr(sys, "argv", ["bitfrontier", *command([llama, *extra], inputs)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert ended.value.code == 0 and "rtn" in out and err == ""
        assert [path.name for path in tmp_path.iterdir()] == files


def test_a_failed_cell_ends_with_one(llama, inputs, tmp_path, monkeypatch, capfd):
    from suite import engine

    def fail(bench, pick, blank):
        raise RuntimeError("no luck")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "measure", fail)
    monkeypatch.setattr(sys, "argv", ["bitfrontier", *command([llama], inputs)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "RuntimeError: no luck" in capfd.readouterr().out


def test_the_command_itself_as_a_process(inputs, tmp_path):
    arguments = command(["nowhere"], inputs)
    code = "import sys; from suite.commands.main import main; sys.argv[0] = 'bitfrontier'; main()"
    ended = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True,
                           env=os.environ | {"PYTHONWARNINGS": "default"}, check=False)  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "bitfrontier: nowhere: no such directory\n"
    assert not list(tmp_path.iterdir())
