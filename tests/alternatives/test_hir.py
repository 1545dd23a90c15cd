"""HIR: hindsight by ranks, slices, the three terms of the loss by hand, and the script from end to end."""

import json
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from alternatives import hir
from alternatives.common import Run
from core.batches import generator
from core.checkpoint import load_checkpoint
from core.config import BadInput
from core.optim import adamw, optimizer_step
from data.folder import read_comparisons, read_prompts
from model import GPT, GPTConfig

CPU = torch.device("cpu")
LN2 = math.log(2)
ROWS = [  # ids of p* and question, of p̄ and question (another length), of the answer
    ([5, 6, 7], [8, 9, 6, 7], [10, 11, 12, 13]),
    ([8, 9, 20, 21, 22], [5, 20, 21, 22], [30, 31]),
    ([5, 40], [8, 9, 40], [50]),
]


def make(seed=0, spread=10):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(2, 2, 16, 64, 300)).eval()
    model.transformer.wte.weight.data *= spread
    return model


def config(data="", out="", **changes):
    small = dict(data=str(data), out=str(out), rounds=2, prompts=6, samples=3, epochs=1, batch_size=4, max_new_tokens=6)
    small |= dict(ranked=False, slices=True, contrast=1.0, pretrain_mix=0.0)
    return hir.Config(**small | {"good": "A cat.\n", "bad": "A dog.\n", "device": "cpu", "threads": 1} | changes)


def whole(rows):
    return [(*row, 0, len(row[2])) for row in rows]


@torch.no_grad()
def predictions(model, source, answer, i, j):
    """log p of the whole vocabulary for each token of answer[i:j], each computed from its prefix alone."""
    found = []
    for t in range(i, j):
        logits = model.unembed(model(torch.tensor([source + answer[:t]])))[0, -1].tolist()
        total = math.log(sum(map(math.exp, logits)))
        found.append([x - total for x in logits])
    return found


# ---------------------------------------------------------------------------------------------------- hindsight

RANKS = [
    ([1, 2], [True, False]),
    ([2, 1, 3], [False, True, False]),  # in the middle is not better than more than are better than it
    ([1, 1, 2], [True, True, False]),
    ([1, 2, 2], [True, False, False]),
    ([4, 3, 2, 1], [False, False, True, True]),
    ([1, 2, 2, 3], [True, False, False, False]),
    ([2, 2, 1, 2, 1], [False, False, True, False, True]),
    ([1, 1, 1], []),
]


@pytest.mark.parametrize("ranks, want", RANKS)
def test_the_better_half_gets_p_ok(ranks, want):
    assert hir.relabel(ranks) == want
    if want:
        assert want[ranks.index(1)] and not want[ranks.index(max(ranks))]


def test_relabelling_is_about_places_not_numbers():
    rng = random.Random(0)
    for _ in range(200):
        ranks = [rng.randint(1, 5) for _ in range(rng.randint(2, 6))]
        ordered = sorted(ranks)  # mean place of an answer, counted over all orders that the ties allow
        places = [sum(i for i, r in enumerate(ordered) if r == rank) / ordered.count(rank) for rank in ranks]
        middle = (len(ranks) - 1) / 2
        want = [place < middle - 1e-9 for place in places] if len(set(ranks)) > 1 else []
        assert hir.relabel(ranks) == want == hir.relabel([10 * r for r in ranks])


class Scripted:
    """Stands in for alternatives.common.Run: says what it is told to say."""

    device = CPU

    def __init__(self, answers, **changes):
        self.cfg, self.cost, self.said = config(**changes), {"labels": 0}, answers

    def generator(self, purpose, step=0):
        return generator(self.cfg.seed, purpose, step)

    def answers(self, policy, prompts, rng):
        self.asked = prompts
        return self.said


class Shortest:
    """Likes short answers, and remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def rank(self, prompt, completions):
        self.shown.append((prompt, completions))
        return [1 + len({len(c) for c in completions if len(c) < len(text)}) for text in completions]


def test_what_people_are_shown_and_what_becomes_of_it():
    answers = [(" abc", True), (" a", True), (" abc", True)]  # equal texts once
    answers += [(" x", True), (" y", False), (" z", True)]  # all tie
    answers += [(" q", True), (" ", True), (" q", True)]  # one text that is not empty: nothing to rank
    answers += [(" long", False), (" longer", True), (" l", True)]
    run, person = Scripted(answers), Shortest()
    found, figures = hir.hindsight(run, None, ["1?", "2?", "3?", "4?"], [person], random.Random(0), 1)
    assert run.asked == [f"A cat.\n{n}?" for n in (1, 2, 3, 4) for _ in range(3)], "sampled under p_ok"
    want = [("1?", [" abc", " a"]), ("2?", [" x", " y", " z"]), ("4?", [" long", " longer", " l"])]
    assert person.shown == want, "people do not see the instruction"
    assert run.cost["labels"] == 3, "a tie has cost a ranking too"
    assert found == [
        ("1?", " abc", True, False),
        ("1?", " a", True, True),
        ("4?", " long", False, False),
        ("4?", " longer", True, False),
        ("4?", " l", True, True),
    ]
    want = {"rankings": 3, "p_ok": 2 / 5}
    assert figures == pytest.approx(want)


def test_nothing_to_learn_is_said():
    with pytest.raises(BadInput, match="none of 1 rankings"):
        hir.hindsight(
            Scripted([(" a", True), (" b", True), (" c", True)]), None, ["?"], [Shortest()], random.Random(0), 1
        )
    with pytest.raises(BadInput, match="none of 0 rankings"):
        hir.hindsight(Scripted([("", True)] * 3), None, ["?"], [Shortest()], random.Random(0), 1)


def test_the_instruction_that_fits_comes_first(tokenizer):
    q, cfg = "What colour is the owl?\n", config(good="A cat.\n", bad="A brown dog on a roof.\n")
    found = [(q, " It is red.", True, True), (q, " A dog", False, False)]
    rows = hir.encode_examples(found, cfg, tokenizer, 64)
    for (source, other, answer), (_, text, ended, good) in zip(rows, found):
        own, opposite = (cfg.good, cfg.bad) if good else (cfg.bad, cfg.good)
        assert tokenizer.decode(source) == own + q and tokenizer.decode(other) == opposite + q
        assert (answer[-1] == tokenizer.eot_token) == ended and tokenizer.decode(answer[: len(answer) - ended]) == text
        assert tokenizer.encode_ordinary(own + q) == source, "the ids that were sampled after"
    longest = max(len(row[1]) + len(row[2]) for row in rows[:1])
    assert rows[0] in hir.encode_examples(found, cfg, tokenizer, longest)
    assert rows[0] not in hir.encode_examples(found, cfg, tokenizer, longest - 1), (
        "p̄ is the longer one, and must fit too"
    )


# ---------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize("length", [1, 2, 5])
def test_every_slice_is_as_likely(length):
    rng = random.Random(0)
    counts = Counter(tuple(hir.random_slice(length, rng)) for _ in range(3000))
    assert set(counts) == {(i, j) for i in range(length) for j in range(i + 1, length + 1)}
    assert max(counts.values()) < 1.4 * min(counts.values())


def test_a_slice_keeps_its_tokens_and_moves_what_stands_before_it_into_the_input():
    source, answer = [1, 2, 3], [7, 8, 9, 10]
    for i in range(4):
        for j in range(i + 1, 5):
            ids, n = hir.cut(source, answer, i, j)
            assert ids[n:] == answer[i:j], "the target"
            assert ids[:n] == source + answer[:i], "the input: the prompt whole, then the answer so far"
    assert hir.cut(source, answer, 0, 4) == (source + answer, 3)


def test_the_script_cuts_anew_in_every_epoch_or_not_at_all(monkeypatch):
    for slices in (True, False):
        seen, loss_terms = [], hir.loss_terms
        run = Scripted([], slices=slices, epochs=80)
        policy = make()
        spy = lambda model, batch, *rest: seen.extend(batch) or loss_terms(model, batch, *rest)
        monkeypatch.setattr(hir, "loss_terms", spy)
        hir.learn(policy, adamw(policy, 1e-4), ROWS, run, random.Random(0), 1)
        monkeypatch.undo()
        assert len(seen) == 80 * len(ROWS)
        assert all(row[:3] in ROWS and 0 <= row[3] < row[4] <= len(row[2]) for row in seen)
        assert len({row[3:] for row in seen if row[:3] == ROWS[0]}) == (10 if slices else 1)
        assert slices or all(row[3:] == (0, len(row[2])) for row in seen)


# ---------------------------------------------------------------------------------------------------- the loss


def test_smoothed_nll_by_hand():
    logits, targets = [[1.0, -2.0, 0.5, 0.0], [0.0, 3.0, -1.0, 1.0]], [2, 0]
    for smooth in (0.0, 0.2, 0.4):
        want = 0
        for row, target in zip(logits, targets):
            logp = [x - math.log(sum(map(math.exp, row))) for x in row]
            wanted = [smooth / 4 + (1 - smooth) * (k == target) for k in range(4)]  # the distribution it should learn
            want -= sum(w * p for w, p in zip(wanted, logp)) / 2
        got = hir.smoothed_nll(torch.tensor(logits), torch.tensor(targets), smooth)
        assert got.item() == pytest.approx(want, rel=1e-5)


def test_contrast_by_hand():
    mean_logps = [(-0.5, -2.0), (-1.0, -0.3), (-0.7, -0.7)]
    a, b = torch.tensor(mean_logps).T
    for smooth in (0.0, 0.2):
        want = 0
        for x, y in mean_logps:
            f = math.exp(x) / (math.exp(x) + math.exp(y))
            want += (-(1 - smooth) * math.log(f) - smooth * math.log(1 - f)) / 3
        assert hir.contrast(a, b, smooth).item() == pytest.approx(want, rel=1e-5)
        assert hir.contrast(a[2:], b[2:], smooth).item() == pytest.approx(LN2), "p is ignored"


def test_contrast_is_least_where_f_is_one_minus_the_smoothing():
    differences = torch.linspace(-4, 8, 2401)
    losses = torch.stack([hir.contrast(d[None], torch.zeros(1), 0.2) for d in differences])
    assert torch.sigmoid(differences[losses.argmin()]).item() == pytest.approx(0.8, abs=1e-3)
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    hir.contrast(a, b, 0.2).backward()
    assert a.grad.item() == pytest.approx(0.5 - 0.8) and b.grad.item() == pytest.approx(0.8 - 0.5)


def test_contrast_stays_finite():
    for a, b in ((-300.0, 0.0), (0.0, -300.0)):
        x = torch.tensor([a], requires_grad=True)
        loss = hir.contrast(x, torch.tensor([b]), 0.2)
        loss.backward()
        assert loss.item() == pytest.approx(300 * (0.8 if a < b else 0.2)) and math.isfinite(x.grad.item())


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    p = [math.exp(x) / sum(map(math.exp, (2, 1, 0, -1))) for x in (2, 1, 0, -1)]
    entropy = hir.mean_entropy(logits)
    assert entropy.item() == pytest.approx((math.log(4) - sum(x * math.log(x) for x in p)) / 2, rel=1e-5)
    entropy.backward()
    assert logits.grad.abs().max() > 0.01, "it is trained"


@pytest.mark.parametrize("cuts", [[(0, 4), (0, 2), (0, 1)], [(1, 3), (1, 2), (0, 1)], [(3, 4), (0, 1), (0, 1)]])
def test_the_terms_match_a_loop_over_tokens(cuts):
    """Each token is predicted from its prefix alone: the masks pick exactly the targets, with either instruction."""
    model, cfg = make(), config(label_smoothing=0.1, contrast_smoothing=0.3)
    batch = [(*row, *ij) for row, ij in zip(ROWS, cuts)]
    nll, entropy, apart, told = [], [], [], []
    for source, other, answer, i, j in batch:
        means = []
        for prompt in (source, other):
            found = predictions(model, prompt, answer, i, j)
            means.append(sum(logp[t] for logp, t in zip(found, answer[i:j])) / (j - i))
            if prompt is source:
                nll += [-0.9 * logp[t] - 0.1 * sum(logp) / 300 for logp, t in zip(found, answer[i:j])]
                entropy += [-sum(math.exp(x) * x for x in logp) for logp in found]
        f = 1 / (1 + math.exp(means[1] - means[0]))
        apart.append(-0.7 * math.log(f) - 0.3 * math.log(1 - f))
        told.append(f > 0.5)
    got = [x.item() for x in hir.loss_terms(model, batch, cfg, CPU)]
    assert got == pytest.approx([sum(x) / len(x) for x in (nll, apart, entropy, told)], abs=1e-4)


def test_equal_instructions_cannot_be_told_apart():
    rows = [(source, source, answer) for source, _, answer in ROWS]
    _, apart, _, told = hir.loss_terms(make(), whole(rows), config(), CPU)
    assert apart.item() == pytest.approx(LN2, abs=1e-6) and told.item() < 1


def test_what_comes_after_the_slice_changes_nothing():
    model, cfg = make(), config()
    longer = [(source, other, answer + [99, 98]) for source, other, answer in ROWS]
    cuts = [(1, 3), (0, 1), (0, 1)]
    one, two = (hir.loss_terms(model, [(*r, *c) for r, c in zip(rows, cuts)], cfg, CPU) for rows in (ROWS, longer))
    assert torch.stack(one).tolist() == pytest.approx(torch.stack(two).tolist(), abs=1e-6)


@pytest.mark.parametrize("alpha, beta", [(1.0, 0.001), (0.0, 0.0), (2.0, 0.5)])
def test_the_weights_of_the_terms(monkeypatch, alpha, beta):
    """The first step's gradient is that of nll + α contrast - β entropy."""
    run, steps, policy = Scripted([], slices=False, contrast=alpha, entropy_coef=beta), [], make()

    def spy(optimizer, model, *rest):
        steps.append([p.grad.clone() for p in model.parameters()])
        return optimizer_step(optimizer, model, *rest)

    monkeypatch.setattr(hir, "optimizer_step", spy)
    means = hir.learn(policy, adamw(policy, 1e-4), ROWS, run, random.Random(0), 1)
    model = make()
    nll, apart, entropy, _ = hir.loss_terms(model, whole(ROWS), run.cfg, CPU)
    loss = nll + alpha * apart - beta * entropy
    assert means["loss"] == pytest.approx(loss.item(), abs=1e-4)
    for got, want in zip(steps[0], torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_share_of_pretraining_text(data, run, monkeypatch):
    """The first step's gradient is 3/4 of the answers' and 1/4 of the pages'."""
    process, steps, policy = Run(config(data, run, pretrain_mix=0.25, slices=False), "hir"), [], make()

    def spy(optimizer, model, *rest):
        steps.append([p.grad.clone() for p in model.parameters()])
        return optimizer_step(optimizer, model, *rest)

    monkeypatch.setattr(hir, "optimizer_step", spy)
    seen, lm_loss = [], hir.lm_loss
    monkeypatch.setattr(hir, "lm_loss", lambda model, pages: seen.append(pages) or lm_loss(model, pages))
    hir.learn(policy, adamw(policy, 1e-4), ROWS, process, random.Random(0), 1)
    assert seen[0].shape == (1, 64), "a quarter of the batch size of 4"
    model = make()
    nll, apart, entropy, _ = hir.loss_terms(model, whole(ROWS), process.cfg, CPU)
    loss = 0.75 * (nll + apart - 0.001 * entropy) + 0.25 * lm_loss(model, seen[0]).mean()
    for got, want in zip(steps[0], torch.autograd.grad(loss, list(model.parameters()))):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_it_learns_which_answer_belongs_to_which_instruction():
    """The same question, one answer for p_ok and one for p_bad. Afterwards f is near 0.8 and each is given."""
    good, bad = [5, 20, 21], [6, 20, 21]
    rows = [(good, bad, [30, 31, 299]), (bad, good, [40, 41, 299])]
    policy, run = make(spread=1), Scripted([], epochs=150, learning_rate=1e-2, label_smoothing=0.0)
    before = hir.loss_terms(policy, whole(rows), run.cfg, CPU)
    hir.learn(policy, adamw(policy, 1e-2), rows, run, random.Random(0), 1)
    nll, apart, _, told = hir.loss_terms(policy, whole(rows), run.cfg, CPU)
    assert before[1].item() == pytest.approx(LN2, abs=0.05)
    assert nll < 0.5 < before[0] and apart < LN2 - 0.05 and told == 1
    for source, _, answer in rows:
        assert max(range(300), key=predictions(policy, source, answer, 0, 1)[0].__getitem__) == answer[0]


# ---------------------------------------------------------------------------------------------------- from end to end


@pytest.fixture
def people(monkeypatch):
    """Labelers who like short answers. Only the training group is asked."""
    group = [SimpleNamespace(name=f"p{i}", rank=Shortest().rank) for i in range(3)]
    monkeypatch.setattr(hir, "load_labelers", lambda folder, which: {"training": group}[which])


def test_from_end_to_end(data, run, people, tokenizer_spec, capsys):
    before = load_checkpoint(run / "ppo_init.pt", "policy")[0].state_dict()
    hir.main(config(data, run, entropy_coef=0.01))
    policy, _, checkpoint = load_checkpoint(run / "hir.pt", "policy", tokenizer_spec=tokenizer_spec)
    assert any(not torch.equal(x, before[k]) for k, x in policy.state_dict().items())
    assert checkpoint["results"]["prefix"] == "A cat.\n", "what a question needs in front of it"
    records = [json.loads(line) for line in open(run / "hir.jsonl")]
    assert [r.get("step") for r in records] == [1, 2, None]
    names = ("loss", "nll", "contrast", "entropy", "told_apart", "p_ok")
    for r in records[:2]:
        assert all(math.isfinite(r[k]) for k in names)
        assert 0 < r["rankings"] <= 6 and 0 < r["answers"] <= 18 and 0 < r["p_ok"] < 1
        assert r["loss"] == pytest.approx(r["nll"] + r["contrast"] - 0.01 * r["entropy"], abs=1e-4)
    cost = records[2]["cost"]
    assert cost == pytest.approx(checkpoint["cost"], abs=1e-3)
    assert cost["labels"] == records[0]["rankings"] + records[1]["rankings"]
    assert 2 * 18 <= cost["tokens"] and cost["seconds"] > 0
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.strip().startswith(("1/2 ", "2/2 "))]) == 2
    for q in read_prompts(data, "valid")[:2]:
        for instruction in ("A cat.\n", "A dog.\n"):
            assert repr((instruction + q["prompt"]).strip()) in printed


def test_same_seed_same_model(data, run, people):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        hir.main(config(data, run, name=name, rounds=1, seed=seed))
    one, two, other = (load_checkpoint(run / f"{n}.pt", "policy")[0].state_dict() for n in ("one", "two", "other"))
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)


def test_prompts_leave_room_behind_the_longer_instruction(data, run, tokenizer, people, capsys):
    cfg = config(data, run, rounds=1)
    longest = max(
        len(tokenizer.encode_ordinary(r["prompt"])) for s in ("train", "valid") for r in read_prompts(data, s)
    )
    fits = 64 - cfg.max_new_tokens - longest  # of an instruction, for every prompt
    hir.main(config(data, run, rounds=1, bad="zq" * ((fits - 2) // 2)))
    assert "dropped" not in capsys.readouterr().out
    with pytest.raises(BadInput, match="no prompt is short enough"):
        hir.main(config(data, run, rounds=1, bad="zq" * 32))


BAD = [
    ("pretrain_mix", 1.0),
    ("pretrain_mix", -0.1),
    ("rounds", 0),
    ("prompts", 0),
    ("epochs", 0),
    ("batch_size", 0),
    ("samples", 1),
    ("learning_rate", 0.0),
    ("label_smoothing", 0.5),
    ("label_smoothing", -0.1),
    ("contrast_smoothing", 0.5),
    ("contrast", -1.0),
    ("entropy_coef", -1.0),
    ("max_new_tokens", 0),
    ("bad", "A cat.\n"),
]


@pytest.mark.parametrize("flag, value", BAD)
def test_bad_flags(data, run, people, flag, value):
    with pytest.raises(BadInput, match=f"--{flag}"):
        hir.main(config(data, run, **{flag: value}))


def test_it_needs_people_and_does_not_go_on_when_it_diverges(data, run, request):
    with pytest.raises(BadInput, match="village.json: not found"):
        hir.main(config(data, run))
    request.getfixturevalue("people")
    with pytest.raises(BadInput, match="learning_rate"):
        hir.main(config(data, run, learning_rate=1e30))
    assert not (run / "hir.pt").exists()


def test_round_0_relabels_the_rankings_that_are_there(data, run):
    r = Run(config(data, run), "x")
    found, figures = hir.already_ranked(r)
    train = [c for c in read_comparisons(data / "comparisons.jsonl") if c["split"] == "train"]
    assert len(found) == 3 * len(train) and figures["rankings"] == r.cost["labels"] == len(train)
    assert all(good == text.startswith("It is") for _, text, _, good in found) and figures["p_ok"] == pytest.approx(
        1 / 3
    )
