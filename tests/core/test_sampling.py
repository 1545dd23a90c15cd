"""Fast sampling gives the text of plain sampling, token for token, however much of the work it leaves out."""

from collections import Counter

import pytest
import torch
from small_models import CFG, PROMPTS, make, shaken, uniforms

import core.sampling
import model as model_file
from core.config import BadInput, Training
from core.device import configure_model, sampling_copy
from core.sampling import CudaGraphs, KVCache, generate, prefill


def both(model, prompts, new, eot, temperature=1.0, seed=5):
    """Fast and plain sampling by the same random numbers have to agree in tokens, lengths and mask. -> the fast ones"""
    u = uniforms(new, len(prompts), seed)
    fast = generate(model, prompts, new, eot, temperature, uniforms=u)
    for a, b in zip(fast, model_file.generate(model, prompts, new, eot, temperature, uniforms=u), strict=True):
        assert torch.equal(a, b)
    return fast


def lively(temperature=1.0, **changes):
    """A model of 12 tokens, the last is end-of-text, whose rows end at different times, some never."""
    for seed in range(100):
        model = shaken(make(seed=seed, spread=10, vocab_size=12, **changes), seed)
        n = generate(model, PROMPTS, 12, 11, temperature, uniforms=uniforms(12, 8))[2].sum(1)
        if n.min() < 12 == n.max() and len(n.unique()) >= 3:
            return model
    raise AssertionError("no such model found")


# ---------------------------------------------------------------------------------------------------- the same text


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
def test_unequal_prompts_that_end_at_different_times(temperature):
    model = lively(temperature)
    tokens, lengths, mask = both(model, PROMPTS, 12, 11, temperature)
    assert 11 in tokens[mask.bool()] and mask.sum(1).max() == 12


def test_rows_that_end_with_their_first_token():
    """Then rows are dropped before the first decoding step, and what the prefill kept has to move along."""
    model, moved = lively(), 0
    for seed in range(20):
        _, _, mask = both(model, PROMPTS, 12, 11, seed=seed)
        moved += 0 < (mask.sum(1) == 1).sum() < 8
    assert moved > 5


def test_prompts_that_hold_end_of_text():
    """Few-shot prompts do: only what is sampled can end a row."""
    model = lively()
    for eot in (11, 3):
        both(model, [[*prompt, eot, 3] for prompt in PROMPTS], 12, eot)


def test_every_row_ends_at_once():
    model = shaken(make(vocab_size=12))
    model.transformer.ln_f.weight.data.zero_()  # every position predicts the same
    model.transformer.ln_f.bias.data = 100 * model.transformer.wte.weight[11]
    tokens, lengths, mask = both(model, PROMPTS, 12, 11)
    assert (mask.sum(1) == 1).all() and tokens.size(1) == 8


def test_no_row_ever_ends():
    model = lively()
    said = generate(model, PROMPTS, 12, 11, temperature=0)[0]
    never = next(token for token in range(12) if token not in said)
    _, _, mask = both(model, PROMPTS, 12, never, temperature=0)
    assert (mask.sum(1) == 12).all()


def test_one_token_and_the_last_place_of_the_context():
    model = shaken(make())
    assert both(model, PROMPTS, 1, 299)[2].sum() == len(PROMPTS)
    both(model, [[1] * 60, [2]], 4, 299)


def test_many_prompts_and_prompts_that_come_several_times():
    """Groups of prompts are read apart, repeated ones once."""
    prompts = [[i] for i in range(20)] + [[5, 6, 7]] * 3 + [[7]] * 2 + [[i, 3] for i in range(20)]
    model = shaken(make())
    tokens, _, _ = both(model, prompts, 12, 299)
    assert len({tuple(row) for row in tokens[20:23].tolist()}) > 1, "copies of a prompt draw each their own"


def test_a_prompt_is_read_once(monkeypatch):
    model, read = shaken(make()), []
    model.register_forward_hook(lambda module, inputs, output: read.append(inputs[0].shape))
    prefill(model, [[5, 6, 7]] * 30 + [[1, 2]], 4)
    assert read == [(2, 3)]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_copy_in_bfloat16(temperature):
    """Its sums are rounded, which differ with the shapes; the first tokens, of sharp distributions, are the same."""
    cfg = Training(dtype="bfloat16")
    model = configure_model(shaken(make(spread=30, vocab_size=12)), cfg)
    copy = sampling_copy(model, cfg)
    u = uniforms(8, len(PROMPTS))
    fast = generate(copy, PROMPTS, 8, 11, temperature, uniforms=u)[0]
    plain = model_file.generate(copy, PROMPTS, 8, 11, temperature, uniforms=u)[0]
    width = min(fast.size(1), plain.size(1))
    assert (fast[:, :width] == plain[:, :width]).float().mean() > 0.9
    generate(model, PROMPTS, 8, 11, uniforms=u)  # and the model itself, whose cache is bfloat16 beside float32 weights


def test_sampling_is_seeded():
    model = make(vocab_size=12)
    draws = (generate(model, [[1]] * 6, 8, 11, generator=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    one, same, other = draws
    assert torch.equal(one, same)
    assert one.shape != other.shape or not torch.equal(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_sampling_without_dropout_and_the_mode_is_restored(training):
    model = make(dropout=0.5, spread=10, vocab_size=12).train(training)
    plain = make(spread=10, vocab_size=12)
    got = generate(model, PROMPTS, 6, 11, uniforms=uniforms(6, 8))
    want = generate(plain, PROMPTS, 6, 11, uniforms=uniforms(6, 8))
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert model.training == training


@pytest.mark.parametrize("prompts, new, match", [([[1], []], 3, "empty"), ([[1] * 60], 5, "context 64")])
def test_prompts_that_cannot_be_continued(prompts, new, match):
    with pytest.raises(BadInput, match=match):
        generate(make(), prompts, new, 299)


# ---------------------------------------------------------------------------------------------------- the work left out


def test_rows_that_have_ended_cost_nothing(monkeypatch):
    """After each step the cache holds the rows that are alive, at most a tenth more, and every row once at the most."""
    model, sizes = lively(), []
    decode = core.sampling.decode

    def watched(model, cache, last, positions, slot, graphs=None):
        sizes.append(len(last))
        assert cache.rows == slice(0, len(last)) and cache.used is not None
        return decode(model, cache, last, positions, slot, graphs)

    monkeypatch.setattr(core.sampling, "decode", watched)
    _, _, mask = both(model, PROMPTS, 12, 11)
    alive = [int((mask.sum(1) > step).sum()) for step in range(1, 12)]
    assert len(set(alive)) >= 3
    for fed, living in zip(sizes, alive):
        assert living <= fed and living >= 0.9 * fed


@pytest.mark.parametrize(
    "alive, n", [("10110100", 4), ("00001111", 4), ("11110000", 4), ("01010101", 5), ("00000001", 1)]
)
def test_compact_keeps_every_living_row_with_all_it_holds(alive, n):
    cache = KVCache(CFG, 8, 6, "cpu", torch.float32)
    cache.k.normal_()
    cache.v.normal_()
    cache.attn_bias.copy_(torch.where(torch.rand_like(cache.attn_bias) < 0.5, 0.0, -torch.inf))
    cache.used = 6
    before = [x.clone() for x in (cache.k, cache.v)], cache.attn_bias.clone()
    alive = torch.tensor([c == "1" for c in alive])
    kept = cache.compact(alive, n)
    assert cache.rows == slice(0, n) and len(kept) == n
    assert set(alive.nonzero().flatten().tolist()) <= set(kept.tolist())
    assert max(Counter(kept.tolist()).values()) == 1
    for now, was in enumerate(kept.tolist()):
        assert torch.equal(cache.k[:, now], before[0][0][:, was]) and torch.equal(cache.v[:, now], before[0][1][:, was])
        assert torch.equal(cache.attn_bias[now], before[1][was])


def test_steps_of_few_shapes_on_one_cache_give_the_same_text(monkeypatch):
    """What is recorded on a GPU, here simply called: few different keys, one cache however long the prompts are."""
    keys = []

    class Called(CudaGraphs):
        def replay(self, key, work, *inputs):
            keys.append(key)
            return work(*inputs)

    model, graphs, caches = shaken(make(block_size=200, vocab_size=20)), Called(), set()
    for longest, B in ((90, 11), (30, 11), (60, 7)):
        u = uniforms(70, B, seed=longest)
        prompts = [[i] * (1 + i * longest // B) for i in range(B)]
        plain = model_file.generate(model, prompts, 70, 19, uniforms=u)
        monkeypatch.setitem(core.sampling._cuda_graphs, model, graphs)
        called = generate(model, prompts, 70, 19, uniforms=u)
        assert all(torch.equal(a, b) for a, b in zip(plain, called))
        caches.add(id(graphs.cache))
    assert len(caches) == 1 and len(keys) > 5 * len(set(keys))
    rows, used = {rows for rows, _ in keys}, {used for _, used in keys}
    assert {11, 8, 7, 4} <= rows <= {11, 8, 7, 4, 2, 1} and used <= {64, 128, 152}


class Fake(CudaGraphs):
    """A recorder that does on the CPU what a GPU's does: what is recorded looks at fixed places from then on."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def record(self, work, inputs):
        fixed = [x.clone() for x in inputs]
        result = work(*fixed)
        self.recorded.append(result.shape)

        class Graph:
            def replay(graph):
                result.copy_(work(*fixed))

        return Graph(), fixed, result


def test_a_graph_is_recorded_once_per_key_and_fed_through_fixed_places():
    graphs, a, b = Fake(), torch.tensor([1.0]), torch.tensor([2.0])
    assert graphs.replay("double", lambda x: 2 * x, a).item() == 2
    first = graphs.replay("double", lambda x: 2 * x, b)
    assert first.item() == 4 and len(graphs.recorded) == 1 and a.item() == 1
    assert graphs.replay("add", lambda x, y: x + y, a, b).item() == 3 and len(graphs.recorded) == 2
    assert graphs.replay("double", None, torch.tensor([5.0])) is first and first.item() == 10


def test_a_cache_without_room_takes_its_graphs_along():
    graphs, made = Fake(), []

    def cache_of(B, S):
        def new():
            made.append((B, S))
            return KVCache(CFG, B, S, "cpu", torch.float32)

        return new

    first = graphs.cache_for(4, 10, cache_of(4, 10))
    graphs.replay("x", lambda x: x + 1, torch.zeros(1))
    assert graphs.cache_for(3, 8, cache_of(3, 8)) is first and graphs.graphs
    assert graphs.cache_for(5, 8, cache_of(5, 8)) is not first and not graphs.graphs
    assert graphs.cache_for(5, 11, cache_of(5, 11)).k.size(3) == 11
    assert made == [(4, 10), (5, 8), (5, 11)]


@torch.no_grad()
def test_recorded_steps_see_new_weights(monkeypatch):
    """Weights that change in place, as a sampling copy's do: what was recorded before samples from them."""
    model, graphs = shaken(make(block_size=200, vocab_size=20)), Fake()
    monkeypatch.setitem(core.sampling._cuda_graphs, model, graphs)
    prompts = [[i] * (1 + i) for i in range(9)]
    for seed in range(3):
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        both(model, prompts, 40, 19, seed=seed)
    assert len(graphs.recorded) == len(graphs.graphs) < 20


def test_graphs_are_for_gpus():
    model = make()
    core.sampling.use_cuda_graphs(model)
    assert model not in core.sampling._cuda_graphs
