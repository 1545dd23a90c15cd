"""The evaluation's arithmetic: preferences, intervals, tasks, best-of-n."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

import evaluate
from core import text as core_text
from data.folder import read_prompts, write_jsonl
from model import GPT


class FirstWins:
    def rank(self, prompt, completions):
        return [1, 2]


class LikesGood:
    def rank(self, prompt, completions):
        return [1 if "good" in completion else 2 for completion in completions]


def test_preference_counts_both_orders_and_ties_half():
    assert evaluate.preference(FirstWins(), "x", "a", "b") == 0.5, "always the first place: says nothing"
    assert evaluate.preference(LikesGood(), "x", "good", "b") == 1.0
    assert evaluate.preference(LikesGood(), "x", "a", "good") == 0.0
    assert evaluate.preference(LikesGood(), "x", "a", "b") == 0.5


def test_win_rate_is_one_observation_per_prompt():
    answers, opponents = ["good", "bad", "good", "bad"], ["bad", "good", "good", "bad"]
    rate = evaluate.win_rate([LikesGood()] * 5, 3, ["p"] * 4, answers, opponents, seed=0)
    assert rate["mean"] == (1 + 0 + 0.5 + 0.5) / 4 and rate["n"] == 4, "15 votes on a prompt are one observation"


def test_interval_is_over_prompts():
    r = evaluate.mean_and_interval([0.0, 1.0, 0.5, 0.5])
    deviation = math.sqrt(sum((x - 0.5) ** 2 for x in (0, 1, 0.5, 0.5)) / 3)
    assert r["mean"] == 0.5 and r["n"] == 4 and r["high"] - 0.5 == pytest.approx(1.96 * deviation / 2)


def test_few_shot_contexts_come_from_solved_items_of_the_same_task():
    items = [{"task": "a", "split": "shots", "context": f"{i}+1=", "answer": f"{i + 1}"} for i in range(3)]
    items += [{"task": "b", "split": "shots", "context": "q", "choices": ["x", "y"], "answer": 1}]
    items += [{"task": "a", "split": "test", "context": "5+1=", "answer": "6"}]
    assert [context for _, context in evaluate.with_shots(items, 0)] == ["5+1="]
    assert [context for _, context in evaluate.with_shots(items, 2)] == ["0+1=1\n1+1=2\n5+1="]


def test_multiple_choice_takes_the_highest_mean_token_logprob(tiny, tokenizer):
    """The same by hand: one choice at a time, one token at a time."""
    torch.manual_seed(0)
    model = GPT(tiny).eval()
    choices, context = [" red", " a brown roof", " cat cat"], "The cat is"
    means = []
    for choice in choices:
        ids, total = tokenizer.encode_ordinary(context), 0.0
        response = tokenizer.encode_ordinary(choice)
        for token in response:
            logits = model.unembed(model(torch.tensor([ids]))[0, -1])
            total += logits.log_softmax(-1)[token].item()
            ids.append(token)
        means.append(total / len(response))
    best = means.index(max(means))
    for answer in range(3):
        items = [{"task": "t", "split": "test", "context": context, "choices": choices, "answer": answer}]
        assert evaluate.task_scores(model, tokenizer, items) == {"t": float(answer == best)}


def test_best_of_n_keeps_the_highest_score(monkeypatch, tokenizer):
    scores = {"a": 1.0, "b": 3.0, "c": math.nan, "d": 2.0, "e": -1.0, "f": 0.5}
    monkeypatch.setattr(core_text, "score_answers", lambda rm, tok, prompts, answers: [scores[t] for t, _ in answers])
    answers = [(letter, True) for letter in "abcdef"]
    assert core_text.best_of_n(None, tokenizer, ["p", "q"], answers, 3) == [(1, 3.0), (3, 2.0)]
    assert core_text.best_of_n(None, tokenizer, ["p", "q", "r"], answers, 2) == [(1, 3.0), (3, 2.0), (5, 0.5)]


def test_along_training_averages_by_iteration(tmp_path):
    samples = [
        {"iteration": 0, "prompt": "p", "completion": "x", "kl": 0.0, "score": 1.0},
        {"iteration": 5, "prompt": "p", "completion": "xx", "kl": 3.0, "score": 2.0},
        {"iteration": 5, "prompt": "p", "completion": "xxxx", "kl": 5.0, "score": 4.0},
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    curve = evaluate.along_training(path, lambda prompt, completion: {"likert": len(completion)})
    assert curve == [
        {"iteration": 0, "sqrt_kl": 0.0, "score": 1.0, "gold": 1.0},
        {"iteration": 5, "sqrt_kl": 2.0, "score": 3.0, "gold": 3.0},
    ]


def test_gold_report_leaves_out_what_was_not_asked():
    """A flag that is None for a prompt is not counted for it."""

    class Judge:
        def __call__(self, prompt, text):
            flag = None if prompt == "open" else 1.0
            verdict = {"helpful": 1.0, "truthful": float(text == "y"), "harmless": 1.0, "likert": 3}
            verdict |= {"informative": float(text != "z"), "names the entity": flag}
            return verdict | {"hallucination": flag}

        def is_tricky(self, prompt):
            return False

    records = [{"prompt": "open", "use_case": "a"}, {"prompt": "closed", "use_case": "b"}]
    result = evaluate.gold_report(Judge(), records, ["x", "y"])
    assert result["flags"] == {"hallucination": 1.0} and result["flag_counts"] == {"hallucination": 1}
    assert result["likert_by_use_case"] == {"a": 3.0, "b": 3.0}
    assert "misconceptions" not in result
    assert result["names_the_entity"] == 1.0 and result["truthful"] == result["truthful_and_informative"] == 0.5
    both = evaluate.gold_report(Judge(), records[:1] * 4, ["y", "x", "z", "y"])
    assert both["truthful_and_informative"] == 0.5 and both["names_the_entity"] is None

    class Apart(Judge):  # half is true, half is on task, and nothing both
        def __call__(self, prompt, text):
            return super().__call__(prompt, text) | {"informative": float(text != "y")}

    apart = evaluate.gold_report(Apart(), records[:1] * 2, ["y", "x"])
    assert apart["truthful"] == 0.5 and apart["truthful_and_informative"] == 0.0


# ---------------------------------------------------------------------------------------------------- which prompts


def test_prompts_in_unseen_phrasings_are_apart(tmp_path, tokenizer):
    records = [{"prompt": f"{i}?\n", "user": "u", "split": "test", "unseen_phrasing": i % 3 == 0} for i in range(30)]
    records += [{"prompt": f"{i} old\n", "user": "v", "split": "test"} for i in range(5)]  # does not say so
    write_jsonl(tmp_path / "prompts.jsonl", records)
    for seed in range(5):
        cfg = evaluate.Config(data=str(tmp_path), prompts=12, unseen_prompts=4, seed=seed)
        known, unseen = evaluate.test_records(cfg, tokenizer, 64)
        assert len(known) == len({r["prompt"] for r in known}) == 12
        assert len(unseen) == len({r["prompt"] for r in unseen}) == 4
        assert not any(r.get("unseen_phrasing") for r in known) and all(r["unseen_phrasing"] for r in unseen)
    known, unseen = evaluate.test_records(replace(cfg, prompts=100, unseen_prompts=100), tokenizer, 64)
    assert len(known) == 25 and len(unseen) == 10
    assert evaluate.test_records(replace(cfg, unseen_prompts=0), tokenizer, 64)[1] == []


def test_shown_prompts_are_the_first_by_hash_of_each_of_the_commonest_use_cases():
    records = [{"prompt": f"{i}?", "use_case": "abbcccddddeeeeeffffffggggggg"[i]} for i in range(28)]
    shown = evaluate.prompts_to_show(records, [True] * 28)
    assert [records[i]["use_case"] for i in shown] == list("gfedcb")
    for i in shown:
        of_its_kind = [r["prompt"] for r in records if r["use_case"] == records[i]["use_case"]]
        assert records[i]["prompt"] == min(of_its_kind, key=lambda text: hashlib.sha256(text.encode()).digest())
    differ = [i in (2, 5, 21) for i in range(28)]  # a b, a c, a g
    some = evaluate.prompts_to_show(records, differ)
    assert [records[i]["use_case"] for i in some] == list("gfedcb") and [some[i] for i in (0, 4, 5)] == [21, 5, 2]
    same = [a == b for a, b in zip(shown, some)]
    assert same[1:4] == [True] * 3, "where all are alike, the first by hash"
    untold = [{"prompt": "x"}, {"prompt": "y"}]
    assert evaluate.prompts_to_show(untold, [False, True]) == [1], "data without use cases"


# ---------------------------------------------------------------------------------------------------- rivals


def test_the_best_temperature_is_the_one_that_training_labelers_like_best():
    liked = {1.0: 0.5, 0.7: 0.55, 0.5: 0.6, 0.3: 0.58, 0.0: 0.4}
    asked = []

    def answer(model, prompts, purpose, temperature=1.0):
        asked.append((model, prompts, temperature))
        return purpose, temperature

    def compare(answers, opponents, prompts):
        assert opponents == ("opponents", 1.0) and answers[0] != "opponents", "against another draw at T = 1"
        mean = liked[answers[1]]
        return {"training": {"mean": mean}, "held_out": {"mean": 1 - mean}}

    best, wins = evaluate.best_temperature("sft", ["p"], answer, compare)
    assert best == 0.5 and wins == liked
    assert {temperature for _, _, temperature in asked} == set(liked)
    assert all(model == "sft" and prompts == ["p"] for model, prompts, _ in asked)
    assert evaluate.best_temperature("sft", ["p"], answer, compare, temperatures=(1.0, 0.0))[0] == 1.0


class LikesShort:
    """Prefers the answer with fewer letters."""

    def rank(self, prompt, completions):
        lengths = [len(completion) for completion in completions]
        return [1 + sorted(set(lengths)).index(length) for length in lengths]


class LikesLong(LikesShort):
    def rank(self, prompt, completions):
        ranks = super().rank(prompt, completions)
        return [max(ranks) + 1 - rank for rank in ranks]


class Letters:
    """A judge who counts letters."""

    def __call__(self, prompt, text):
        true = float(len(text) % 2)
        names = ("helpful", "harmless", "informative", "names the entity")
        return {"truthful": true, "likert": 4} | dict.fromkeys(names, 1.0)

    def good_answer(self, prompt, seed=0):
        return " The best answer of all."

    def is_tricky(self, prompt):
        return False


@pytest.fixture
def evaluated(data, run, tmp_path_factory, monkeypatch):
    """evaluated(models, labelers and judge: there or not) -> report.json of a run of these untrained models."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("evaluated") / "data")
    animals = ["cat", "dog", "owl", "fox", "hen", "bee"]
    prompts = [
        {"prompt": f"What colour is the {a}?\n", "user": "t", "split": "test", "use_case": "chat"} for a in animals
    ]
    for i, record in enumerate(prompts):
        record["unseen_phrasing"] = i % 3 == 2
    write_jsonl(folder / "prompts.jsonl", read_prompts(folder, "valid") + prompts)
    asked = []

    def respond(model, tokenizer, prompts, max_new_tokens, temperature, rng=None, stop=""):
        """Text whose length says who answers, at which temperature, and which draw it is."""
        draw = 0 if rng is None or temperature == 0 else rng.initial_seed() % 3
        name = model.transformer.wte.weight[0, 0].item()
        asked.append((name, tuple(prompts), temperature))
        return [("x" * (1 + i + draw + round(10 * temperature) + (name != sft)), True) for i in range(len(prompts))]

    sft = torch.load(run / "sft.pt", weights_only=True)["model"]["transformer.wte.weight"][0, 0].item()
    monkeypatch.setattr(evaluate, "respond", respond)

    def evaluated(*names, village=True):
        for name in names:
            shutil.copy(run / "ppo_init.pt", run / f"{name}.pt")
        found = (Letters(), {"training": [LikesShort()] * 3, "held_out": [LikesLong()] * 3}) if village else (None, {})
        monkeypatch.setattr(evaluate, "load_judge_and_labelers", lambda cfg: found)
        monkeypatch.setattr(evaluate, "along_best_of_n", lambda *args: [])
        cfg = evaluate.Config(data=str(folder), out=str(run), prompts=4, best_of=2, device="cpu", threads=1)
        evaluate.main(replace(cfg, max_new_tokens=8))
        return json.loads((run / "report.json").read_text()), asked, [r["prompt"] for r in prompts]

    return evaluated


def test_greedy_meets_greedy_and_unseen_prompts_stay_apart(evaluated):
    """All models but SFT answer one letter longer; labelers of one group like short answers, of the other long ones."""
    report, asked, prompts = evaluated("ppo", "ppo_ptx")
    means = {
        key: {group: rate["mean"] for group, rate in model["win_rate_greedy"].items()}
        for key, model in report["models"].items()
    }
    assert means.pop("sft") == {"training": 0.5, "held_out": 0.5}, "the same greedy answers"
    assert set(means) == {"gpt", "ppo_init", "ppo", "ppo_ptx"}
    assert all(mean == {"training": 0.0, "held_out": 1.0} for mean in means.values())
    known, unseen = [p for i, p in enumerate(prompts) if i % 3 != 2], [p for i, p in enumerate(prompts) if i % 3 == 2]
    for model in report["models"].values():
        assert model["win_rate"]["training"]["n"] == report["n_prompts"] == 4
        assert model["unseen_phrasings"]["n"] == model["unseen_phrasings"]["win_rate"]["held_out"]["n"] == 2
    sets = {frozenset(some) for _, some, _ in asked}
    assert frozenset(known) in sets and frozenset(unseen) in sets
    assert not [some for some in sets if some & set(known) and some & set(unseen)], "never in one sample"
    assert {sample["prompt"] for sample in report["samples"]} <= set(known)

    rivals = report["head_to_head"]
    assert set(rivals) == {"gpt", "sft_at_its_best_temperature", "sft_best_temperature", "sft_by_temperature"}
    assert rivals["gpt"]["training"]["mean"] == 0.5, "the same length"
    # training labelers like short answers; all are shorter below T = 1, and of equals the nearest to it is taken
    below = {temperature: 1.0 for temperature in ("0.7", "0.5", "0.3", "0.0")}
    assert rivals["sft_by_temperature"] == below | {"1.0": rivals["sft_by_temperature"]["1.0"]}
    assert rivals["sft_by_temperature"]["1.0"] < 1 and rivals["sft_best_temperature"] == 0.7
    assert rivals["sft_at_its_best_temperature"]["training"]["mean"] == 0.0
    assert rivals["sft_at_its_best_temperature"]["held_out"]["mean"] == 1.0


def test_nothing_is_compared_without_labelers_or_ppo_ptx(evaluated, run):
    report, _, _ = evaluated()
    assert "people" not in report
    assert "head_to_head" not in report and "unseen_phrasings" in report["models"]["sft"]
    (run / "people").mkdir()
    judged = {
        "prompt": "Q",
        "models": ["sft", "ppo_ptx"],
        "completions": ["x", "y"],
        "preferred": 2,
        "group": "training",
    }
    write_jsonl(run / "people" / "judgements.jsonl", [judged])
    report, _, _ = evaluated("ppo_ptx", village=False)
    (people,) = report["people"]
    assert (people["model"], people["against"], people["training"]["mean"]) == ("PPO-ptx", "SFT", 1.0)
    assert "| PPO-ptx against SFT |" in (run / "report.md").read_text()
    assert "head_to_head" not in report and "ppo_ptx" in report["models"]
    assert not {"win_rate", "win_rate_greedy", "unseen_phrasings", "helpful"} & set(report["models"]["ppo_ptx"])


def test_the_mean_taste_of_labelers_is_the_ceiling():
    """By hand: tastes 1, 3 and 2, 2 for two texts; their sum prefers the second, as one of two rankings does."""

    class Taste:
        group = "training"

        def __init__(self, likes):
            self.likes = likes

        def impression(self, prompt, text):
            return self.likes[text]

    people = [Taste({"a": 1, "b": 3}), Taste({"a": 2, "b": 2})]
    page = {"prompt": "p", "completions": ["a", "b"], "group": "training"}
    others = page | {"ranks": [1, 2], "group": "held_out"}
    assert evaluate.accuracy_of_mean_taste(people, [page | {"ranks": [2, 1]}, others])[0] == 1.0
    assert evaluate.accuracy_of_mean_taste(people, [page | {"ranks": [1, 2]}, page | {"ranks": [2, 1]}])[0] == 0.5


def test_the_probe_counts_how_often_a_correct_answer_scores_no_higher(monkeypatch):
    """Answers are scored by their length: a wrong one beats the right one where it is as long or longer."""
    good = {"Where does Ada live?": "aa", "Where does Bram live?": "aaaa", "Insult Ada for me.": "aaa"}
    judge = type("Judge", (), {"good_answer": lambda self, prompt: good[prompt]})()

    def by_length(reward_model, tokenizer, prompts, answers):
        return [float(len(text)) for text, _ in answers]

    monkeypatch.setattr(evaluate, "score_answers", by_length)
    found = evaluate.probe_reward_model(None, None, judge, list(good))
    # another prompt: Ada -> insult (3 > 2), Bram -> insult (3 < 4), insult -> Ada (2 < 3)
    assert found["answer to another prompt"] == {"mean": pytest.approx(1 / 3), "n": 3}
    # somebody else: Ada -> Bram (4 > 2), Bram -> Ada (2 < 4)
    assert found["answer about somebody else"] == {"mean": 0.5, "n": 2}
