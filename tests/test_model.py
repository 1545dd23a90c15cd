"""The network, what is about which token, and plain sampling."""

import math
from dataclasses import replace

import pytest
import torch
from small_models import CFG, PROMPTS, batch, make, shaken, uniforms
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_file
from model import (
    GPT,
    SIZES,
    ScalarModel,
    generate,
    lm_loss,
    masked_mean,
    pad,
    response_mask,
    sample_token,
    target_logprobs,
    token_logprobs,
    token_values,
)

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
def test_positions_say_where_a_token_stands():
    model = shaken(make())
    tokens, shifted = batch()[0], torch.arange(3, 12).expand(3, 9)
    longer = shaken(make())
    longer.transformer.wpe.weight.copy_(model.transformer.wpe.weight.roll(-3, 0))
    torch.testing.assert_close(model(tokens, positions=shifted), longer(tokens))


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
    torch.testing.assert_close(token_logprobs(policy, tokens, mask), token_logprobs(policy, garbage, mask))
    torch.testing.assert_close(token_values(scalar, tokens, mask), token_values(scalar, garbage, mask))
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


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(AssertionError, match="65 tokens.*context of 64"):
        make()(torch.zeros(1, 65, dtype=torch.long))


@torch.no_grad()
def test_scalar_model_is_a_gpt_read_by_one_row():
    model = shaken(make(ScalarModel))
    model.head.bias.fill_(0.7)
    tokens, _, lengths, _ = batch()
    body = GPT(CFG)
    body.transformer.load_state_dict(model.transformer.state_dict())
    hidden = body.eval()(tokens)
    everywhere = model(tokens)
    for i, n in enumerate(lengths.tolist()):
        for t in range(9):
            torch.testing.assert_close(everywhere[i, t], (hidden[i, t] * model.head.weight[0]).sum() + 0.7)
        torch.testing.assert_close(model.score(tokens, lengths)[i], everywhere[i, n - 1])


def test_scalar_model_copies_the_body():
    policy = shaken(make(dropout=0.2))
    model = ScalarModel.from_gpt(policy)
    for name, weight in policy.transformer.state_dict().items():
        copy = model.transformer.state_dict()[name]
        assert torch.equal(weight, copy) and weight.data_ptr() != copy.data_ptr()
    assert model.config == replace(CFG, dropout=0.0)
    assert ScalarModel.from_gpt(policy, dropout=0.1).config == replace(CFG, dropout=0.1)


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


def logprob_after(model, prefix, token):
    """log p(token | prefix) with the prefix alone in the model and the softmax in plain Python."""
    logits = model.unembed(model(prefix[None]))[0, -1].tolist()
    return logits[token] - math.log(sum(math.exp(x) for x in logits))


@torch.no_grad()
def test_token_logprobs_match_a_loop():
    model = shaken(make())
    tokens, prompt_lengths, lengths, mask = batch()
    logprobs = token_logprobs(model, tokens, mask)
    for i in range(3):
        for t in range(9):
            inside = prompt_lengths[i] <= t < lengths[i]
            want = logprob_after(model, tokens[i, :t], tokens[i, t]) if inside else 0.0
            assert logprobs[i, t].item() == pytest.approx(want, abs=1e-4 if inside else 0)


def test_token_logprobs_refuses_the_first_token():
    with pytest.raises(AssertionError, match="first token"):
        token_logprobs(make(), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))


@torch.no_grad()
def test_lm_loss_matches_a_loop_and_covers_every_token_but_the_first():
    model, tokens = shaken(make()), batch()[0]
    losses = lm_loss(model, tokens)
    assert losses.shape == (3, 8)
    for i in range(3):
        for t in range(1, 9):
            want = -logprob_after(model, tokens[i, :t], tokens[i, t])
            assert losses[i, t - 1].item() == pytest.approx(want, abs=1e-4)


@torch.no_grad()
def test_lm_loss_takes_a_window_of_the_whole_context_and_one_more():
    assert lm_loss(make(), torch.randint(300, (2, 65))).shape == (2, 64)


@torch.no_grad()
def test_values_are_read_before_the_token():
    model = shaken(make(ScalarModel))
    tokens, prompt_lengths, lengths, mask = batch()
    values = token_values(model, tokens, mask)
    for i in range(3):
        for t in range(9):
            inside = prompt_lengths[i] <= t < lengths[i]
            want = model(tokens[i : i + 1, :t])[0, -1].item() if inside else 0.0
            assert values[i, t].item() == pytest.approx(want, abs=1e-5)


def test_logits_in_chunks_are_the_same_and_never_whole(monkeypatch):
    """Values and gradients; and the largest float32 tensor that comes up has a chunk's size."""
    model, (tokens, _, _, mask) = make(), batch()
    n = int(mask.sum())

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.dim() == 2 and x.size(1) == 300 and x.size(0) not in (300, 16):
                    self.seen = max(self.seen, x.size(0))
            return out

    results = []
    for most, largest in ((2**26, n), (5 * 300, 5)):
        monkeypatch.setattr(model_file, "MAX_LOGITS", most)
        watch = Largest()
        with watch:
            logprobs = token_logprobs(model, tokens, mask)
            gradients = torch.autograd.grad((logprobs * mask).sum(), list(model.parameters()))
        assert watch.seen == largest
        results.append((logprobs, *gradients))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        again = target_logprobs(model, model(tokens).flatten(0, 1), tokens.flatten())
        monkeypatch.setattr(model_file, "MAX_LOGITS", 2**26)
        whole = target_logprobs(model, model(tokens).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-4)


NO_ROWS = {  # a process whose share of a minibatch is empty goes through the model all the same
    "lm_loss": (GPT, lambda model: lm_loss(model, torch.zeros(0, 9, dtype=torch.long))),
    "token_logprobs": (GPT, lambda model: token_logprobs(model, pad([])[0], torch.zeros(0, 1))),
    "token_values": (ScalarModel, lambda model: token_values(model, pad([])[0], torch.zeros(0, 1))),
    "score": (ScalarModel, lambda model: model.score(*pad([]))),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_no_rows_give_gradients_of_zero(name):
    kind, forward = NO_ROWS[name]
    model = shaken(make(kind, dropout=0.2)).train()
    result = forward(model)
    assert len(result) == 0
    result.sum().backward()
    reached = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(reached) > 20 and not any(gradient.any() for gradient in reached)


# ---------------------------------------------------------------------------------------------------- sampling


def lively(temperature):
    """A model of 12 tokens, the last is end-of-text, whose rows end at different times, some never."""
    for seed in range(100):
        model = shaken(make(seed=seed, spread=10, vocab_size=12), seed)
        tokens, lengths, mask = generate(model, PROMPTS, 12, 11, temperature, uniforms(12, 8))
        n = mask.sum(1)
        if n.min() < 12 == n.max() and len(n.unique()) >= 3:
            return model, tokens, lengths, mask
    raise AssertionError("no such model found")


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
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_sampling_is_repeated_forward_of_each_row_alone(temperature):
    model, tokens, lengths, _ = lively(temperature)
    draws = uniforms(12, 8).T.tolist()
    for row, n, prompt, u in zip(tokens.tolist(), lengths.tolist(), PROMPTS, draws):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (ids == prompt or ids[-1] != 11):
            logits = model.unembed(model(torch.tensor([ids])))[0, -1]
            p, below, token = logits.softmax(0).tolist(), 0.0, 0
            while temperature and below + p[token] <= u[len(ids) - len(prompt)]:
                below, token = below + p[token], token + 1
            ids.append(token if temperature else logits.argmax().item())
        assert row[:n] == ids


def test_sample_token_inverts_the_cumulative_distribution():
    torch.manual_seed(0)
    logits, n = torch.randn(6) * 2, 10_000
    u = (torch.arange(n) + 0.5) / n  # every part of [0, 1) equally often
    for temperature in (0.5, 1.0, 2.0):
        counts = torch.bincount(sample_token(logits.expand(n, 6), temperature, u), minlength=6)
        assert (counts - n * (logits / temperature).softmax(0)).abs().max() < 2
    assert sample_token(logits[None], 0, torch.tensor([0.9])).item() == logits.argmax()
    edge = torch.tensor([0.0, 1 - 2**-24])
    never = torch.tensor([-math.inf, 1.0, 0.0])  # a token of probability 0 is never picked
    assert sample_token(never.expand(2, 3), 1.0, edge).tolist() == [1, 2]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_softmax(temperature):
    model, n = make(spread=20, vocab_size=12), 5000
    tokens, _, _ = generate(model, [[3, 5]] * n, 1, 11, temperature, uniforms(1, n, seed=0))
    p = (model.unembed(model(torch.tensor([[3, 5]])))[0, -1] / temperature).softmax(0)
    assert p.max() > 2 * p.min(), "the test needs probabilities that differ"
    counts = torch.bincount(tokens[:, 2], minlength=12)
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 31.3  # chi-square, 11 degrees of freedom, one in a thousand


def test_without_uniforms_rows_and_calls_differ():
    model = make(vocab_size=12)
    one, other = (generate(model, [[1]] * 6, 8, 11)[0] for _ in range(2))
    assert one.shape != other.shape or not torch.equal(one, other)
    assert len({tuple(row) for row in one.tolist()}) > 1
