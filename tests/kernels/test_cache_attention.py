"""Attention over packed caches: what is stored, what is read, and softmax in float64."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter

from kernels.cache_attention import Cache, append, cache_attention, cache_attention_reference, pack, plan
from kernels.cache_attention.packing import HEAD_DIMS, from_words, run_of, to_words
from kernels.cache_attention.reference import dequantize
from kernels.cache_attention.triton import splits_for
from suite.kv_cache.held import Held, Side
from suite.methods.kivi import KIVI

BY_WIDTH = pytest.mark.parametrize("bits", [2, 4, 16])
HALVES = (torch.float16, torch.bfloat16)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, batch: int, heads: int, tokens: int, channels: int, spread: float = 1.0) -> list[torch.Tensor]:
    draw = generator(seed)
    return [(spread * torch.randn(batch, heads, tokens, channels, generator=draw)).half() for _ in range(2)]


def counts(*tokens: int) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int32)


def allowed(query: torch.Tensor, cache: Cache) -> torch.Tensor:
    """How far an output (batch, heads, D) may be from float64's.

    The weights of the softmax are rounded to float16, by 2^-12 of their size at most to nearest, or by 2^-25, half its
    smallest number, where the largest of a part of the tokens is 1, so that their sum is 1 at least. Queries are
    brought to 1 and lose 2^-25 of their largest; products with keys are summed in float32, D terms; an exponential has
    a relative error of 2^-22 (CUDA C++ Programming Guide), and a difference of x in its exponent one of x ln 2 = the
    error of the scores. Their sums, n terms in float32, and the products with them make 2 n 2^-24 more. The output is
    rounded; the interpreter cuts bfloat16 off.
    """
    keys, values = dequantize(cache)
    batch, _, width = query.shape
    grouped = query.double().reshape(batch, keys.shape[1], -1, width)
    scores = grouped @ keys.transpose(2, 3) * width**-0.5
    there = (torch.arange(cache.capacity) < cache.tokens[:, None])[:, None, None]
    weights = scores.masked_fill(~there, -torch.inf).softmax(-1)
    summed = (grouped.abs() @ keys.abs().transpose(2, 3)).amax(-1, keepdim=True) * width**-0.5 * width * 2.0**-24
    lost = 2 * grouped.abs().amax(-1, keepdim=True) * 2.0**-25 * keys.abs().sum(-1).amax(-1)[..., None, None]
    relative = 2.0**-12 + 2 * (summed + lost * width**-0.5 + 2.0**-22) + 2 * cache.capacity * 2.0**-24
    error = relative * (weights @ values.abs()) + 2.0**-25 * (there * values.abs().amax(-1)[:, :, None]).sum(
        -1, keepdim=True
    )
    reference = cache_attention_reference(query, cache).abs()
    return error.reshape(query.shape) + reference * torch.finfo(query.dtype).eps + 2.0**-25


def close(query: torch.Tensor, cache: Cache) -> bool:
    error = (cache_attention(query, cache).double() - cache_attention_reference(query, cache)).abs()
    return bool((error <= allowed(query, cache)).all())


# what is stored


@settings(max_examples=30)
@given(st.sampled_from([2, 4]), st.integers(1, 4), st.sampled_from(HEAD_DIMS), st.integers(0, 2**32))
def test_words_hold_every_code(bits, rows, channels, seed):
    codes = torch.randint(2**bits, (rows, channels), generator=generator(seed), dtype=torch.int32)
    words = to_words(codes, bits)
    assert words.shape == (rows, channels * bits // 16) and words.dtype == torch.int16
    assert torch.equal(from_words(words, bits), codes)


@pytest.mark.parametrize(("bits", "groups", "expected"), [(4, 32, 5), (2, 32, 3), (2, 64, 2.5), (4, 128, 4.25)])
def test_bits_of_a_number(bits, groups, expected):
    keys, values = drawn(0, 1, 2, 256, 128)
    cache = pack(keys, values, counts(256), bits=bits, key_group=groups, value_group=groups)
    names = ("keys", "key_scale", "key_least", "values", "value_scale", "value_least")
    parts = [getattr(cache, name) for name in names]
    assert sum(part.nbytes for part in parts) * 8 / (2 * keys.numel()) == expected


@pytest.mark.parametrize("groups", [(32, 32), (64, 16), (128, 64)])
@pytest.mark.parametrize("bits", [2, 4])
def test_what_is_packed_is_within_half_a_step(bits, groups):
    keys, values = drawn(bits, 2, 2, 512, 64)
    cache = pack(keys, values, counts(512, 300), bits=bits, key_group=groups[0], value_group=groups[1])
    grouped = keys.double().unflatten(2, (-1, groups[0])), values.double().unflatten(3, (-1, groups[1]))
    for x, read, axis in zip(grouped, dequantize(cache), (3, 4), strict=True):
        least, step = x.amin(axis, keepdim=True), (x.amax(axis, keepdim=True) - x.amin(axis, keepdim=True))
        step = step / (2**bits - 1)
        # scale, least value and what is read are float16: three roundings of at most 2^-11 of the largest number
        bound = (step / 2 + (2**bits) * step * 2.0**-11 + x.abs().amax(axis, keepdim=True) * 2.0**-10).expand_as(x)
        for sequence, end in enumerate((512, 300)):
            error = (read.unflatten(axis - 1, x.shape[axis - 1 : axis + 1]) - x).abs()[sequence]
            inside = (torch.arange(512) < end)[None, :, None].expand(2, 512, 64).reshape(x.shape[1:])
            assert bool((error <= bound[sequence])[inside].all()), (axis, least.shape)


@pytest.mark.parametrize("tokens", [1, 31, 127, 128, 129, 200, 256, 257, 300, 384])
def test_the_newest_tokens_are_exact_when_the_suite_says_so(tokens):
    """The residual window of the suite's KIVI, whose evaluations this kernel is to reproduce."""
    keys, values = drawn(tokens, 1, 1, tokens, 64)
    cache = pack(keys, values, counts(tokens), bits=2)
    target = KIVI.build(bits=2).cache
    found = dequantize(cache)
    for x, read, side in zip((keys, values), found, (target.keys, target.values), strict=True):
        changed = (read[0, 0, :tokens] != x[0, 0].double()).any(1)
        rounded = target.rounded(side, tokens)
        assert not changed[rounded:].any() and changed[:rounded].all()
    assert int(cache.packed[0]) % 128 == 0 and tokens - int(cache.packed[0]) <= cache.window_keys.shape[2]


def test_constant_groups_are_kept():
    keys = torch.full((1, 1, 384, 64), 3.25, dtype=torch.float16)
    cache = pack(keys, -keys, counts(384), bits=2)
    assert int(cache.packed[0]) == 256
    found = cache_attention(torch.ones(1, 1, 64, dtype=torch.float16), cache)
    assert torch.equal(found, torch.full_like(found, -3.25))


# what is read


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_is_exact_in_every_place(bits, channels):
    """Attention to one token alone: its score is far above the others', so the output is its values."""
    tokens = 128
    codes = (torch.arange(tokens)[:, None] + torch.arange(channels)) % 2**bits
    keys, _ = drawn(0, 1, 1, tokens, channels)
    cache = pack(keys, keys, counts(tokens), bits=bits)
    cache = replace(
        cache, packed=counts(tokens), values=to_words(codes, bits)[None, None],
        value_scale=torch.ones_like(cache.value_scale), value_least=torch.full_like(cache.value_least, -3),
    )  # fmt: skip
    read = dequantize(cache)[0][0, 0]
    for token in (0, 33, 127):
        query = (4096 * read[token] / read[token].norm()).half()[None, None]
        scores = (query[0, 0].double() @ read.T).sort(descending=True)
        assert int(scores.indices[0]) == token and (scores.values[0] - scores.values[1]) * channels**-0.5 > 30
        assert torch.equal(cache_attention(query, cache)[0, 0], (codes[token] - 3).half())


# attention


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from([2, 4, 16]), st.integers(1, 2), st.integers(1, 2), st.integers(1, 20), st.sampled_from([64, 128]),
    st.lists(st.integers(1, 600), min_size=2, max_size=2), st.sampled_from([32, 64, 128]), st.sampled_from([32, 64]),
    st.sampled_from(HALVES), st.sampled_from([2.0**-8, 1.0, 8.0]), st.integers(0, 2**32),
)  # fmt: skip
def test_attention_is_within_its_rounding(
    bits, batch, kv_heads, shared, channels, tokens, key_group, value_group, dtype, spread, seed
):  # fmt: skip
    tokens = tokens[:batch]
    keys, values = drawn(seed, batch, kv_heads, max(tokens), channels, spread)
    cache = pack(keys, values, counts(*tokens), bits=bits, key_group=key_group, value_group=value_group)
    query = torch.randn(batch, kv_heads * shared, channels, generator=generator(seed + 1)).to(dtype)
    assert close(query, cache)


SHORT = [1, 2, 31, 32, 33, 127, 128, 129, 1000]
LONG = [(4, 4097), (2, 4097), (16, 4097), (4, 5000), (2, 5000), (16, 5000)]
IN_DEFAULT = [(4, 5000), (16, 4097)]


@pytest.mark.parametrize(("bits", "tokens"), [
    *((bits, tokens) for bits in (2, 4, 16) for tokens in SHORT),
    *(pytest.param(*case, marks=() if case in IN_DEFAULT else pytest.mark.slow) for case in LONG),
])  # fmt: skip
def test_attention_agrees_with_float64_to_a_thousandth(bits, tokens):
    keys, values = drawn(tokens, 1, 1, tokens, 64)
    cache = pack(keys, values, counts(tokens), bits=bits)
    query = torch.randn(1, 2, 64, generator=generator(1)).half()
    found, wanted = cache_attention(query, cache).double(), cache_attention_reference(query, cache)
    assert (plan(query, cache).grid[1] > 1) == (tokens > 1024 - 128)  # two shares of four tiles or more
    assert (found - wanted).norm() <= 1e-3 * wanted.norm() and close(query, cache)


@pytest.mark.parametrize("channels", [80, 96, 112, 256])
@BY_WIDTH
def test_heads_of_other_sizes(bits, channels):
    """Runs that are padded in registers, two blocks of words, and more query heads than a program takes."""
    keys, values = drawn(channels, 1, 1, 430, channels)
    group = 32 if channels == 256 else channels // 2 if bits == 4 else channels
    cache = pack(keys, values, counts(430), bits=bits, value_group=group)
    if bits < 16:
        assert int(cache.packed[0]) == 256 and cache.keys.nbytes == 512 * channels * bits // 8  # no padding is stored
    assert close(torch.randn(1, 9, channels, generator=generator(2)).half(), cache)


@pytest.mark.parametrize(("channels", "bits", "group"), [(128, 4, 16), (256, 4, 16), (96, 4, 32), (112, 2, 16)])
def test_groups_that_part_a_run_are_refused(channels, bits, group):
    keys, values = drawn(0, 1, 1, 4, channels)
    with pytest.raises(ValueError, match=f"value_group is {group}, expected a positive multiple of"):
        pack(keys, values, counts(4), bits=bits, value_group=group)
    assert group % run_of(channels, bits)


@BY_WIDTH
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3, 6e4])
def test_queries_of_any_size(bits, size):
    """Larger ones than float16 times a scale could hold, smaller ones than its smallest normal number."""
    keys, values = drawn(3, 1, 1, 300, 64)
    cache = pack(keys / 64, values, counts(300), bits=bits)
    query = (size * torch.randn(1, 3, 64, generator=generator(4)).clamp(-1, 1)).half()
    assert close(query, cache)


@BY_WIDTH
def test_a_query_of_zeros_gives_the_mean(bits):
    keys, values = drawn(5, 1, 1, 200, 64)
    cache = pack(keys, values, counts(200), bits=bits)
    query = torch.zeros(1, 1, 64, dtype=torch.float16)
    mean = dequantize(cache)[1][0, 0, :200].mean(0)
    assert torch.allclose(cache_attention(query, cache)[0, 0].double(), mean, rtol=2.0**-11, atol=1e-4)


def test_the_scaling_is_taken():
    keys, values = drawn(6, 1, 1, 150, 64)
    cache = pack(keys, values, counts(150), bits=4)
    query = torch.randn(1, 2, 64, generator=generator(7)).half()
    found = cache_attention(query, cache, 0.5)
    assert torch.equal(found, cache_attention((query * 4), cache))  # 4 / sqrt(64), powers of two
    assert (found.double() - cache_attention_reference(query, cache, 0.5)).abs().max() < 4e-3


# programs that share a sequence


@pytest.fixture
def shared():
    """Five tiles and a tail, and the launch with other splits."""
    keys, values = drawn(8, 2, 1, 900, 64)
    cache = pack(keys, values, counts(900, 140), bits=4)
    query = torch.randn(2, 3, 64, generator=generator(9)).half()
    launch = plan(query, cache)

    def launched(splits: int):
        left = (2, splits, 3)
        arguments = dict(launch.arguments) | {
            "partial": torch.full((*left, 64), torch.nan), "tops": torch.full(left, torch.nan),
            "sums": torch.full(left, torch.nan), "tickets": torch.zeros(2, dtype=torch.int32),
        }  # fmt: skip
        return replace(
            launch, grid=(2, splits), arguments=arguments, constants=dict(launch.constants) | {"SPLITS": splits}
        )

    def within(found: torch.Tensor) -> bool:
        error = (found.double() - cache_attention_reference(query, cache)).abs()
        return bool((error <= allowed(query, cache)).all())

    return launched, within


@pytest.mark.parametrize("splits", [1, 2, 4, 7])
def test_any_number_of_splits_gives_the_attention(shared, splits):
    """Seven leave programs with nothing, and the short sequence has one tile or none for most of them."""
    launched, within = shared
    launch = launched(splits)
    found = launch.run().clone()
    assert within(found) and not launch.arguments["tickets"].any()
    assert torch.equal(found, launch.run())


def test_any_order_of_programs_gives_the_same_bits(shared, monkeypatch):
    launched, _ = shared
    launch = launched(4)
    wanted = launch.run().clone()
    places = [(a, b, 0) for a in range(2) for b in range(4)]
    builder = type(interpreter.interpreter_builder)
    set_place = builder.set_grid_idx
    for seed in range(2):
        order = dict(zip(places, random.Random(seed).sample(places, len(places)), strict=True))
        monkeypatch.setattr(builder, "set_grid_idx", lambda self, *at, order=order: set_place(self, *order[at]))
        launch.output.fill_(torch.nan)
        assert torch.equal(launch.run(), wanted), seed


@given(st.integers(1, 2000), st.integers(1, 10000), st.sampled_from([1, 108, 132, 148]))
def test_splits_fill_the_machine_once(programs, tiles, multiprocessors):
    splits = splits_for(programs, tiles, multiprocessors)
    assert 1 <= splits <= max(1, tiles // 4) and (splits == 1 or splits * programs <= 2 * multiprocessors)


# tokens that come one by one


def seen(cache: Cache, one: int, tokens: int) -> tuple[torch.Tensor, ...]:
    """All of a sequence that is read, now or when later tokens have come."""
    if cache.bits == 16:
        return cache.tokens[one], cache.window_keys[one, :, :tokens], cache.window_values[one, :, :tokens]
    rows = cache.window_keys.shape[2]
    keys, values = tokens // (rows - 128) * (rows - 128), max(0, tokens - (rows - 128))
    row = torch.arange(max(0, tokens - rows), tokens) % rows
    row = row[torch.arange(max(0, tokens - rows), tokens) >= cache.packed[one]]
    by_tile = [x[one].transpose(2, 3).flatten(1, 2)[:, :values] for x in (cache.value_scale, cache.value_least)]
    by_group = [x[one, :, : keys // cache.key_group] for x in (cache.key_scale, cache.key_least)]
    return (
        cache.tokens[one], cache.packed[one], cache.keys[one, :, :keys], cache.values[one, :, :values], *by_group,
        *by_tile, cache.window_keys[one][:, row], cache.window_values[one][:, row],
    )  # fmt: skip


GROWN = [(2, 128, 32, 32, 64), (4, 32, 32, 64, 128), (2, 64, 64, 16, 64), (4, 64, 32, 48, 96), (16, 128, 32, 32, 64)]


@pytest.mark.parametrize(("bits", "window", "key_group", "value_group", "channels"), GROWN)
def test_a_cache_that_grew_is_the_one_packed_at_once(bits, window, key_group, value_group, channels):
    """Over windows, groups of keys and two tiles; the second sequence has 37 tokens fewer."""
    keys, values = drawn(bits, 2, 2, 420, channels)
    packed = partial(
        pack, bits=bits, window=window, key_group=key_group, value_group=value_group, capacity=420
    )  # fmt: skip
    cache = packed(keys[:, :, :40].contiguous(), values[:, :, :40].contiguous(), counts(40, 3))
    for n in range(40, 420):
        append(cache, *(torch.stack([x[0, :, n], x[1, :, n - 37]]) for x in (keys, values)))
        if n in (63, 64, 127, 128, 164, 200, 255, 256, 257, 300, 383, 384, 419):
            whole = packed(keys, values, counts(n + 1, n - 36))
            for one, tokens in enumerate((n + 1, n - 36)):
                assert all(map(torch.equal, seen(cache, one, tokens), seen(whole, one, tokens))), (n, one)
            assert all(map(torch.equal, dequantize(cache), dequantize(whole)))
    query = torch.randn(2, 4, channels, generator=generator(3)).half()
    assert torch.equal(cache_attention(query, cache), cache_attention(query, whole)) and close(query, cache)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_cache_that_grows_is_the_suites(bits):
    """What the suite's KIVI holds after every token: the same ones exactly, the others within a step of its own."""
    keys, values = drawn(bits, 1, 1, 300, 64)
    target = KIVI.build(bits=bits).cache
    sides = [Side.of(target, form, None, 1, 64, None) for form in (target.keys, target.values)]
    helds = [Held.nothing(keys.transpose(1, 2), 16) for _ in sides]
    cache = pack(keys[:, :, :1].contiguous(), values[:, :, :1].contiguous(), counts(1), bits=bits, capacity=300)
    for n in range(300):
        if n:
            append(cache, keys[:, :, n].contiguous(), values[:, :, n].contiguous())
        new = [x[:, :, n : n + 1].transpose(1, 2) for x in (keys, values)]
        entered = [held.entered(side, x) for held, side, x in zip(helds, sides, new, strict=True)]
        helds = [held for held, _ in entered]
        if n % 64 not in (0, 63):
            continue
        for x, read, (held, shown), axis in zip((keys, values), dequantize(cache), entered, (1, 2), strict=True):
            mine, theirs = read[0, 0, : n + 1], shown.rounded[0, :, 0].double()
            rounded = held.n_packed
            assert torch.equal(mine[rounded:], theirs[rounded:])
            grouped = x[0, 0, :rounded].double().unflatten(axis - 1, (-1, 32))
            step = (grouped.amax(axis, keepdim=True) - grouped.amin(axis, keepdim=True)) / (2**bits - 1)
            # codes may differ where a value lies between two, by one; offsets by their roundings to float16
            bound = step * (1 + 2.0**bits * 2.0**-10) + grouped.abs().amax(axis, keepdim=True) * 2.0**-9
            assert bool(((mine[:rounded] - theirs[:rounded]).abs().view_as(grouped) <= bound).all())


@pytest.mark.parametrize(("arguments", "complaint"), [
    ({"keys": torch.ones(1, 2, 64)}, r"keys is torch.float32, expected torch.float16"),
    ({"values": torch.ones(1, 2, 1, 64).half()}, r"values has shape \(1, 2, 1, 64\), expected \(1, 2, 64\)"),
    ({"keys": torch.full((1, 2, 64), torch.nan).half()}, r"keys or values are not all finite"),
])  # fmt: skip
def test_tokens_are_refused(arguments, complaint):
    cache, new = pack(**small()), {"keys": torch.ones(1, 2, 64).half(), "values": torch.ones(1, 2, 64).half()}
    with pytest.raises(ValueError, match=complaint):
        append(cache, **(new | arguments))
    assert torch.equal(cache.tokens, counts(40)) and torch.equal(dequantize(cache)[0], dequantize(pack(**small()))[0])


def test_a_full_cache_is_refused():
    keys, values = drawn(0, 1, 1, 128, 64)
    cache = pack(keys, values, counts(128), bits=2)
    with pytest.raises(ValueError, match="a sequence has 128 tokens, expected fewer than the capacity, 128"):
        append(cache, keys[:, :, 0].contiguous(), values[:, :, 0].contiguous())


# machine code

MACHINE_CODE = """
import json
from dataclasses import asdict
from kernels.cache_attention.rows import CACHE_ATTENTION_KERNELS as KERNELS, Decoding
from kernels.compiler import compiled
found = []
for kernel in KERNELS[1:2]:
    launch = kernel.plan(*kernel.inputs(Decoding(1, 32, 8, 128, 1024), 0, "cpu"))
    code = compiled(launch, 90)
    found.append(asdict(code) | {"slots": code.slots_per_weight})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_machine_code():
    """Compiled for a chip that is not here; every format and chip is compiled with the table of all kernels."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, "-c", MACHINE_CODE], env=environment, capture_output=True, text=True, check=True
    ).stdout
    for code in json.loads(said):
        assert code["local_accesses"] == 0 and code["stack_bytes"] == 0 and code["loop_conversions"] == 0
        assert code["loop_wide_loads"] * 16 >= code["loop_bytes_per_thread"] and code["loop_matrix"] > 0
        # 13.8 slots for a number of 16 bits keep a chip's instructions as busy as its memory: 2.5 times as fast
        assert code["slots"] <= 13.8 / 2.5


# errors


def small() -> dict:
    keys, values = drawn(0, 1, 2, 40, 64)
    return {"keys": keys, "values": values, "tokens": counts(40), "bits": 4}


@pytest.mark.parametrize(("arguments", "complaint"), [
    ({"bits": 3}, r"codes of 3 bits, expected one of \(2, 4, 16\)"),
    ({"keys": torch.zeros(1, 2, 40, 64)}, r"keys is torch.float32, expected torch.float16"),
    ({"values": torch.zeros(1, 2, 39, 64).half()}, r"values has shape \(1, 2, 39, 64\), expected \(1, 2, 40, 64\)"),
    ({"tokens": torch.tensor([40])}, r"tokens is torch.int64, expected torch.int32"),
    ({"tokens": counts(41)}, r"tokens lie in \[41, 41\], expected \[1, 40\]"),
    ({"tokens": counts(0)}, r"tokens lie in \[0, 0\], expected \[1, 40\]"),
    ({"key_group": 48}, r"key_group is 48, expected a positive multiple of 32"),
    ({"key_group": 96, "window": 96}, r"capacity is 128, expected a positive multiple of 96"),
    ({"value_group": 24}, r"value_group is 24, expected a positive multiple of 16"),
    ({"value_group": 128}, r"channels is 64, expected a positive multiple of 128"),
    ({"window": 100}, r"window is 100, expected a positive multiple of 32"),
    ({"capacity": -1}, r"capacity is 0, keys has 40 tokens"),
    ({"keys": torch.full((1, 2, 40, 64), torch.inf).half()}, r"keys or values are not all finite"),
    ({"keys": torch.zeros(1, 2, 40, 72).half(), "values": torch.zeros(1, 2, 40, 72).half()}, r"heads have 72 channels"),
    ({"keys": torch.zeros(1, 2, 40, 96).half(), "values": torch.zeros(1, 2, 40, 96).half()},
     r"value_group is 32, expected a positive multiple of 24"),
    ({"keys": torch.zeros(1, 0, 40, 64).half(), "values": torch.zeros(1, 0, 40, 64).half()}, r"at least one token"),
])  # fmt: skip
def test_packing_refuses(arguments, complaint):
    pack(**small())
    with pytest.raises(ValueError, match=complaint):
        pack(**(small() | arguments))


@pytest.mark.parametrize(("query", "complaint"), [
    (torch.ones(1, 4, 64), r"query is torch.float32, expected torch.float16 or torch.bfloat16"),
    (torch.ones(2, 4, 64).half(), r"query has shape \(2, 4, 64\), expected \(1, any, 64\)"),
    (torch.ones(1, 3, 64).half(), r"query has 3 heads, expected a positive multiple of the cache's 2"),
    (torch.ones(1, 0, 64).half(), r"query has 0 heads"),
    (torch.ones(1, 64, 4).half().transpose(1, 2), r"expected a contiguous tensor"),
    (torch.ones(1, 4, 64, device="meta").half(), r"query is on meta, expected cpu"),
])  # fmt: skip
def test_queries_are_refused(query, complaint):
    with pytest.raises(ValueError, match=complaint):
        cache_attention(query, pack(**small()))


@pytest.mark.parametrize(("parts", "complaint"), [
    ({"bits": 2}, r"keys has shape \(1, 2, 128, 16\), expected \(1, 2, 128, 8\)"),
    ({"key_group": 64}, r"key_scale has shape \(1, 2, 4, 64\), expected \(1, 2, 2, 64\)"),
    ({"value_scale": torch.zeros(1, 2, 1, 2, 128)}, r"value_scale is torch.float32, expected torch.float16"),
    ({"packed": counts(0, 0)}, r"packed has shape \(2,\), expected \(1\)"),
    ({"keys": None}, r"keys is a NoneType, expected a tensor"),
    ({"window_values": torch.zeros(1, 2, 128, 64).half()}, r"window_values has shape"),
])  # fmt: skip
def test_caches_whose_parts_do_not_belong_together_are_refused(parts, complaint):
    with pytest.raises(ValueError, match=complaint):
        cache_attention(torch.ones(1, 4, 64).half(), replace(pack(**small()), **parts))


@pytest.mark.parametrize("scaling", [0.0, -1.0, float("nan"), float("inf")])
def test_scalings_are_refused(scaling):
    with pytest.raises(ValueError, match="expected a positive number"):
        cache_attention(torch.ones(1, 4, 64).half(), pack(**small()), scaling)
