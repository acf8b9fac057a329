import caches
import numpy as np
import pytest
import tiny
import torch
from float64 import kept_in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from suite.kv_cache.attention import NAME
from suite.kv_cache.cache import QuantizedCache
from suite.kv_cache.codec import NO_TABLES
from suite.kv_cache.fisher import learn
from suite.methods import method_named
from suite.models.checkpoint import load_model
from suite.tokens import Tokens

LENGTH = 33
EVERYTHING = "values before keys"  # groups along tokens, a table, outliers, a window, rotations of both kinds
kinds = pytest.mark.parametrize("kind", caches.KINDS)


def drawn(rows, length, seed):
    return torch.randint(0, tiny.VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


class Opened:
    """A model of random weights, whole and block by block, and the tables that caches learn on it, in float64."""

    def __init__(self, path, dtype=torch.float64):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.checkpoint = load_model(str(path), dtype=dtype)
        rows = drawn(8, LENGTH, 0).numpy()
        self._tokens = Tokens(rows=rows, clusters=np.arange(len(rows)))

    def tables(self, target):
        with kept_in_float64():
            return learn(self.checkpoint, self._tokens, target, 1)

    def cache(self, target, attention, **options):
        self.model.set_attn_implementation(attention)
        return QuantizedCache(self.model.config, target, self.tables(target), **options)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    found = {}

    def get(variant):
        if variant not in found:
            architecture, options = tiny.ARCHITECTURES[variant]
            path = tmp_path_factory.mktemp("model")
            found[variant] = Opened(tiny.save(tiny.model_of(architecture, num_hidden_layers=2, **options), path))
        return found[variant]

    return get


def close(a, b):
    """Equal to the rounding of float64: logits are of size 1 to 10, and sums of a few hundred terms."""
    return float((a - b).abs().max()) < 1e-11


@pytest.mark.parametrize(
    "variant, kind",
    [*((variant, EVERYTHING) for variant in tiny.ARCHITECTURES), *(("qwen3", kind) for kind in caches.KINDS)],
)
def test_whole_rows_at_once_are_decoding_token_by_token_and_in_runs_of_any_length(variant, kind, opened):
    one, target, ids = opened(variant), caches.KINDS[kind], drawn(2, LENGTH, 1)
    with kept_in_float64():
        expected, shots = caches.at_once(one.checkpoint, ids, target, one.tables(target))
        stepwise = one.cache(target, "sdpa")
        assert close(caches.in_runs(one.model, ids, stepwise, 1), expected)
        runs = one.cache(target, NAME)
        assert close(caches.in_runs(one.model, ids, runs, [17, 1, 6, 9]), expected)
    assert not close(tiny.logits_of(one.checkpoint, ids), expected)  # something was rounded
    assert stepwise.n_bytes == runs.n_bytes == sum(shot.n_bytes * shot.rows for shot in shots)


@kinds
def test_a_cache_of_one_token_is_what_a_row_of_one_token_sees(kind, opened):
    one, target, ids = opened("qwen3"), caches.KINDS[kind], drawn(3, 1, 2)
    with kept_in_float64():
        expected, shots = caches.at_once(one.checkpoint, ids, target, one.tables(target))
        cache = one.cache(target, "sdpa")
        assert close(caches.in_runs(one.model, ids, cache, 1), expected)
    assert cache.get_seq_length() == 1
    assert cache.n_bytes == sum(shot.n_bytes * shot.rows for shot in shots) > 0


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 40), st.data())
def test_the_order_of_runs_does_not_matter_for_any_group_window_and_length(group, groups, sinks, length, data):
    one = _shared("llama")
    recipe = method_named("kivi").recipe(bits=2, group=group, window=group * groups, sinks=sinks)
    ids, sizes = drawn(1, length, length), []
    while sum(sizes) < length:
        sizes.append(data.draw(st.integers(1, length - sum(sizes))))
    with kept_in_float64():
        expected, shots = caches.at_once(one.checkpoint, ids, recipe.cache, [NO_TABLES] * one.checkpoint.n_blocks)
        cache = one.cache(recipe.cache, NAME)
        assert close(caches.in_runs(one.model, ids, cache, sizes), expected)
    assert cache.n_bytes == sum(shot.n_bytes for shot in shots)


@pytest.fixture(autouse=True)
def _share(opened):
    global _shared
    _shared = opened


def test_a_prompt_shorter_than_the_window_is_kept_as_it_is(opened):
    one, ids = opened("llama"), drawn(2, 16, 3)
    target = method_named("kivi").recipe(bits=2, window=24, group=8).cache
    with kept_in_float64():
        cache = one.cache(target, "sdpa")
        found = caches.in_runs(one.model, ids, cache, [11, 5])  # no query sees anything rounded: any attention will do
        heads, d = one.model.config.num_key_value_heads, one.model.config.head_dim
        plain = tiny.logits_of(one.checkpoint, ids)
    blocks = one.checkpoint.n_blocks
    assert cache.n_bytes == blocks * 2 * 2 * 16 * heads * d * 2  # keys and values of two rows, float16
    # keys and values are off by 2^-11 of their size, in float16
    assert 0 < float((found - plain).abs().max()) < 2.0**-11 * 100 * float(plain.abs().max())


@kinds
def test_rows_padded_on_their_left_are_decoded_as_they_are_alone(kind, opened):
    one, target, ids = opened("llama"), caches.KINDS[kind], drawn(4, LENGTH, 4)
    padding = [0, 3, 21, 3]
    mask = torch.tensor([[0] * n + [1] * (LENGTH - n) for n in padding])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with kept_in_float64(), torch.no_grad():
        cache, found = one.cache(target, NAME, attention_mask=mask[:, :24]), []
        for start, stop in ((0, 9), (9, 24), (24, 25), (25, LENGTH)):
            out = one.model(ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=places[:, start:stop],
                            past_key_values=cache)  # fmt: skip
            found.append(out.logits)
        found, alone = torch.cat(found, dim=1), 0
        for row, n in enumerate(padding):
            single = one.cache(target, "sdpa")
            assert close(caches.in_runs(one.model, ids[row : row + 1, n:], single, 1), found[row : row + 1, n:])
            alone += single.n_bytes
    assert cache.n_bytes == alone  # padding is not held


def test_padding_that_the_cache_was_not_told_of_is_an_error(opened):
    one, ids = opened("llama"), drawn(2, 9, 5)
    mask = torch.tensor([[1] * 9, [0] * 2 + [1] * 7])
    cache = one.cache(caches.KINDS["kivi"], NAME)
    with pytest.raises(ValueError, match=r"\[0, 2\] tokens of the rows are padding, the cache was told \[0, 0\]"):
        one.model(ids, attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match="elsewhere than on the left"):
        one.cache(caches.KINDS["kivi"], NAME, attention_mask=mask.flip(1))
    with pytest.raises(ValueError, match="has 2 rows, the batch 3"):
        caches.in_runs(one.model, drawn(3, 9, 5), one.cache(caches.KINDS["kivi"], NAME, attention_mask=mask), 9)


def test_a_run_whose_queries_would_see_different_caches_is_refused_by_other_attention_functions(opened):
    one, ids = opened("llama"), drawn(1, LENGTH, 6)
    for attention in ("sdpa", "eager"):
        with pytest.raises(ValueError, match=r'set_attn_implementation\("bitfrontier"\), or feed them one by one'):
            caches.in_runs(one.model, ids, one.cache(caches.KINDS["kivi"], attention), [LENGTH])
        at_once = one.cache(caches.KINDS["quarot"], attention)  # nothing waits: all queries see the same
        with kept_in_float64():
            expected, _ = caches.at_once(one.checkpoint, ids, caches.KINDS["quarot"], [NO_TABLES] * 2)
            assert close(caches.in_runs(one.model, ids, at_once, [LENGTH]), expected)


def greedy(model, ids, cache, n):
    """The next `n` tokens, each the likeliest after all before it, token by token."""
    fed = 0
    for _ in range(n):
        logits, fed = caches.in_runs(model, ids[:, fed:], cache, 1), ids.shape[1]
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("kind, attention", [("kivi", NAME), ("kvquant", "sdpa")])
def test_generate_takes_the_cache(kind, attention, opened):
    one, ids = opened("llama"), drawn(2, 20, 7)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with kept_in_float64():
        expected = greedy(one.model, ids, one.cache(caches.KINDS[kind], "sdpa"), 12)
        cache = one.cache(caches.KINDS[kind], attention)
        found = one.model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)
    assert torch.equal(found, expected)
    assert cache.get_seq_length() == 31  # the last token was not fed


def test_generate_takes_the_cache_for_a_batch_with_padding_and_for_beams(opened):
    one, ids = opened("llama"), drawn(2, 20, 8)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with kept_in_float64():
        cache = one.cache(caches.KINDS["kivi"], NAME, attention_mask=mask)
        found = one.model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        for row, n in ((0, 0), (1, 6)):
            single = ids[row : row + 1, n:]
            alone = one.model.generate(single, attention_mask=torch.ones_like(single), **options,
                                       past_key_values=one.cache(caches.KINDS["kivi"], NAME))  # fmt: skip
            assert torch.equal(found[row, n:], alone[0])
        beams = {**options, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
        for kind in ("kivi", "kvquant"):
            cache = one.cache(caches.KINDS[kind], NAME)
            best = one.model.generate(ids[:1], attention_mask=mask[:1], past_key_values=cache, **beams)
            logits = caches.in_runs(one.model, best.sequences, one.cache(caches.KINDS[kind], NAME), [29])
            scores = logits[:, 19:-1].log_softmax(-1).gather(-1, best.sequences[:, 20:, None]).sum()
            assert float(scores) / 9 == pytest.approx(float(best.sequences_scores), abs=1e-6)  # scores are float32


@kinds
def test_rows_are_exchanged_repeated_and_dropped(kind, opened):
    one, target, ids = opened("llama"), caches.KINDS[kind], drawn(3, LENGTH, 9)
    with kept_in_float64():
        cache = one.cache(target, NAME, attention_mask=torch.tensor([[1, 1], [0, 1], [1, 1]]))
        places = torch.arange(LENGTH).expand(3, -1) - torch.tensor([[0], [1], [0]])
        mask = torch.ones_like(ids)
        mask[1, 0] = 0

        def feed(ids, mask, places, start, stop):
            with torch.no_grad():
                return one.model(ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache,
                                 position_ids=places[:, start:stop].clamp(min=0)).logits  # fmt: skip

        feed(ids, mask, places, 0, 20)
        chosen = torch.tensor([1, 0, 1, 1])
        cache.reorder_cache(chosen)
        cache.batch_repeat_interleave(2)
        chosen = chosen.repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2, 5]))
        chosen = chosen[[0, 2, 5]]
        found = feed(ids[chosen], mask[chosen], places[chosen], 20, LENGTH)
        for row, source in enumerate(chosen.tolist()):
            begin = 1 if source == 1 else 0
            alone = caches.in_runs(one.model, ids[source : source + 1, begin:], one.cache(target, NAME), LENGTH)
            assert close(found[row : row + 1], alone[:, 20 - begin :])


@kinds
def test_a_cache_is_cropped_to_what_it_would_hold_or_not_at_all(kind, opened):
    one, target, ids = opened("llama"), caches.KINDS[kind], drawn(1, LENGTH, 10)
    with kept_in_float64():
        whole = caches.in_runs(one.model, ids, one.cache(target, NAME), [LENGTH])
        for removed in (0, 1, 2, 7, LENGTH):
            cache = one.cache(target, NAME)
            caches.in_runs(one.model, ids, cache, [LENGTH])
            fresh = one.cache(target, NAME)
            if removed < LENGTH:
                caches.in_runs(one.model, ids[:, : LENGTH - removed], fresh, [LENGTH - removed])
            try:
                cache.crop(-removed)
            except ValueError as error:
                assert target.window and removed and "would hold exactly what it has rounded" in str(error)
                assert cache.get_seq_length() == LENGTH  # and nothing was cropped
                continue
            assert cache.get_seq_length() == LENGTH - removed and cache.n_bytes == fresh.n_bytes
            if removed:
                again = caches.in_runs(one.model, ids[:, LENGTH - removed :], cache, [removed])
                assert close(again, whole[:, LENGTH - removed :])
    if not target.window:
        assert cache.get_seq_length() == LENGTH  # the loop's last round took away everything, and gave it back
    with pytest.raises(ValueError, match="crop 3: expected a negative number"):
        cache.crop(3)


def test_a_cache_is_reset(opened):
    one, ids = opened("llama"), drawn(2, LENGTH, 11)
    cache = one.cache(caches.KINDS["kivi"], NAME)
    first = caches.in_runs(one.model, ids, cache, [20, 13])
    cache.reset()
    assert cache.get_seq_length() == cache.n_bytes == 0
    assert torch.equal(caches.in_runs(one.model, ids, cache, [20, 13]), first)


def test_what_cannot_be_had_is_an_error(opened):
    config = opened("qwen3").model.config
    with pytest.raises(ValueError, match="takes a table from calibration, found none"):
        QuantizedCache(config, caches.KINDS["kvquant"])
    with pytest.raises(ValueError, match="wait in a window of a multiple of that, not 12"):
        QuantizedCache(config, method_named("kivi").recipe(bits=2, window=12, group=8).cache)
    with pytest.raises(ValueError, match="not moved between devices"):
        QuantizedCache(config, caches.KINDS["kivi"]).offload(0)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    try:
        with pytest.raises(ValueError, match="rotary embedding of type 'dynamic'"):
            QuantizedCache(config, caches.KINDS["kvquant, windowed, no outliers"])
    finally:
        config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize("kind", ["kivi", EVERYTHING])
def test_models_in_bfloat16_are_taken(kind, opened, tmp_path):
    """Chunks differ in the order of sums, by 2^-8 of what is summed, and now and then in a code."""
    one, ids = opened("llama"), drawn(2, LENGTH, 13)
    model = AutoModelForCausalLM.from_pretrained(one.checkpoint.path, dtype=torch.bfloat16).eval()
    target, tables = caches.KINDS[kind], one.tables(caches.KINDS[kind])
    found = []
    for attention, sizes in (("sdpa", 1), (NAME, [17, 16])):
        model.set_attn_implementation(attention)
        cache = QuantizedCache(model.config, target, tables)
        found.append(caches.in_runs(model, ids, cache, sizes).float())
    plain = caches.in_runs(model, ids, None, LENGTH).float()
    assert float((found[0] - found[1]).abs().mean()) < 0.5 * float((found[0] - plain).abs().mean())
    with kept_in_float64():
        expected, _ = caches.at_once(one.checkpoint, ids, target, tables)
    assert float((found[0] - expected).abs().mean()) < 0.5 * float((plain - expected).abs().mean())


def test_attention_without_a_quantized_cache_is_plain(opened):
    one, ids = opened("mistral"), drawn(2, LENGTH, 12)
    with kept_in_float64(), torch.no_grad():
        one.model.set_attn_implementation(NAME)
        found = one.model(ids).logits
        one.model.set_attn_implementation("sdpa")
        assert close(found, one.model(ids).logits)


@torch.no_grad()
def test_512_tokens_of_real_text_are_decoded_with_two_bits(stories):
    """In float32: a code next to a tie may go the other way, so that agreement is in the mean."""
    target = method_named("kivi").recipe(bits=2).cache
    model = AutoModelForCausalLM.from_pretrained(stories.path, dtype=torch.float32).eval()
    checkpoint = load_model(str(stories.path))
    ids = torch.from_numpy(np.load(stories.inputs["evaluation"])[:1, :512].astype(np.int64))
    cache = QuantizedCache(model.config, target)
    found = caches.in_runs(model, ids, cache, 1).log_softmax(-1)
    expected, shots = caches.at_once(checkpoint, ids, target, [NO_TABLES] * checkpoint.n_blocks)
    expected, plain = expected.log_softmax(-1), tiny.logits_of(checkpoint, ids).log_softmax(-1)

    def divergence(log_p, log_q):
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    assert divergence(expected, found) < 1e-3 * divergence(plain, found)
    # five layers of four heads of eight: 384 values are packed and 128 wait, while no keys do
    keys = 512 * 32 * 2 // 8 + 512 // 32 * 32 * 4
    values = 384 * 32 * 2 // 8 + 384 * 4 * 4 + 128 * 32 * 2
    assert cache.n_bytes == sum(shot.n_bytes for shot in shots) == 5 * (keys + values)
