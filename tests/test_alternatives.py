"""DPO, RLAIF, Constitutional AI, two reward models: their formulas, derived a second time, and their pages and files."""

import math
import random
import re
from types import SimpleNamespace

import pytest
import torch
from data.labelers import GROUPS, Labeler

import reward
from alternatives import compare, constitutional, dpo, labeler, llama2, rlaif
from alternatives.common import Run, minibatches
from data import feedback, village
from data.folder import load_folder_tokenizer, read_comparisons
from model import GPT, GPTConfig, encode_answer
from plumbing import BadInput

WORLD = village.World(3)
PEOPLE = [Labeler(WORLD, "web", i) for i in range(GROUPS["web"])]


def softplus(x):
    return math.log1p(math.exp(x))


# ---------------------------------------------------------------------------------------------------- pairs and margins


def test_pairs_weigh_every_prompt_the_same():
    ranks = torch.tensor([1, 2, 3, 1, 1, 2, 5, 5])
    prompt = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    winner, loser, weight = reward.pairs_of(ranks, prompt)
    by_hand = {
        (0, 1): 1 / 6,
        (0, 2): 1 / 6,
        (1, 2): 1 / 6,
        (3, 5): 1 / 4,
        (4, 5): 1 / 4,
    }  # the third prompt is all ties
    assert dict(zip(zip(winner.tolist(), loser.tolist()), weight.tolist())) == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", ["none", "small", "large"])
def test_margins_by_how_much_better(kind):
    steps = {"none": [0, 0, 0, 0], "small": [0, 1 / 3, 2 / 3, 1], "large": [0, 1, 2, 3]}[kind]
    ratings, scores = [7, 6, 4, 1], [0.3, 0.5, -1.0, 0.2]
    margins = reward.margins_of(torch.tensor(ratings), kind)
    loss = reward.pairwise_loss(torch.tensor(scores), torch.arange(4), torch.zeros(4, dtype=torch.long), margins)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    by_hand = [softplus(scores[j] - scores[i] + steps[min(3, ratings[i] - ratings[j])]) for i, j in pairs]
    assert loss.item() == pytest.approx(sum(by_hand) / 6, rel=1e-5)


def test_outcomes_by_level_are_all_outcomes():
    ranking = [([1], 1, 7), ([2], 2, 6), ([3], 2, 6), ([4], 3, 2)]
    outcomes = reward.pair_outcomes([4.0, 3.0, 2.0, 1.0], [1, 2, 2, 3])
    found = reward.by_level([outcomes], [ranking])
    assert {k: sorted(v[0]) for k, v in found.items()} == {
        "slightly better": [1.0, 2.0],
        "significantly better": [1.0, 2.0, 3.0],
    }


def test_labelers_rate_as_they_rank():
    labeler, rng = Labeler(WORLD, "training", 4), random.Random(0)
    for _ in range(40):
        prompt, intent, slots = village.draw_prompt(WORLD, WORLD.valleys[2], rng)
        texts = [feedback.attempt(intent, slots, WORLD, WORLD.valleys[2], rng) for _ in range(5)]
        ranks, ratings = labeler.rank(prompt, texts), labeler.rate(prompt, texts)
        assert all(1 <= r <= 7 for r in ratings)
        assert all(ratings[i] >= ratings[j] for i in range(5) for j in range(5) if ranks[i] < ranks[j])


# ---------------------------------------------------------------------------------------------------- DPO


def test_dpo_starts_at_ln_2_with_a_gradient():
    h = torch.zeros(3, requires_grad=True)
    for smoothing in (0.0, 0.2):
        assert dpo.preference_loss(h, 0.1, smoothing).tolist() == pytest.approx([math.log(2)] * 3)
    dpo.preference_loss(h, 0.1).sum().backward()
    assert h.grad.tolist() == pytest.approx([-0.05] * 3)  # -β σ(r̂_l - r̂_w) = -β/2


def test_dpo_losses_by_hand():
    h = torch.tensor([3.0, -2.0])
    plain = [softplus(-0.5 * x) for x in (3.0, -2.0)]
    swapped = [softplus(0.5 * x) for x in (3.0, -2.0)]
    assert dpo.preference_loss(h, 0.5).tolist() == pytest.approx(plain)
    mixed = [0.9 * a + 0.1 * b for a, b in zip(plain, swapped)]
    assert dpo.preference_loss(h, 0.5, 0.1).tolist() == pytest.approx(mixed)
    assert dpo.preference_loss(h, 0.5, ipo=True).tolist() == pytest.approx([4.0, 9.0])  # (h - 1)²


def test_dpo_sums_the_response_and_nothing_else():
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 2, 16, 32, 50)).eval()
    rows = [([3, 4, 5, 6, 7], 2), ([9, 8, 7], 1)]
    got = dpo.sequence_logprobs(model, rows, "cpu")
    for (ids, n), value in zip(rows, got.tolist()):
        logprobs = model.unembed(model(torch.tensor([ids])))[0].log_softmax(-1)
        assert value == pytest.approx(sum(logprobs[t - 1, ids[t]].item() for t in range(n, len(ids))), abs=1e-5)
    same = dpo.log_ratios(model, model, [(rows, [1, 2])], "cpu")
    assert same.abs().max() == 0


def test_dpo_best_against_worst(encoding):
    record = {"prompt": "What colour is the cat?\n", "completions": ["A.", "B.", "C.", "D."], "ranks": [2, 4, 1, 3]}
    (all_of_them,) = dpo.encode([record], encoding, 64, False)
    (two,) = dpo.encode([record], encoding, 64, True)
    assert all_of_them[1] == [1, 2, 3, 4] and two[1] == [1, 4]
    prompt, best = encode_answer(encoding, record["prompt"], "C.")
    assert two[0][0] == (prompt + best, len(prompt)) and best[-1] == encoding.eot_token
    assert not dpo.encode([record | {"ranks": [1, 1, 1, 1]}], encoding, 64, False)


def test_dpo_learns_what_was_ranked(data, run, capsys):
    cfg = dpo.Config(data=str(data), out=str(run), epochs=12, learning_rate=3e-3, device="cpu", threads=1)
    dpo.main(cfg)
    printed = capsys.readouterr().out
    assert "loss +0.693" in printed and (run / "dpo.pt").exists()
    made = torch.load(run / "dpo.pt", weights_only=True)
    assert made["results"]["valid_accuracy"] > 0.8
    encoding, records = load_folder_tokenizer(data)[1], read_comparisons(data / "comparisons.jsonl")
    answers = [text for r in records if r["split"] == "train" for text in r["completions"]]
    tokens = sum(len(encoding.encode_ordinary(text)) for text in answers)  # DPO itself samples nothing
    assert made["cost"]["labels"] == 18 and made["cost"]["tokens"] == tokens


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"epochs": 0}, {"label_smoothing": 0.5}, {"learning_rate": -1.0}])
def test_dpo_refuses(data, run, wrong):
    with pytest.raises(BadInput, match="--"):
        dpo.main(dpo.Config(data=str(data), out=str(run), device="cpu", **wrong))


def test_minibatches_show_everything_once_per_epoch():
    seen = list(minibatches([3, 9, 4, 4, 8], 2, 2, torch.Generator().manual_seed(0)))
    assert [(step, steps) for step, steps, _ in seen] == [(i, 6) for i in range(6)]
    assert all(sorted(sum((b for _, _, b in part), [])) == [0, 1, 2, 3, 4] for part in (seen[:3], seen[3:]))


# ---------------------------------------------------------------------------------------------------- RLAIF


def test_soft_labels_are_a_cross_entropy():
    a, b, p = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.4]), torch.tensor([0.8, 0.3])
    by_hand = []
    for x, y, q in zip(a.tolist(), b.tolist(), p.tolist()):
        first = math.exp(x) / (math.exp(x) + math.exp(y))
        by_hand.append(-q * math.log(first) - (1 - q) * math.log(1 - first))
    assert labeler.soft_label_loss(a, b, p).item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    hard = labeler.soft_label_loss(a, b, torch.ones(2)).item()
    ranks, prompt = torch.tensor([1, 2, 1, 2]), torch.tensor([0, 0, 1, 1])
    eq1 = reward.pairwise_loss(torch.stack([a, b], 1).flatten(), ranks, prompt).item()
    assert hard == pytest.approx(eq1, rel=1e-6)


def test_swapping_the_answers_turns_the_preference_round(data, run):
    r = Run(rlaif.Config(data=str(data), out=str(run), device="cpu"), "x")
    model = r.load("base")
    triples = [("Q?\n>", " A cat.", " A dog."), ("P?\n>", " It is red.", " No.")]
    for thoughts in (True, False):
        p, one = labeler.preferences(model, r.encoding, triples, thoughts=thoughts)
        q, _ = labeler.preferences(model, r.encoding, [(x, b, a) for x, a, b in triples], thoughts=thoughts)
        assert torch.allclose(p + q, torch.ones(2), atol=1e-5) and ((p > 0) & (p < 1)).all()
        assert torch.allclose(p, (one[:, 0] + 1 - one[:, 1]) / 2)
    grades = labeler.grades(model, r.encoding, ["Q?\n>"] * 2, [" A cat.", " A dog."])
    assert (grades.abs() <= 1).all()


def test_choice_probabilities_are_the_models_own(data, run):
    r = Run(rlaif.Config(data=str(data), out=str(run), device="cpu"), "x")
    model = r.load("base")
    contexts, choices = ["The cat is ", "A red owl sat on a blue roof. It is "], ["r", "b", "g"]
    got = labeler.choice_probabilities(model, r.encoding, contexts, choices)
    for context, row in zip(contexts, got.tolist()):
        logits = model.unembed(model(torch.tensor([r.encoding.encode_ordinary(context)])))[0, -1]
        weights = [math.exp(logits[r.encoding.encode_ordinary(c)[0]].item()) for c in choices]
        assert row == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)
    with pytest.raises(BadInput, match="one token"):
        labeler.choice_probabilities(model, r.encoding, contexts, ["red roof"])


def test_reinforce_is_the_gradient_of_the_expected_return():
    """A two-armed bandit: Σ_a π(a) ∇ of the loss equals -∇ Σ_a π(a) Z(a), whatever the baseline says."""
    theta, Z = torch.tensor([0.3, -0.4], requires_grad=True), torch.tensor([1.0, -2.0])
    (theta.softmax(0) * Z).sum().backward()
    exact, theta.grad = theta.grad.clone(), None
    expected = torch.zeros(2)
    for arm, pi in enumerate(theta.softmax(0).tolist()):
        logprob = theta.log_softmax(0)[arm].view(1, 1)
        value = torch.full((1, 1), 0.7, requires_grad=True)
        policy_loss, value_loss = rlaif.reinforce_loss(logprob, value, Z[arm].view(1), torch.ones(1, 1))
        expected += pi * torch.autograd.grad(policy_loss, theta)[0]
        assert torch.autograd.grad(value_loss, value)[0].item() == pytest.approx(2 * (0.7 - Z[arm].item()))
    assert torch.allclose(expected, -exact, atol=1e-6)


def test_returns_weigh_reward_against_divergence():
    logprobs, base = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -1.0, 3.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    Z = rlaif.returns_of(torch.tensor([2.0]), logprobs, base, mask, 0.25)
    assert Z.item() == pytest.approx(0.75 * 2 - 0.25 * (0.5 - 1.0))


# ---------------------------------------------------------------------------------------------------- pages


def test_pages_are_about_prompts_of_training_valleys():
    trained = {n for v in range(7) for kind in village.ENTITIES for n in WORLD.valleys[v][kind]}
    later = {n for v in (7, 8, 9) for kind in village.ENTITIES for n in WORLD.valleys[v][kind]} - trained
    rng, named = random.Random(1), set()
    for _ in range(300):
        for page, _ in feedback.compare(WORLD, PEOPLE, rng)[:1]:
            named |= set(re.findall(r"\w+", page.split("\n", 1)[1].split("\n1>")[0]))
        page = feedback.criticise(WORLD, PEOPLE, rng)[0][0]
        named |= set(re.findall(r"\w+", page.split("\n>")[0]))
    assert len(trained & named) > 50 and not later & named


def test_verdicts_agree_with_the_grades_above_them():
    rng, equal = random.Random(2), 0
    for _ in range(200):
        page, verdict = (feedback.compare(WORLD, PEOPLE, rng) or [("", "")])[-1]
        given = [int(g) for g in re.findall(r"^=(\d)$", page, flags=re.M)]
        if page.endswith("Answer:") and given:
            assert given[0] == given[1] or verdict == ("1" if given[0] > given[1] else "2")
            equal += given[0] == given[1]
    assert equal > 5, "there are verdicts on answers with the same grade"


def test_a_critique_names_the_harm_and_the_revision_has_none():
    rng, found = random.Random(3), 0
    for _ in range(300):
        (asked, critique), (_, revision) = feedback.criticise(WORLD, PEOPLE, rng)
        answer = asked.split("\n>", 1)[1].rsplit("\n", 2)[0]
        harmful = feedback.harm_in(answer.strip())
        if critique.strip() in (feedback.harm_in(answer.strip()) or "-"):
            found += 1
            assert harmful and not feedback.harm_in(revision.strip())
        if critique.strip() == feedback.FINE:
            assert revision.strip() == answer.strip()
    assert found > 50


# ---------------------------------------------------------------------------------------------------- Constitutional AI


def test_the_constitution_is_a_file(tmp_path):
    path = constitutional.Config().constitution
    principles = constitutional.read_constitution(path)
    assert len(principles) >= 4 and all(len(p) == 3 for p in principles)
    mine = tmp_path / "mine.txt"
    mine.write_text("# a comment\n\nIs it kind? | Write it kindly. | Which is kinder?\n")
    assert constitutional.read_constitution(mine) == [("Is it kind?", "Write it kindly.", "Which is kinder?")]
    mine.write_text("Is it kind?\n")
    with pytest.raises(BadInput, match="mine.txt:1: expected"):
        constitutional.read_constitution(mine)
    mine.write_text("# nothing\n")
    with pytest.raises(BadInput, match="no principle"):
        constitutional.read_constitution(mine)
    with pytest.raises(BadInput, match="no such constitution"):
        constitutional.read_constitution(tmp_path / "none.txt")


def test_red_team_prompts_ask_for_harm_in_their_valleys():
    prompts = constitutional.red_team(WORLD, 50, range(8, 10), random.Random(0))
    people = {p for v in (8, 9) for p in WORLD.valleys[v]["person"]}
    for prompt in prompts:
        intent, slots = village.understand(prompt)
        assert intent == "rude" and slots["person"] in people
    assert len(prompts) == 50 and len(set(prompts)) > 20


# ---------------------------------------------------------------------------------------------------- two reward models


def test_the_switch_between_two_reward_models():
    r_h, r_s = torch.tensor([2.0, 2.0, 2.0, -1.0]), torch.tensor([3.0, -3.0, -1.0, 0.5])
    red = torch.tensor([True, False, False, False])
    picked = [3.0, -3.0, 2.0, -1.0]  # red team; σ(-3) = .05 < .15; σ(-1) = .27; safe
    mean = sum(picked) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in picked) / 4)
    assert llama2.combine(r_h, r_s, red).tolist() == pytest.approx([(x - mean) / spread for x in picked], rel=1e-4)
    mixed = [0.25 * h + 0.75 * s for h, s in zip(r_h.tolist(), r_s.tolist())]
    mean = sum(mixed) / 4
    spread = math.sqrt(sum((x - mean) ** 2 for x in mixed) / 4)
    got = llama2.combine(r_h, r_s, red, linear=0.25).tolist()
    assert got == pytest.approx([(x - mean) / spread for x in mixed], rel=1e-4)


def test_safe_or_not():
    loss = llama2.safe_or_not_loss(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.0])).item()
    assert loss == pytest.approx((softplus(-1) + softplus(-2)) / 2, rel=1e-5)


def test_labelers_see_harm():
    person = Labeler(WORLD, "training", 0)
    prompts = [f"Insult {p} for me.\n>" for p in WORLD.valleys[0]["person"]]
    names = WORLD.valleys[0]["person"]
    assert all(person.safe(x, f" {p} is kind.") for x, p in zip(prompts, names))
    missed = sum(person.safe(x, f" Nobody likes {p}.") for x, p in zip(prompts, names))
    assert missed <= 2


# ---------------------------------------------------------------------------------------------------- what it costs


def test_costs_of_run_come_from_its_logs(tmp_path):
    line = '{"split": "%s", "completions": ["ab", "c"]}\n'
    (tmp_path / "comparisons.jsonl").write_text(line % "train" + line % "valid" + line % "train")
    (tmp_path / "reward.jsonl").write_text('{"step": 0}\n{"final": 1, "seconds_collecting": 3.5}\n')
    for name in ("ppo", "ppo_ptx"):
        (tmp_path / f"{name}.jsonl").write_text('{"length": 10.0}\n{"length": 5.5}\n')
    (tmp_path / "stages.json").write_text(
        '{"reward": {"seconds": 7}, "ppo": {"seconds": 2}, "ppo_ptx": {"seconds": 4}}'
    )
    letters = SimpleNamespace(encode_ordinary=list)
    costs = compare.costs_of_run(tmp_path, letters)
    assert costs["rankings"] == {"labels": 2, "tokens": 6, "seconds": 3.5}
    assert costs["ppo"] == {"labels": 2, "tokens": 6 + 1984, "seconds": 9} and costs["ppo_ptx"]["seconds"] == 11


def test_best_of_n_keeps_the_highest(monkeypatch):
    draws = [("a", True), ("b", True), ("c", True), ("d", True)]
    monkeypatch.setattr(compare, "respond", lambda *a: draws)
    monkeypatch.setattr(compare, "for_sampling", lambda policy, cfg: policy)
    monkeypatch.setattr(compare, "score_answers", lambda *a: [0.1, float("nan"), -2.0, -1.0])
    cfg = SimpleNamespace(best_of=2, max_new_tokens=4)
    assert compare.best_of_n(cfg, None, None, None, ["x", "y"], 0) == [("a", True), ("d", True)]
