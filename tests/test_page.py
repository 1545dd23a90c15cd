"""The page: what Ask computes, derived a second way; who ranks what; what is kept, and that nothing is lost."""

import http.client
import json
import random
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context

import pytest
import torch
from runs import records_of
from small_models import make

import evaluate
import page
import ppo
import reward
from core.batches import generator
from core.checkpoint import save_checkpoint
from core.config import BadInput
from core.ranking_metrics import agreement_in
from core.report import people_section
from core.server import Server
from core.text import best_of_n
from data import people
from data.folder import read_comparisons, read_demonstrations, read_jsonl, write_jsonl
from model import GPT, ScalarModel
from model import generate as plain_generate

# ---------------------------------------------------------------------------------------------------- folders, servers


@pytest.fixture
def folder(data, tmp_path):
    """A data folder like `data`, without rankings, and with prompts to test on."""
    copy = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("comparisons.jsonl"))
    test = [{"prompt": f"What colour is the {a}?\n", "user": f"t{a}", "split": "test"} for a in ("ant", "elk", "emu")]
    write_jsonl(copy / "prompts.jsonl", [*(record for _, record in read_jsonl(data / "prompts.jsonl")), *test])
    return copy


def config(folder, run, **changes):
    small = {"out": str(run), "data": str(folder), "people": str(run / "people"), "prompts": 8, "valid_prompts": 4}
    small |= {"k_max": 5, "max_new_tokens": 6, "port": 0, "device": "cpu", "threads": 1}
    return page.Config(**small | changes)


@pytest.fixture
def cfg(folder, run):
    return config(folder, run)


@pytest.fixture
def served(cfg):
    return page.Page(cfg, torch.device("cpu"))


@contextmanager
def serving(functions, key=""):
    """A server in a thread of this process. -> its address"""
    server = Server("127.0.0.1", 0, b"<script>1</script>", functions, key)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(address, name, body, timeout=30):
    request = urllib.request.Request(f"{address}/api/{name}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


ANN, BEN = ({"name": name, "group": "training"} for name in ("Ann", "Ben"))
HAL = {"name": "Hal", "group": "held_out"}


def submission(who, number=None, **more):
    return who | {"id": str(number if number is not None else random.random()), "seconds": 3} | more


def rank_next(served, who, taste=len, **more):
    """Take the next task and rank it, shorter first. -> (task, ranks as they were shown)"""
    task = served.task(who | {"tab": "t"})["task"]
    marks = [taste(text) for text in task["completions"]]
    ranks = [sorted(set(marks)).index(mark) + 1 for mark in marks]
    served.rank(submission(who, task=task["id"], ranks=ranks, **more))
    return task, ranks


# ---------------------------------------------------------------------------------------------------- what PPO computes

PROMPT, RESPONSES = [5, 17, 250], [[9, 8, 7, 0], [4, 0], [200, 3, 3, 3, 3]]  # the last one has not ended


def slow_logprobs(model, context, response):
    """log π of every token of a response, one forward pass each."""
    found = []
    for t, token in enumerate(response):
        logits = model.unembed(model(torch.tensor([context + response[:t]])))[0, -1]
        found.append(logits.log_softmax(-1)[token].item())
    return found


@pytest.mark.parametrize("prefix", [[], [11, 12, 13, 14]])
def test_what_ask_shows_of_a_token(prefix):
    """Log-probs, KL term, value, reward and advantage, from their definitions, token by token."""
    policy, reference = make(seed=1, spread=3.0), make(seed=2, spread=3.0)
    reward_model, value_model = make(ScalarModel, seed=3), make(ScalarModel, seed=4)
    cfg = replace(ppo.Config(), kl_coef=0.3, discount=0.9, lam=0.8)
    with torch.no_grad():
        found = page.look_at(PROMPT, RESPONSES, policy, reference, reward_model, value_model, 0, cfg, prefix)
        for b, response in enumerate(RESPONSES):
            row = PROMPT + response
            own, base = slow_logprobs(policy, prefix + PROMPT, response), slow_logprobs(reference, PROMPT, response)
            score = reward_model(torch.tensor([row]))[0, -1].item()
            V = [value_model(torch.tensor([PROMPT + response[:t]]))[0, -1].item() for t in range(len(response))] + [0.0]
            R = [-0.3 * (a - b) for a, b in zip(own, base)]
            R[-1] += score
            delta = [R[t] + 0.9 * V[t + 1] - V[t] for t in range(len(response))]
            A = [sum((0.9 * 0.8) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(response))]
            columns = slice(len(PROMPT), len(row))
            assert found["scores"][b].item() == pytest.approx(score, abs=1e-5)
            wanted = {"logprobs": own, "ref_logprobs": base, "values": V[:-1], "rewards": R, "advantages": A}
            for name, values in wanted.items():
                assert found[name][b, columns].tolist() == pytest.approx(values, abs=1e-4), name
                assert found[name][b, : len(PROMPT)].abs().sum() == 0 == found[name][b, len(row) :].abs().sum(), name


def test_top_alternatives():
    policy, reference, prefix, response = make(seed=1, spread=3.0), make(seed=2, spread=3.0), [11, 12], [9, 8, 7]
    found = page.alternatives(PROMPT, response, policy, reference, 4, prefix)
    assert len(found) == 3
    with torch.no_grad():
        for t, likeliest in enumerate(found):
            p = policy.unembed(policy(torch.tensor([prefix + PROMPT + response[:t]])))[0, -1].softmax(-1)
            q = reference.unembed(reference(torch.tensor([PROMPT + response[:t]])))[0, -1].softmax(-1)
            assert [i for i, _, _ in likeliest] == p.sort(descending=True).indices[:4].tolist()
            for i, by_policy, by_reference in likeliest:
                assert by_policy == pytest.approx(p[i].item(), abs=1e-6)
                assert by_reference == pytest.approx(q[i].item(), abs=1e-6)


SETTINGS = {"temperature": 1.0, "max_new_tokens": 5, "seed": 3, "best_of": 1}
ASK = {"prompt": "What colour is it?", "model": "sft", "scorer": "reward"} | SETTINGS


def test_an_answer_is_what_the_model_samples(served, tokenizer):
    """Greedy: model.generate's. Sampled: a function of the seed. The tokens are those of the text."""
    prompt = tokenizer.encode_ordinary("What colour is it?\n")
    greedy = served.ask(ASK | {"temperature": 0})
    tokens, lengths, _ = plain_generate(served.models.policy("sft"), [prompt], 5, tokenizer.eot_token, 0)
    row = tokens[0, len(prompt) : lengths[0]].tolist()
    ended = row[-1] == tokenizer.eot_token
    assert greedy["text"] == tokenizer.decode(row[: len(row) - ended]) and greedy["ended"] == ended
    assert [token["text"] for token in greedy["tokens"] if not token["end"]] == [
        tokenizer.decode_single_token_bytes(i).decode(errors="replace") for i in row[: len(row) - ended]
    ]
    assert all(token["top"][0]["chosen"] for token in greedy["tokens"])
    one, two, other = (served.ask(ASK | {"seed": seed}) for seed in (3, 3, 4))
    assert one["text"] == two["text"] != other["text"]


def test_best_of_n_is_the_best_of_the_same_samples(served, tokenizer):
    found = served.ask(ASK | {"best_of": 8})
    prompt = "What colour is it?\n"
    rows = [tokenizer.encode_ordinary(prompt)] * 8
    uniforms = torch.rand(5, 8, generator=generator(3, "ask"))
    tokens, lengths, _ = plain_generate(served.models.policy("sft"), rows, 5, tokenizer.eot_token, uniforms=uniforms)
    answers = [served.models.tokenizer.decode(t[len(rows[0]) : n]) for t, n in zip(tokens.tolist(), lengths.tolist())]
    answers = [(text.removesuffix("<|endoftext|>"), text.endswith("<|endoftext|>")) for text in answers]
    *_, reward_model, _, _ = served.models.others("sft", "reward")
    ((best, score),) = best_of_n(reward_model, tokenizer, [prompt], answers, 8)
    assert len(found["scores"]) == 8 and found["score"] == max(found["scores"])
    if all(
        tokenizer.encode_ordinary(t) == r[len(rows[0]) : n - e]
        for (t, e), r, n in zip(answers, tokens.tolist(), lengths.tolist())
    ):
        assert found["text"] == answers[best][0] and found["score"] == pytest.approx(score, abs=1e-4)


def test_a_prompted_model_is_cut_where_the_next_example_begins(folder, run, tokenizer):
    write_jsonl(folder / "prefixes.jsonl", [{"prefix": "What? It.\n\n"}])
    served = page.Page(config(folder, run), torch.device("cpu"))
    assert {"gpt", "gpt_prompted"} <= set(served.models.policies())
    found = served.ask(ASK | {"model": "gpt_prompted"})
    assert found["kl"] == pytest.approx(sum(t["logprobs"] - t["ref_logprobs"] for t in found["tokens"]))
    eot, ids = tokenizer.eot_token, tokenizer.encode_ordinary("It is red.\n\nThe cat.\n\nNo.")
    assert page.cut_at("\n\n", [*ids, eot], tokenizer) == [*tokenizer.encode_ordinary("It is red."), eot]
    newline = tokenizer.encode_ordinary("\n")
    apart = [*tokenizer.encode_ordinary("Yes."), *newline, *newline, *tokenizer.encode_ordinary("No")]
    assert page.cut_at("\n\n", apart, tokenizer) == [*tokenizer.encode_ordinary("Yes."), eot]
    assert tokenizer.decode(page.cut_at("at", tokenizer.encode_ordinary("The cat."), tokenizer)[:-1]) == "The c"
    assert page.cut_at("\n\n", [5, 6, eot], tokenizer) == [5, 6, eot], "nothing to cut"


def test_which_models_there_are(served, run, tokenizer_spec, tiny):
    """evaluate.py's names; others by their file; not states, epochs, value models, nor models of another tokenizer."""

    def save(name, kind=GPT, spec=tokenizer_spec, settings=tiny):
        save_checkpoint(run / f"{name}.pt", kind(tiny), spec, settings, 1)

    trained = asdict(replace(ppo.Config(), kl_coef=0.5, lam=0.7))
    save("ppo", settings=trained)
    save("ppo.value", ScalarModel)
    (run / "round1").mkdir()
    save("round1/ppo")
    save("round1/reward", ScalarModel)
    save("mine")
    save("reward_people", ScalarModel)
    for name in ("sft.epoch-1", "ppo.state-3"):
        save(name)
    save("stranger", spec=tokenizer_spec | {"name": "other"})
    (run / "broken.pt").write_bytes(b"half a file")
    policies = {key: name for key, (name, _) in served.models.policies().items()}
    assert policies == {"gpt": "GPT", "sft": "SFT", "ppo_init": "PPO's start", "ppo": "PPO", "mine": "mine"} | {
        "ppo_1": "PPO, first round"
    }
    assert served.models.policies()["ppo_1"][1] == run / "round1" / "ppo.pt"
    assert list(served.models.scorers()) == ["reward", "reward_people", "round1/reward"]
    found = served.ask(ASK | {"model": "ppo"})
    assert (found["beta"], found["lam"], found["values_from"]) == (0.5, 0.7, "ppo.value.pt")
    assert served.ask(ASK)["values_from"] == "reward.pt" and served.ask(ASK)["beta"] == ppo.Config().kl_coef
    before = served.models.policy("mine")
    assert served.models.policy("mine") is before
    save("mine")
    assert served.models.policy("mine") is not before, "a file that has changed is loaded again"


WRONG_QUESTIONS = [
    ({"prompt": " \n"}, "empty"),
    ({"prompt": 7}, "must be text"),
    ({"prompt": "x" * 20_001}, "at most 20,000"),
    ({"prompt": "The cat " * 30}, "do not fit the context of 64"),
    ({"max_new_tokens": 1000}, "do not fit the context of 64"),
    ({"max_new_tokens": 0}, "from 1 to"),
    ({"max_new_tokens": 1.5}, "from 1 to"),
    ({"temperature": -1}, "from 0 to 5"),
    ({"temperature": True}, "from 0 to 5"),
    ({"best_of": 65}, "from 1 to 64"),
    ({"seed": -1}, "from 0 to"),
    ({"model": "../../etc/passwd"}, "no model '../../etc/passwd'"),
    ({"scorer": "nobody"}, "no reward model"),
]


def test_wrong_questions_are_refused_with_words(served):
    for change, words in WRONG_QUESTIONS:
        with pytest.raises(BadInput, match=words):
            served.ask(ASK | change)
    assert served.ask(ASK)["tokens"]


def test_without_a_reward_model_the_page_says_what_is_missing(served, run):
    (run / "reward.pt").unlink()
    with pytest.raises(BadInput, match="reward.pt: not there yet; rank answers"):
        served.ask(ASK)


def test_common_frame():
    assert page.common_frame(["Who?\n>", "Say it.\n>"]) == ("", "\n>")
    assert page.common_frame(["User: Hi.\n\nAssistant:", "User: So: no?\n\nAssistant:"]) == ("User: ", "\n\nAssistant:")
    assert page.common_frame(["What?\n", "Why?\n"]) == ("", "\n")
    assert page.common_frame(["What?", "Why?"]) == ("", "")


# ---------------------------------------------------------------------------------------------------- ranking


def test_a_ranking_is_a_record_that_reward_py_trains_on(served, cfg, tmp_path, capsys):
    """Shown shuffled, kept as sampled: ranks, ratings, flags and notes are those of the same texts."""
    seen = {}
    for _ in range(5):
        task = served.task(ANN | {"tab": "t"})["task"]
        texts = task["completions"]
        assert len(set(texts)) == len(texts) and "\n" not in task["prompt"]
        marks = {text: len(text) for text in texts}
        ranks = [1 + sorted(set(marks.values())).index(marks[text]) for text in texts]
        more = {"ratings": [1 + len(text) % 7 for text in texts], "notes": texts, "labels": ["asks for advice"]}
        more |= {"flags": [["fails the task"] * (len(text) % 2) for text in texts], "use_case": "open qa"}
        served.rank(submission(ANN, task=task["id"], ranks=ranks, **more))
        seen[task["id"]] = marks
    records = read_comparisons(tmp_path / "people" / "comparisons.jsonl")
    assert len(records) == 5 == len(seen)
    assert any(record["order"] != sorted(record["order"]) for record in records), "nothing was shuffled"
    for record in records:
        marks = [seen[record["task"]][text.strip()] for text in record["completions"]]
        for i in range(len(marks)):
            assert record["ratings"][i] == 1 + marks[i] % 7 and record["notes"][i] == record["completions"][i].strip()
            assert record["flags"][i] == ["fails the task"] * (marks[i] % 2)
            for j in range(i):
                assert (record["ranks"][i] < record["ranks"][j]) == (marks[i] < marks[j])
        assert sorted(set(record["ranks"])) == list(range(1, max(record["ranks"]) + 1)), "no gaps"
        assert (record["labeler"], record["group"], record["use_case"]) == ("Ann", "training", "open qa")
    assert Counter(record["split"] for record in records) == {"train": 4, "valid": 1}
    shared = {"data": cfg.data, "out": cfg.out, "device": "cpu", "threads": 1}
    reward.main(reward.Config(**shared, comparisons=f"{cfg.people}/comparisons.jsonl", name="reward_people"))
    assert "5 rankings" in capsys.readouterr().out and (tmp_path / "reward_people.pt").exists()


def test_answers_that_look_the_same_are_shown_once():
    record = {"prompt": "Q", "completions": [" a", "b", "a", "a\n", "c"], "ended": [True, False, False, True, True]}
    assert page.shown_once(record) == record | {"completions": [" a", "b", "c"], "ended": [True, False, True]}


def test_who_ranks_what(served, cfg):
    """A fifth of training labelers' prompts are for validation, the same for two people; held-out ones get no other."""
    for _ in range(10):
        rank_next(served, ANN)
        rank_next(served, BEN)
    for _ in range(4):
        rank_next(served, HAL)
    records = [r for _, r in read_jsonl(served.people.path("comparisons"))]
    by_split = {name: Counter(r["split"] for r in records if r["labeler"] == name) for name in ("Ann", "Ben", "Hal")}
    assert by_split["Ann"]["valid"] >= 2 and by_split["Hal"] == {"valid": 4}
    train = Counter(r["task"] for r in records if r["split"] == "train")
    assert len(train) == 8 and max(train.values()) <= 2, "each training prompt once before any comes twice"
    valid = [{r["task"] for r in records if r["labeler"] == n and r["split"] == "valid"} for n in ("Ann", "Ben", "Hal")]
    assert valid[0] & valid[1], "two people have ranked the same"
    assert served.task(HAL | {"tab": "t"})["task"] is None
    found = served.progress({})
    assert found["agreement"] == {group: agreement_in(records, group) for group in ("training", "held_out")}
    assert found["agreement"]["training"] == 1.0, "they have the same taste"
    assert {who["name"]: who["comparisons"] for who in found["labelers"]} == {"Ann": 10, "Ben": 10, "Hal": 4}


def test_nothing_trains_on_held_out_people(served):
    """Not even when a page that has a training prompt open changes hands."""
    task = served.task(ANN | {"tab": "t"})["task"]
    assert served.tasks[task["id"]]["split"] == "train"
    other = served.task(HAL | {"tab": "t", "current": task["id"]})["task"]
    assert served.tasks[other["id"]]["split"] == "valid"
    with pytest.raises(BadInput, match="nothing trains on what held-out labelers say"):
        served.rank(submission(HAL, task=task["id"], ranks=[1] * len(task["completions"])))


def test_two_tabs_and_two_people_get_different_training_prompts_and_a_reload_the_same(served):
    first = served.task(ANN | {"tab": "1"})["task"]["id"]
    other_tab = served.task(ANN | {"tab": "2"})["task"]["id"]
    other_person = served.task(BEN | {"tab": "3"})["task"]["id"]
    assert len({first, other_tab, other_person}) == 3
    again = served.task(ANN | {"tab": "1", "current": first})["task"]
    assert again["id"] == first and again == served.task(ANN | {"tab": "1", "current": first})["task"]
    served.skip(submission(ANN, task=first))
    assert served.task(ANN | {"tab": "1", "current": first})["task"]["id"] != first


def test_a_person_does_a_task_once_and_is_of_one_group(served):
    task, ranks = rank_next(served, ANN)
    with pytest.raises(BadInput, match="Ann has done this one already"):
        served.rank(submission(ANN, task=task["id"], ranks=ranks))
    for function, more in ((served.person, {}), (served.task, {"tab": "t"})):
        with pytest.raises(BadInput, match="Ann has worked as a training labeler"):
            function({"name": "Ann", "group": "held_out"} | more)
    with pytest.raises(BadInput, match="Ann has worked as a training labeler"):
        served.demonstrate(submission(ANN | {"group": "held_out"}, prompt="Q", completion="A", own=True))


WRONG_RANKINGS = [
    {"ranks": [1]},
    {"ranks": "12"},
    {"ranks": None},
    {"ranks": [0, 1, 1, 1, 1]},
    {"ranks": [1, 9, 1, 1, 1]},
    {"ranks": [1, 1.0, 1, 1, 1]},
    {"ranks": [1, True, 1, 1, 1]},
    {"ratings": [8, 1, 1, 1, 1]},
    {"ratings": [1]},
    {"flags": [["no such flag"]] * 5},
    {"flags": [[["fails the task"]]] * 5},
    {"notes": ["x" * 2001] * 5},
    {"labels": "all"},
    {"use_case": "cooking"},
    {"task": "no such task"},
    {"id": ""},
    {"name": " "},
    {"name": "x" * 41},
    {"name": "Ann\x07"},
    {"group": "judges"},
    {"seconds": -1},
    {"seconds": None},
]


def test_wrong_rankings_are_refused_and_leave_nothing(served):
    task = next(id for id, task in served.answers_to_rank().items() if len(task["completions"]) == 5)
    right = submission(ANN, task=task, ranks=[1, 2, 2, 3, 5])
    for change in WRONG_RANKINGS:
        with pytest.raises(BadInput):
            served.rank(right | change)
        assert not served.people.path("comparisons").exists(), change
    served.rank(right)
    assert len(records_of(served.people.path("comparisons"))) == 1


def test_undo_gives_back_what_was_shown(served):
    task, ranks = rank_next(served, ANN)
    shown = [f"note on {text}" for text in served.task(ANN | {"tab": "t"})["task"]["completions"]]
    second = served.task(ANN | {"tab": "t"})["task"]["id"]
    K = len(shown)
    served.rank(
        submission(ANN, "mine", task=second, ranks=list(range(1, K + 1)), notes=shown, labels=["closed domain"])
    )
    with pytest.raises(BadInput, match="nothing of yours"):
        served.undo(BEN | {"id": "mine"})
    back = served.undo(ANN | {"id": "mine"})
    assert (back["ranks"], back["notes"], back["labels"]) == (list(range(1, K + 1)), shown, ["closed domain"])
    assert back["task"] == second and back["counts"]["comparisons"] == 1
    assert [r["task"] for r in records_of(served.people.path("comparisons"))] == [task["id"]]
    with pytest.raises(BadInput, match="taken back"):  # a repeat of the submission that was on its way
        served.rank(submission(ANN, "mine", task=second, ranks=[1] * K))
    served.rank(submission(ANN, "again", task=second, ranks=[1] * K))


# ---------------------------------------------------------------------------------------------------- two models


def test_comparing_two_models(served, run):
    """Both orders of every pair, first all prompts once; nothing says who wrote what; the win rate, by hand."""
    shown = []
    while True:
        found = served.pair(ANN | {"a": "sft", "b": "gpt"})
        if found["pair"] is None:
            break
        assert "sft" not in json.dumps(found["pair"]) and "gpt" not in json.dumps(found["pair"])
        shown.append(found["pair"])
        vote = len(shown) % 3
        served.judge(submission(ANN, task=found["pair"]["id"], a="gpt", b="sft", preferred=vote))
    n = len(shown) // 2
    assert n >= 2 and found["count"] == found["of"] == 2 * n
    prompts = [pair["prompt"] for pair in shown]
    assert len(set(prompts[:n])) == n and sorted(prompts[:n]) == sorted(prompts[n:])
    orders = {pair["prompt"]: pair["completions"] for pair in shown[:n]}
    assert all(pair["completions"] == orders[pair["prompt"]][::-1] for pair in shown[n:])
    records = people.read_judgements(run / "people" / "judgements.jsonl")
    by_prompt = {}
    for record in records:
        won = 0.5 if record["preferred"] == 0 else float(record["models"].index("sft") + 1 == record["preferred"])
        by_prompt.setdefault(record["prompt"], []).append(won)
    means = [sum(points) / 2 for points in by_prompt.values()]
    (rate,) = served.progress({})["win_rates"]
    assert (rate["model"], rate["against"], rate["votes"]) == ("SFT", "GPT", 2 * n)
    assert rate["training"]["mean"] == pytest.approx(sum(means) / n) and rate["training"]["n"] == n
    spread = (sum((m - sum(means) / n) ** 2 for m in means) / (n - 1)) ** 0.5
    assert rate["training"]["high"] - rate["training"]["mean"] == pytest.approx(1.96 * spread / n**0.5)
    with pytest.raises(BadInput, match="two different models"):
        served.pair(ANN | {"a": "sft", "b": "sft"})


def test_the_report_shows_what_people_judged():
    judgement = {"prompt": "Q", "completions": ["x", "y"], "group": "training"}
    records = [
        judgement | {"models": ["ppo", "sft"], "preferred": 1},
        judgement | {"models": ["sft", "ppo"], "preferred": 1},
    ]
    records += [judgement | {"prompt": "R", "models": ["sft", "ppo"], "preferred": 2, "group": "held_out"}]
    (found,) = evaluate.people_win_rates(records, evaluate.NAMES)
    assert (found["model"], found["against"], found["votes"]) == ("PPO", "SFT", 3)
    assert found["training"]["mean"] == 0.5 and found["held_out"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    text = people_section({"people": [found]})
    assert "| PPO against SFT |" in text and "50.0 [50.0, 50.0] (1)" in text and "100.0 [100.0, 100.0] (1)" in text


# ---------------------------------------------------------------------------------------------------- demonstrations


def test_demonstrations(served, cfg, run):
    drawn = served.prompt({"split": "train"})
    served.demonstrate(submission(ANN, prompt=drawn["prompt"], completion=" It is red. ", split="train"))
    served.demonstrate(submission(ANN, prompt="Why?", completion="So.", own=True))
    served.demonstrate(submission(HAL, prompt="Who?", completion="Me.", own=True))
    train = read_demonstrations(cfg.people, "train")
    assert [r["completion"] for r in train] == ["It is red.", "So."], "as the data's begin: without a space"
    assert train[0]["prompt"] == drawn["prompt"] + "\n" and train[1]["prompt"] == "Why?\n"
    assert [r.get("source") for r in train] == [None, "labeler"]
    assert [r["labeler"] for r in read_demonstrations(cfg.people, "valid")] == ["Hal"], "nothing trains on the held-out"
    for wrong in ({"completion": " "}, {"split": "test", "own": False}, {"prompt": None}):
        with pytest.raises(BadInput):
            served.demonstrate(submission(ANN, prompt="Why?", completion="So.", own=True) | wrong)


# ---------------------------------------------------------------------------------------------------- nothing is lost


CLIENTS, SUBMISSIONS = 30, 20


def test_kill_9_in_the_middle_of_600_submissions_loses_none_and_doubles_none(cfg, tmp_path):
    """Two servers on one folder, 30 people; one server is killed while it writes, and its people go on with the other.

    A client sends a submission again, with the same id, until it is acknowledged.
    """
    folder = tmp_path / "people"
    cfg = replace(cfg, people=str(folder))
    tasks = [
        {"prompt": f"Q{i}\n", "completions": ["a", "b"], "ended": [True, True], "split": "train"} for i in range(20)
    ]
    write_jsonl(folder / "answers.jsonl", tasks)
    ids = [people.task_id(task["prompt"], task["completions"]) for task in tasks]
    processes, addresses = [], []
    for _ in range(2):
        server = Server("127.0.0.1", 0, b"", page.Page(cfg, torch.device("cpu")).functions())
        addresses.append(f"http://127.0.0.1:{server.server_port}")
        processes.append(get_context("fork").Process(target=server.serve_forever))
        processes[-1].start()
        server.server_close()  # in this process
    acknowledged, failed = Counter(), []

    def client(number):
        name, address = {"name": f"P{number}", "group": "training"}, addresses[number % 2]
        for i, task in enumerate(ids):
            body = submission(name, f"{number} {i}", task=task, ranks=[1, 2])
            while True:
                try:
                    assert post(address, "rank", body)["saved"]
                    acknowledged[body["id"]] += 1
                    break
                except urllib.error.HTTPError as problem:
                    failed.append(problem.read())
                    return
                except (OSError, http.client.HTTPException):  # its server is dead
                    address = addresses[1 - number % 2]

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    try:
        for thread in threads:
            thread.start()
        path = folder / "comparisons.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < 150:
            time.sleep(0.001)
        processes[0].kill()
        before = len(acknowledged)
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert processes[0].exitcode == -signal.SIGKILL and failed == [] and 0 < before < 600
    assert len(acknowledged) == CLIENTS * SUBMISSIONS
    kept = Counter(r["id"] for r in records_of(path))
    assert kept == acknowledged, "acknowledged = on the disk, each once"


# ---------------------------------------------------------------------------------------------------- watching


def test_watch_sends_what_is_new(served, run):
    write_jsonl(
        run / "ppo.jsonl",
        [{"step": i, "score": i / 10} | ({"valid_loss": 1.0} if i == 7 else {}) for i in range(1, 1001)],
    )
    with open(run / "ppo.jsonl", "a") as file:
        file.write('{"step": 1001, "sco')
    sample = {"prompt": "Q?\n", "completion": "<b>", "score": 1.0, "kl": 0.0}
    write_jsonl(run / "ppo.samples.jsonl", [sample | {"iteration": i} for i in (0, 5)])
    write_jsonl(run / "comparisons.jsonl", [{"prompt": "no log"}])
    found = served.watch({"have": {}})
    assert found["names"] == ["ppo", "ppo.samples"] and found["report"] is None
    steps, scores = found["logs"]["ppo"]["curves"]["score"]
    assert (steps[0], steps[-1], len(steps)) == (1, 1000, 240) and all(y == x / 10 for x, y in zip(steps, scores))
    assert found["logs"]["ppo"]["curves"]["valid_loss"] == [[7], [1.0]]
    (shown,) = found["logs"]["ppo.samples"]["samples"]
    assert shown["prompt"] == "Q?" and [a["iteration"] for a in shown["answers"]] == [0, 5]
    have = {name: log["version"] for name, log in found["logs"].items()}
    assert served.watch({"have": have})["logs"] == {}
    with open(run / "ppo.jsonl", "a") as file:
        file.write('re": 7}\n')
    assert served.watch({"have": have})["logs"]["ppo"]["curves"]["score"][0][-1] == 1001
    report = {"models": {"sft": {"name": "SFT", "win_rate": {}, "tasks": {}}}, "over_optimisation": {}, "samples": [1]}
    (run / "report.json").write_text(json.dumps(report))
    sent = served.watch({"have": have})["report"]
    assert sent["models"] == {"sft": {"name": "SFT", "win_rate": {}}} and "samples" not in sent
    assert served.watch({"have": {"report.json": sent["version"]}})["report"] is None


# ---------------------------------------------------------------------------------------------------- starting it


def test_wrong_settings_are_one_line(cfg, tmp_path):
    for change, words in (
        ({"k_min": 1}, "--k_min 1"),
        ({"port": 70_000}, "--port 70000"),
        ({"out": str(tmp_path / "none")}, "no such run folder"),
        ({"host": "no.such.host.invalid"}, "try --port 0|--host"),
    ):
        with pytest.raises(BadInput, match=words):
            page.main(replace(cfg, **change))


def test_a_classroom_has_a_key_that_survives_a_restart(tmp_path):
    key = page.classroom_key(tmp_path)
    assert key == page.classroom_key(tmp_path) and len(key) >= 20
    assert (tmp_path / "key").stat().st_mode & 0o77 == 0
    (tmp_path / "other").mkdir()
    assert page.classroom_key(tmp_path / "other") != key


def test_a_queue_that_is_full_says_so(served):
    """Through HTTP: one question is being answered, as many as may wait are waiting, the next one gets a 503."""
    served.one_at_a_time = page.OneAtATime(3)
    inside, go_on, statuses = threading.Event(), threading.Event(), []

    def slow(request):
        def work():
            inside.set()
            assert go_on.wait(10)
            return {}

        return served.one_at_a_time(work)

    with serving({"/api/slow": slow, "/api/start": served.start}) as address:
        threads = [threading.Thread(target=lambda: statuses.append(post(address, "slow", {}))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert inside.wait(10)
        while served.one_at_a_time.places._value:
            time.sleep(0.005)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(address, "slow", {})
        assert refused.value.code == 503 and refused.value.headers["Retry-After"]
        assert "3 questions are waiting already" in json.load(refused.value)["error"]
        assert post(address, "start", {})["models"], "what needs no model is answered meanwhile"
        go_on.set()
        for thread in threads:
            thread.join()
        assert statuses == [{}] * 3 and post(address, "slow", {}) == {}
