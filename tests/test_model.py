"""The network, the bookkeeping of tokens, sampling and checkpoints."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from data.bpe import encoding_from, tokenizer_dict
from machine import Replay
from model import (
    GPT,
    SIZES,
    GPTConfig,
    ScalarModel,
    generate,
    load_checkpoint,
    masked_mean,
    pad,
    pick,
    respond,
    response_mask,
    save_checkpoint,
    token_logprobs,
    values_before,
)
from plumbing import BadInput

CFG = GPTConfig(2, 2, 16, 64, 300)


def make(kind=GPT, seed=0, spread=1.0, **changes):
    """An untrained model in eval mode; spread > 1 makes its predictions less alike."""
    torch.manual_seed(seed)
    model = kind(replace(CFG, **changes)).eval()
    model.transformer.wte.weight.data *= spread
    return model


def shaken(model, seed=1):
    """The same model with noise on every parameter, so that no bias is 0 and no gain is 1."""
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def batch(seed=2, V=300):
    """Three right-padded rows [prompt, response, padding] with random ids in the padding."""
    torch.manual_seed(seed)
    tokens = torch.randint(V, (3, 9))
    prompt_lengths, lengths = torch.tensor([1, 4, 2]), torch.tensor([9, 6, 3])
    return tokens, prompt_lengths, lengths, response_mask(prompt_lengths, lengths, 9)


# ---------------------------------------------------------------------------------------------------- the network


def plain_gpt(w, ids, n_layer, n_head):
    """GPT-2 once more, one row, head by head, in plain tensor operations. w: state dict -> logits (T, V)."""

    def norm(x, name):
        variance = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    T = len(ids)
    x = w["wte.weight"][ids] + w["wpe.weight"][:T]
    D = x.size(1) // n_head
    for i in range(n_layer):
        q, k, v = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, dim=1)
        heads = []
        for h in range(n_head):
            part = slice(h * D, (h + 1) * D)
            rows = []
            for t in range(T):
                weight = (k[: t + 1, part] @ q[t, part] / math.sqrt(D)).softmax(0)
                rows.append(weight @ v[: t + 1, part])
            heads.append(torch.stack(rows))
        x = x + linear(torch.cat(heads, 1), f"h.{i}.attn.c_proj")
        z = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = x + linear(z, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@torch.no_grad()
def test_logits_match_a_second_gpt2():
    model = shaken(make())
    weights = {k.removeprefix("transformer."): v for k, v in model.state_dict().items()}
    tokens = batch()[0]
    logits = model.unembed(model(tokens))
    for row, got in zip(tokens, logits):
        torch.testing.assert_close(got, plain_gpt(weights, row, CFG.n_layer, CFG.n_head), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("t", [0, 3, 8])
def test_changing_a_token_leaves_what_is_before_it_alone(t):
    model = shaken(make())
    tokens = batch()[0]
    changed = tokens.clone()
    changed[:, t] = (tokens[:, t] + 1) % 300
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert (before[:, t:] != after[:, t:]).any(-1).all(), "every later position sees the change"


@torch.no_grad()
def test_garbage_in_the_padding_changes_nothing():
    policy, scalar = shaken(make()), shaken(make(ScalarModel))
    tokens, prompt_lengths, lengths, mask = batch()
    garbage = tokens.clone()
    padding = torch.arange(9) >= lengths[:, None]
    garbage[padding] = torch.randint(300, (int(padding.sum()),))
    assert not torch.equal(tokens, garbage)
    torch.testing.assert_close(policy(tokens)[~padding], policy(garbage)[~padding])
    torch.testing.assert_close(scalar.score(tokens, lengths), scalar.score(garbage, lengths))
    for a, b in zip(token_logprobs(policy, tokens, mask, True), token_logprobs(policy, garbage, mask, True)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(values_before(scalar, tokens, mask), values_before(scalar, garbage, mask))
    for i in range(3):  # a row alone = the same row in a padded batch
        row, n = tokens[i : i + 1, : lengths[i]], lengths[i]
        torch.testing.assert_close(policy(row)[0], policy(garbage)[i, :n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scalar.score(row, n[None])[0], scalar.score(garbage, lengths)[i])


def test_dropout_only_while_training():
    model = make(dropout=0.5)
    tokens = batch()[0]
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    plain = make(dropout=0.0)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), plain(tokens))


def test_every_addition_to_the_residual_stream_is_dropped_out():
    model = make(dropout=0.5)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda module, x, y: seen.append((x[0], y)))
    model.train()(batch()[0])
    assert len(seen) == 1 + 2 * CFG.n_layer, "the embeddings, and in each block attention and MLP"
    for x, y in seen:
        kept = y != 0
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(y[kept], 2 * x[kept])


def test_initial_weights():
    model = make(ScalarModel, n_embd=64, n_layer=3)
    std = 0.02 * math.sqrt(768 / 64)
    expected = {"wte.weight": 0.02, "wpe.weight": 0.02, "c_attn.weight": std, "c_fc.weight": std}
    expected |= {"c_proj.weight": std / math.sqrt(6), "head.weight": 1 / math.sqrt(65)}
    seen = set()
    for name, p in model.named_parameters():
        if p.dim() == 2:
            end = name if name == "head.weight" else ".".join(name.split(".")[-2:])
            slack = 4 / math.sqrt(2 * p.numel())  # four standard errors
            assert p.std().item() == pytest.approx(expected[end], rel=slack), name
            seen.add(end)
        else:
            assert (p == (1.0 if "ln_" in name and name.endswith("weight") else 0.0)).all(), name
    assert seen == set(expected)


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts(size):
    published = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    about = {"gpt3-1.3b": 1.3e9, "gpt3-6.7b": 6.7e9, "gpt3-175b": 175e9}
    cfg = SIZES[size]
    with torch.device("meta"):
        count = sum(p.numel() for p in GPT(cfg).parameters())
    C = cfg.n_embd
    assert count == (cfg.vocab_size + cfg.block_size) * C + cfg.n_layer * (12 * C * C + 13 * C) + 2 * C
    if size in published:
        assert count == published[size]
    if size in about:
        assert count == pytest.approx(about[size], rel=0.01 if size == "gpt3-175b" else 0.05)


def test_wrong_shapes_are_refused():
    with pytest.raises(BadInput, match="n_head"):
        make(n_head=3)
    with pytest.raises(BadInput, match="context"):
        make()(torch.zeros(1, 65, dtype=torch.long))


@torch.no_grad()
def test_scalar_model_is_a_gpt_read_by_one_row():
    model = shaken(make(ScalarModel))
    model.bias.fill_(0.7)
    tokens, _, lengths, _ = batch()
    body = GPT(CFG)
    body.transformer.load_state_dict(model.transformer.state_dict())
    hidden = body.eval()(tokens)
    everywhere = model(tokens)
    for i, n in enumerate(lengths.tolist()):
        for t in range(9):
            want = (hidden[i, t] * model.head.weight[0]).sum() + model.head.bias[0] + 0.7
            torch.testing.assert_close(everywhere[i, t], want)
        torch.testing.assert_close(model.score(tokens, lengths)[i], everywhere[i, n - 1])


def test_scalar_model_copies_the_body():
    policy = shaken(make(dropout=0.2))
    model = ScalarModel.from_gpt(policy)
    for name, weight in policy.transformer.state_dict().items():
        copy = model.transformer.state_dict()[name]
        assert torch.equal(weight, copy) and weight.data_ptr() != copy.data_ptr()
    assert model.config == replace(CFG, dropout=0.0)


# ---------------------------------------------------------------------------------------------------- token bookkeeping


def test_pad_and_response_mask():
    tokens, lengths = pad([[5, 6, 7], [8]], value=9)
    assert tokens.tolist() == [[5, 6, 7], [8, 9, 9]] and lengths.tolist() == [3, 1]
    mask = response_mask(torch.tensor([1, 2]), torch.tensor([3, 4]), 5)
    assert mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_masked_mean_is_over_all_rows_together():
    x = torch.tensor([[1.0, 2.0, 99.0], [6.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert masked_mean(x, mask).item() == pytest.approx(3.0)
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0.0


@torch.no_grad()
def test_token_logprobs_and_entropy_match_a_loop():
    model = shaken(make())
    tokens, prompt_lengths, lengths, mask = batch()
    logprobs, entropy = token_logprobs(model, tokens, mask, entropy=True)
    assert torch.equal(logprobs, token_logprobs(model, tokens, mask))
    for i in range(3):
        for t in range(9):
            if not prompt_lengths[i] <= t < lengths[i]:
                assert logprobs[i, t] == 0 and entropy[i, t] == 0
                continue
            logits = model.unembed(model(tokens[i : i + 1, :t]))[0, -1].tolist()  # the prefix alone
            total = sum(math.exp(x) for x in logits)
            p = [math.exp(x) / total for x in logits]
            assert logprobs[i, t].item() == pytest.approx(math.log(p[tokens[i, t]]), abs=1e-4)
            assert entropy[i, t].item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-4)


def test_token_logprobs_refuses_the_first_token():
    with pytest.raises(AssertionError, match="first token"):
        token_logprobs(make(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))


@torch.no_grad()
def test_values_are_read_before_the_token():
    model = shaken(make(ScalarModel))
    tokens, prompt_lengths, lengths, mask = batch()
    values = values_before(model, tokens, mask)
    for i in range(3):
        for t in range(9):
            inside = prompt_lengths[i] <= t < lengths[i]
            want = model(tokens[i : i + 1, :t])[0, -1].item() if inside else 0.0
            assert values[i, t].item() == pytest.approx(want, abs=1e-5)


# ---------------------------------------------------------------------------------------------------- sampling

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 5, 8, 9, 7, 9, 3], [1, 1], [4, 4, 4], [7], [2, 8]]


def lively(temperature):
    """A model of 12 tokens, the last is end-of-text, whose rows end at different times, some never."""
    for seed in range(100):
        model = shaken(make(seed=seed, spread=10, vocab_size=12), seed)
        tokens, lengths, mask = generate(model, PROMPTS, 12, 11, temperature, torch.Generator().manual_seed(5))
        n = mask.sum(1)
        if n.min() < 12 == n.max() and len(n.unique()) >= 3:
            return model, tokens, lengths, mask
    raise AssertionError("no such model found")


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_sampling_with_and_without_the_cache_agree(temperature):
    model, *cached = lively(temperature)
    plain = generate(model, PROMPTS, 12, 11, temperature, torch.Generator().manual_seed(5), use_cache=False)
    for a, b in zip(cached, plain):
        assert torch.equal(a, b)


def test_tokens_lengths_and_mask_fit_each_other():
    model, tokens, lengths, mask = lively(1.0)
    assert tokens.size(1) == lengths.max()
    for row, n, m, prompt in zip(tokens.tolist(), lengths.tolist(), mask.tolist(), PROMPTS):
        assert row[: len(prompt)] == prompt
        response = row[len(prompt) : n]
        assert m == [0.0] * len(prompt) + [1.0] * len(response) + [0.0] * (len(row) - n)
        assert 11 not in response[:-1], "nothing is sampled after end-of-text"
        assert len(response) == 12 or response[-1] == 11


@torch.no_grad()
def test_greedy_sampling_is_repeated_forward_of_each_row_alone():
    model, tokens, lengths, _ = lively(0)
    for row, n, prompt in zip(tokens.tolist(), lengths.tolist(), PROMPTS):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (ids == prompt or ids[-1] != 11):
            ids.append(model.unembed(model(torch.tensor([ids])))[0, -1].argmax().item())
        assert row[:n] == ids


def test_pick_inverts_the_cumulative_distribution():
    torch.manual_seed(0)
    logits, n = torch.randn(6) * 2, 10_000
    u = (torch.arange(n) + 0.5) / n  # every part of [0, 1) equally often
    for temperature in (0.5, 1.0, 2.0):
        counts = torch.bincount(pick(logits.expand(n, 6), temperature, u), minlength=6)
        assert (counts - n * (logits / temperature).softmax(0)).abs().max() < 2
    assert pick(logits[None], 0, torch.tensor([0.9])).item() == logits.argmax()
    edge = torch.tensor([0.0, 1 - 2**-24])
    never = torch.tensor([-math.inf, 1.0, 0.0])  # a token of probability 0 is never picked
    assert pick(never.expand(2, 3), 1.0, edge).tolist() == [1, 2]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_softmax(temperature):
    model, n = make(spread=20, vocab_size=12), 5000
    tokens, _, _ = generate(model, [[3, 5]] * n, 1, 11, temperature, torch.Generator().manual_seed(0))
    p = (model.unembed(model(torch.tensor([[3, 5]])))[0, -1] / temperature).softmax(0)
    assert p.max() > 2 * p.min(), "the test needs probabilities that differ"
    counts = torch.bincount(tokens[:, 2], minlength=12)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 31.3  # chi-square, 11 degrees of freedom, one in a thousand


def test_sampling_is_seeded_and_rows_differ():
    model = make(vocab_size=12)
    one, same, other = (generate(model, [[1]] * 6, 8, 11, 1.0, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len({tuple(row) for row in one.tolist()}) > 1


@pytest.mark.parametrize("training", [True, False])
def test_sampling_without_dropout_and_the_mode_is_restored(training):
    model = make(dropout=0.5, spread=10, vocab_size=12).train(training)
    plain = make(spread=10, vocab_size=12)
    got = generate(model, PROMPTS, 6, 11, 1.0, torch.Generator().manual_seed(0))
    want = generate(plain, PROMPTS, 6, 11, 1.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert model.training == training


@pytest.mark.parametrize("prompts, new, match", [([[1], []], 3, "empty"), ([[1] * 60], 5, "context")])
def test_prompts_that_cannot_be_continued(prompts, new, match):
    with pytest.raises(BadInput, match=match):
        generate(make(), prompts, new, 299)


class Alphabet(torch.nn.Module):
    """A model that says the alphabet: after each letter the next one, after z end-of-text."""

    replay = None

    def __init__(self):
        super().__init__()
        self.config = GPTConfig(1, 1, 1, 64, 257)
        self.transformer = SimpleNamespace(wte=SimpleNamespace(weight=torch.zeros(257, 1)), bfloat16=False)

    def forward(self, tokens, **kwargs):
        return F.one_hot(torch.where(tokens >= ord("z"), 256, tokens + 1), 257).float()

    def unembed(self, hidden):
        return 100 * hidden


def test_respond_keeps_the_order_and_knows_who_ended():
    encoding = encoding_from(tokenizer_dict([bytes([b]) for b in range(256)], "bytes"))
    prompts = ["say it: v", "x", "a", "abcdefg", "longer still, y"]
    for batch_size in (1, 2, 256):
        answers = respond(Alphabet(), encoding, prompts, 4, batch_size=batch_size)
        assert answers == [("wxyz", False), ("yz", True), ("bcde", False), ("hijk", False), ("z", True)]
    answers = respond(Alphabet(), encoding, prompts, 5, stop="y")
    assert answers == [("wx", True), ("", True), ("bcdef", False), ("hijkl", False), ("z", True)]


@torch.no_grad()
def test_many_prompts_of_one_token_and_prompts_that_come_twice():
    """Groups of prompts are read apart, repeated ones once: the same text as without a cache."""
    model, draw = shaken(make(GPT)), torch.rand(12, 45, generator=torch.Generator().manual_seed(1))
    prompts = [[i] for i in range(20)] + [[5, 6, 7]] * 3 + [[7]] * 2 + [[i, 3] for i in range(20)]
    rows = [generate(model, prompts, 12, 299, use_cache=cache, uniforms=draw)[0] for cache in (True, False)]
    assert torch.equal(*rows)


@torch.no_grad()
def test_steps_of_few_shapes_on_one_cache_give_the_same_text():
    """What is recorded on a GPU (machine.Replay), here simply called: few keys, one cache however long the prompts are."""
    keys = []

    class Called(Replay):
        def __call__(self, key, work, *inputs):
            keys.append(key)
            return work(*inputs)

    model, replay, caches = shaken(make(GPT, block_size=200, vocab_size=20)), Called(), set()
    for longest, B in ((90, 11), (30, 11), (60, 7)):
        draw = torch.rand(70, B, generator=torch.Generator().manual_seed(longest))
        prompts = [[i] * (1 + i * longest // B) for i in range(B)]
        model.replay = None
        plain = generate(model, prompts, 70, 19, use_cache=False, uniforms=draw)
        model.replay = replay
        recorded = generate(model, prompts, 70, 19, uniforms=draw)
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded))
        caches.add(id(replay.cache))
    assert len(caches) == 1 and len(keys) > 5 * len(set(keys))
    assert {11, 8, 7, 4} <= {rows for rows, _ in keys} <= {11, 8, 7, 4, 2, 1} and {seen for _, seen in keys} <= {
        64,
        128,
        152,
    }


# ---------------------------------------------------------------------------------------------------- checkpoints


@torch.no_grad()
@pytest.mark.parametrize("kind, name", [(GPT, "policy"), (ScalarModel, "scalar")])
def test_save_and_load_give_the_same_model(tmp_path, tokenizer, kind, name):
    model = shaken(make(kind, dropout=0.4))
    if name == "scalar":
        model.bias.fill_(1.5)
    save_checkpoint(tmp_path / "x.pt", model, tokenizer, CFG, 7, extra=[1, 2.0, ("a", None)])
    again, encoding, checkpoint = load_checkpoint(tmp_path / "x.pt", name)
    tokens = batch()[0]
    assert torch.equal(model(tokens), again(tokens))
    assert not again.training and again.config.dropout == 0.0
    assert checkpoint["step"] == 7 and checkpoint["extra"] == [1, 2.0, ("a", None)]
    assert checkpoint["model_config"]["dropout"] == 0.4 and checkpoint["config"]["n_embd"] == 16
    assert checkpoint["tokenizer"] == tokenizer and encoding.eot_token == len(tokenizer["ranks"])
    assert load_checkpoint(tmp_path / "x.pt", name, dropout=0.2, tokenizer=tokenizer)[0].config.dropout == 0.2
    with pytest.raises(BadInput, match="tokenizer"):
        load_checkpoint(tmp_path / "x.pt", name, tokenizer=tokenizer | {"name": "other"})
    with pytest.raises(BadInput, match=f"holds a {name} model"):
        load_checkpoint(tmp_path / "x.pt", "scalar" if name == "policy" else "policy")


def test_what_is_not_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("text", "empty", "foreign", "list", "missing"):
        with pytest.raises(BadInput, match=f"{name}.pt: (no such|not a) checkpoint"):
            load_checkpoint(tmp_path / f"{name}.pt", "policy")


def test_a_truncated_checkpoint_is_refused(tmp_path, tokenizer):
    save_checkpoint(tmp_path / "x.pt", make(), tokenizer, CFG, 0)
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt", "policy")


class Touch:
    """Unpickled without care, this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save({"kind": "policy", "model": Touch(str(tmp_path / "owned"))}, tmp_path / "evil.pt")
    with pytest.raises(BadInput):
        load_checkpoint(tmp_path / "evil.pt", "policy")
    assert not (tmp_path / "owned").exists()
