import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from suite.models.checkpoint import load_model


@pytest.fixture
def rows():
    return torch.randint(0, tiny.VOCABULARY, (5, 33), generator=torch.Generator().manual_seed(3))


def ours(path, rows):
    return tiny.logits_of(load_model(str(path)), rows)


def theirs(path, rows):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        return model(input_ids=rows).logits


@pytest.mark.parametrize("variant", tiny.ARCHITECTURES)
def test_logits_block_by_block_are_those_of_the_whole_model_bit_for_bit(variant, rows, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    tiny.save(tiny.model_of(architecture, **options), tmp_path)
    assert torch.equal(ours(tmp_path, rows), theirs(tmp_path, rows))


@pytest.mark.parametrize("variant", ["mistral", "qwen2 window from block 1"])
def test_a_sliding_window_hides_what_is_too_far_back(variant, rows, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    tiny.save(tiny.model_of(architecture, **options), tmp_path / "window")
    tiny.save(tiny.model_of(architecture, **{**options, "sliding_window": None}), tmp_path / "none")
    near, far = slice(0, tiny.WINDOW), slice(tiny.WINDOW, None)
    windowed, open_ = ours(tmp_path / "window", rows), ours(tmp_path / "none", rows)
    assert torch.equal(windowed[:, near], open_[:, near])
    assert not torch.allclose(windowed[:, far], open_[:, far], rtol=0.1)


def test_logits_in_parts_are_those_at_once(llama, rows):
    checkpoint = load_model(str(llama))
    many = rows.repeat(40, 1)  # 6,600 tokens: more than one part
    assert len(checkpoint.row_parts(checkpoint.embed(many))) > 1
    together = ours(llama, many)
    # a product of other shapes may sum in another order: n roundings of n products of the size of the largest
    bound = 4 * 80 * torch.finfo(torch.float32).eps * together.abs().max()
    assert (together[: len(rows)] - ours(llama, rows)).abs().max() <= bound


def test_weights_stored_in_bfloat16_are_read_as_float32(rows, tmp_path):
    tiny.save(tiny.model_of("llama").bfloat16(), tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert torch.equal(ours(tmp_path, rows), theirs(tmp_path, rows))


def test_shards_give_the_same_hash_and_the_same_logits(rows, tmp_path):
    model = tiny.model_of("llama")
    whole, shards = tiny.save(model, tmp_path / "whole"), tiny.save(model, tmp_path / "shards", max_shard_size="60KB")
    assert (shards / "model.safetensors.index.json").is_file() and len(list(shards.glob("*.safetensors"))) > 2
    assert load_model(str(whole)).sha256 == load_model(str(shards)).sha256
    assert torch.equal(ours(whole, rows), ours(shards, rows))


def test_any_weight_changes_the_hash(llama, tmp_path):
    first = load_model(str(llama)).sha256
    tensors = load_file(llama / "model.safetensors")
    seen = {first}
    for name in ("model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"):
        copy = shutil.copytree(llama, tmp_path / name)
        changed = tensors[name].clone()
        changed.view(-1)[-1] = torch.nextafter(changed.view(-1)[-1], torch.tensor(9.0))  # the least change there is
        save_file({**tensors, name: changed}, copy / "model.safetensors", {"format": "pt"})
        seen.add(load_model(str(copy)).sha256)
    assert len(seen) == 4


def test_the_hash_names_the_configuration_but_not_the_place(llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "elsewhere")
    assert load_model(str(copy)).sha256 == load_model(str(llama)).sha256
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert load_model(str(copy)).sha256 != load_model(str(llama)).sha256


def test_an_unsupported_architecture_is_an_error_that_lists_the_supported_ones(llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "gpt")
    (copy / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2': expected one of llama, mistral, qwen2, qwen3, bitnet") as found:
        load_model(str(copy))
    assert str(copy) in str(found.value)


def remove_tensor(path):
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors")


def reshape_tensor(path):
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(80, 47)
    save_file(tensors, path / "model.safetensors")


def spoil_config(path):
    (path / "config.json").write_text('{"model_type": "llama"')


def impossible_config(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5, "hidden_size": "many"}))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (remove_tensor, "the first is model.layers.1.mlp.up_proj.weight"),
        (reshape_tensor, "model.layers.1.mlp.up_proj.weight"),
        (spoil_config, "config.json is not a model's configuration"),
        (impossible_config, "config.json: .*hidden_size"),
        (lambda path: (path / "config.json").unlink(), "no config.json"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_opened(spoil, message, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "spoiled")
    spoil(copy)
    with pytest.raises(ValueError, match=message) as found:
        load_model(str(copy))
    assert str(copy) in str(found.value)


def test_a_block_is_a_copy_of_its_own(llama):
    checkpoint = load_model(str(llama))
    block = checkpoint.block(0)
    block.mlp.up_proj.weight.zero_()
    assert bool(checkpoint.block(0).mlp.up_proj.weight.any())
    assert not any(parameter.requires_grad for parameter in block.parameters())
