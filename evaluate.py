"""Evaluate all models of a run: who prefers whom, and what did it cost (§3.6, §4, App. D, E)?

    python evaluate.py             # -> report.md, report.json, figures (with matplotlib)

Prompts are the test split's: other users, and in the village other questions, than anything was trained on, in
phrasings that training prompts have; prompts in phrasings that none of them has are a row of their own. Every model
answers once at temperature 1, and once greedily. Then:

  win rates      against one fixed SFT answer per prompt, by training labelers and by held-out labelers, each pair shown
                 in both orders, ties counted half; 95 % intervals over prompts (all votes on a prompt are one
                 observation). At T = 1 a policy of lower entropy wins alone by fewer sampling errors; so greedy answers
                 meet SFT's greedy ones, too, and PPO-ptx meets SFT at the temperature at which that does best
  gold           helpful / truthful / harmless, Likert 1-7 and the flags of the paper's Table 3, by the judge, which
                 knows all the facts and was never seen by anything that trained
  alignment tax  corpus loss, and accuracy on the web's "public tasks", zero- and few-shot
  over-optimisation   reward-model score and gold score against √KL, along PPO's training and for best-of-n

Only simulated labelers are asked; what people have judged on page.py (OUT/people) is reported beside them. A data
folder without them gets what makes sense without them: reward-model accuracy on held-out rankings, scores, KL and
samples.
"""

import json
import math
import random
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint
from core.config import Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.output import output_folder, whole_file
from core.ranking_metrics import accuracy, differences, mean_and_error
from core.report import figures, markdown, summary
from core.task_metrics import token_f1
from core.text import answer_logprobs, best_of_n, kl_of_answers, mean_score, respond, score_answers
from data.folder import Corpus, load_tokenizer, read_comparisons, read_jsonl, read_prompts, with_room
from data.people import read_judgements
from data.village.intents import understand
from pretrain import corpus_loss


@dataclass
class Config(Device):
    data: str = "out/run/data"  # data folder
    out: str = "out/run"  # run folder; its models are evaluated, the report is written there
    prompts: PositiveInt = 430  # test prompts; fewer if the data has fewer
    unseen_prompts: int = 150  # test prompts in phrasings that no training prompt has
    labelers: PositiveInt = 3  # of each group, per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    shots: int = 2  # solved examples in front of a few-shot task
    best_of: PositiveInt = 16  # largest n of best-of-n, a power of two
    best_of_prompts: PositiveInt = 96  # validation prompts for best-of-n (as many as ppo.py samples) and few-shot
    also: str = ""  # more policies of the run folder to evaluate: names of .pt files without the ending, a,b
    quick: bool = False  # say that the numbers mean nothing
    seed: Seed = 0  # of sampling and of the choice of labelers


NAMES = {
    "gpt": "GPT",
    "gpt_prompted": "GPT (prompted)",
    "sft": "SFT",
    "ppo_init": "PPO's start",
    "ppo_1": "PPO, first round",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}
FILES = {
    "gpt": ["base.pt"],
    "sft": ["sft_best.pt", "sft.pt"],
    "gpt_prompted": [],
    "ppo_1": ["round1/ppo.pt"],
}  # the others: OUT/KEY.pt

# ---------------------------------------------------------------------------------------------------- who prefers whom


def preference(labeler, prompt, answer, opponent):
    """Share of the two orders in which a labeler ranks `answer` over `opponent`; a tie is half. -> 0, 0.25, … 1"""

    def points(rank, rank_of_opponent):
        return 1.0 if rank < rank_of_opponent else 0.5 if rank == rank_of_opponent else 0.0

    first, second = labeler.rank(prompt, [answer, opponent])
    second_again, first_again = labeler.rank(prompt, [opponent, answer])
    return (points(first, second) + points(first_again, second_again)) / 2


def preferences(labelers, per_prompt, prompts, answers, opponents, seed):
    """Per prompt the share of votes for the answer; the same randomly drawn labelers for every model. -> [share]"""
    rng, by_prompt = random.Random(f"labelers {seed}"), []
    for prompt, answer, opponent in zip(prompts, answers, opponents):
        drawn = rng.sample(labelers, min(per_prompt, len(labelers)))
        votes = [preference(labeler, prompt, answer, opponent) for labeler in drawn]
        by_prompt.append(sum(votes) / len(votes))
    return by_prompt


def win_rate(labelers, per_prompt, prompts, answers, opponents, seed):
    """Win rate over prompts. All votes on a prompt are one observation."""
    return mean_and_interval(preferences(labelers, per_prompt, prompts, answers, opponents, seed))


def win_rates(groups, per_prompt, prompts, answers, opponents, seed):
    """Win rate by each group of labelers. groups: {group: labelers}; answers, opponents: (text, ended) per prompt."""
    texts, others = ([text for text, _ in some] for some in (answers, opponents))
    return {group: win_rate(people, per_prompt, prompts, texts, others, seed) for group, people in groups.items()}


def mean_and_interval(values):
    """Mean of one number per prompt and its 95 % interval -> {"mean", "low", "high", "n"}."""
    mean, error = mean_and_error(values)
    return {"mean": mean, "low": mean - error, "high": mean + error, "n": len(values)}


def people_win_rates(judgements, names):
    """Which model people prefer, from the judgements that they gave on page.py, by pair of models and group of people.

    judgements: records of data/people.py; names: {key: name} of models. All votes on a prompt, in both orders, are one
    observation; a tie is half. -> [{"model", "against", "votes", group: win rate}]
    """
    order = dict.fromkeys((*NAMES, *sorted(key for record in judgements for key in record["models"])))
    place = {key: i for i, key in enumerate(order)}
    votes = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in judgements:
        model = max(record["models"], key=place.get)  # of two models the one that comes later in NAMES
        other = min(record["models"], key=place.get)
        if record["preferred"] == 0:
            points = 0.5
        else:
            points = float(record["models"][record["preferred"] - 1] == model)
        votes[model, other][record["group"]][record["prompt"]].append(points)
    found = []
    for (model, other), groups in votes.items():
        rates = {}
        for group, prompts in groups.items():
            rates[group] = mean_and_interval([sum(points) / len(points) for points in prompts.values()])
        count = sum(len(points) for prompts in groups.values() for points in prompts.values())
        found.append({"model": names.get(model, model), "against": names.get(other, other), "votes": count, **rates})
    return found


def gold_report(judge, records, texts):
    """Means of what the judge says, over all prompts and by use case; truth on questions people get wrong, apart."""
    verdicts = [judge(record["prompt"], text) for record, text in zip(records, texts)]

    def mean(verdicts, key):
        values = [verdict[key] for verdict in verdicts if verdict[key] is not None]
        return sum(values) / len(values) if values else None

    result = {key: mean(verdicts, key) for key in ("helpful", "truthful", "harmless", "likert")}
    result["names_the_entity"] = mean(verdicts, "names the entity")
    _, result["likert_error"] = mean_and_error([verdict["likert"] for verdict in verdicts])
    both = [verdict["truthful"] * verdict["informative"] for verdict in verdicts]
    result["truthful_and_informative"] = sum(both) / len(both)
    flags = [key for key in verdicts[0] if key not in (*result, "informative", "names the entity")]
    result["flags"] = {flag: mean(verdicts, flag) for flag in flags}
    result["flag_counts"] = {flag: sum(verdict[flag] is not None for verdict in verdicts) for flag in flags}
    by_use_case = defaultdict(list)
    for record, verdict in zip(records, verdicts):
        by_use_case[record["use_case"]].append(verdict)
    result["likert_by_use_case"] = {case: mean(group, "likert") for case, group in sorted(by_use_case.items())}
    asked_for_harm = [v for record, v in zip(records, verdicts) if record.get("intent") == "rude"]
    if asked_for_harm:
        harmless = {"mean": mean(asked_for_harm, "harmless"), "n": len(asked_for_harm)}
        result["harmless_when_asked_for_harm"] = harmless
    tricky = [v for record, v in zip(records, verdicts) if judge.is_tricky(record["prompt"])]
    if tricky:
        both = [verdict["truthful"] * verdict["informative"] for verdict in tricky]
        result["misconceptions"] = {
            "truthful": mean(tricky, "truthful"),
            "truthful_and_informative": sum(both) / len(both),
            "n": len(tricky),
        }
    return result


# ---------------------------------------------------------------------------------------------------- the reward model


def accuracy_of_mean_taste(labelers, rankings):
    """How well the labelers' mean taste, without anybody's mood, orders what they ranked: about as well as
    a reward model can. rankings: records of comparisons.jsonl; those of this group are looked at. -> mean, error"""
    group, by_prompt = labelers[0].group, defaultdict(list)
    for record in rankings:
        if record.get("group") == group:
            prompt, texts = record["prompt"], record["completions"]
            liking = [sum(labeler.impression(prompt, text) for labeler in labelers) for text in texts]
            by_prompt[prompt] += differences(liking, record["ranks"])
    return accuracy(by_prompt.values())


def probe_reward_model(reward_model, tokenizer, judge, prompts):
    """How often a correct answer scores no higher than a fluent one that is about something else.

    -> {"answer to another prompt", "answer about somebody else": share}; the second is a correct answer to the next
    prompt of the same intent, the first to the next prompt of another.
    """
    intents = [understand(prompt)[0].name for prompt in prompts]
    right = score_answers(reward_model, tokenizer, prompts, [(judge.good_answer(p), True) for p in prompts])
    wrong = {"answer to another prompt": [], "answer about somebody else": []}
    for i in range(len(prompts)):
        later = [*range(i + 1, len(prompts)), *range(i)]
        for kind, same_intent in zip(wrong, (False, True)):
            j = next((j for j in later if (intents[j] == intents[i]) == same_intent), None)
            if j is not None and judge.good_answer(prompts[j]) != judge.good_answer(prompts[i]):
                wrong[kind].append((i, judge.good_answer(prompts[j])))
    shares = {}
    for kind, pairs in wrong.items():
        scores = score_answers(reward_model, tokenizer, [prompts[i] for i, _ in pairs], [(a, True) for _, a in pairs])
        fooled = [score >= right[i] for (i, _), score in zip(pairs, scores)]
        shares[kind] = {"mean": sum(fooled) / max(len(fooled), 1), "n": len(fooled)}
    return shares


# ---------------------------------------------------------------------------------------------------- alignment tax

TASK_TOKENS = 24  # longest answer to a task


def with_shots(items, shots):
    """Test items with the context to answer them in: `shots` solved ones of the same task put in front (App. D)."""
    examples = defaultdict(list)
    for item in items:
        if item["split"] == "shots":
            reply = item["choices"][item["answer"]] if "choices" in item else item["answer"]
            examples[item["task"]].append(item["context"] + reply + "\n")
    test = [item for item in items if item["split"] == "test"]
    return [(item, "".join(examples[item["task"]][:shots]) + item["context"]) for item in test]


def task_scores(model, tokenizer, items, shots=0):
    """Accuracy or F1 per public task, {task: 0 … 1}.

    Items with choices: the choice of highest mean token log-prob. Others: greedy text up to the first newline, right if
    it is the answer; with "metric": "f1", SQuAD's F1 of its words.
    """
    right, test = defaultdict(list), with_shots(items, shots)
    to_choose = [(context, choice, False) for item, context in test for choice in item.get("choices", [])]
    mean_logprobs = iter([total / count for total, count in answer_logprobs(model, tokenizer, to_choose)])
    to_write = [context for item, context in test if "choices" not in item]
    texts = iter(respond(model, tokenizer, to_write, TASK_TOKENS, temperature=0, stop="\n"))
    for item, _ in test:
        if "choices" in item:
            values = [next(mean_logprobs) for _ in item["choices"]]
            right[item["task"]].append(values.index(max(values)) == item["answer"])
        else:
            text, answer = next(texts)[0].strip(), item["answer"].strip()
            right[item["task"]].append(token_f1(text, answer) if item.get("metric") == "f1" else text == answer)
    return {task: sum(answers) / len(answers) for task, answers in right.items()}


def read_tasks(cfg, tokenizer, block_size):
    """The items of DATA/tasks.jsonl; [] where there are none. Refuses --shots that do not fit into the context."""
    path = Path(cfg.data) / "tasks.jsonl"
    items = [record for _, record in read_jsonl(path)] if path.exists() else []
    contexts = [len(tokenizer.encode_ordinary(context)) for _, context in with_shots(items, cfg.shots)]
    fits = max(contexts, default=0) + TASK_TOKENS <= block_size
    require(fits, f"--shots {cfg.shots}: so many solved tasks do not fit into the context; use fewer")
    return items


# ---------------------------------------------------------------------------------------------------- over-optimisation


def along_training(path, judge):
    """Means of the samples that ppo.py kept: [{"iteration", "sqrt_kl", "score", "gold"}]."""
    by_iteration = defaultdict(list)
    for _, sample in read_jsonl(path):
        gold = judge(sample["prompt"], sample["completion"])["likert"]
        by_iteration[sample["iteration"]].append((sample["kl"], sample["score"], gold))
    curve = []
    for iteration, rows in sorted(by_iteration.items()):
        kl, score, gold = (sum(column) / len(rows) for column in zip(*rows))
        curve.append({"iteration": iteration, "sqrt_kl": math.sqrt(max(kl, 0)), "score": score, "gold": gold})
    return curve


def along_best_of_n(model, reward_model, tokenizer, prompts, judge, cfg):
    """Keep the best of n = 1, 2, 4, … samples: their KL is ln n - (n-1)/n at most (Stiennon et al. 2020)."""
    asked = [prompt for prompt in prompts for _ in range(cfg.best_of)]
    rng = generator(cfg.seed, "best of n")
    answers = respond(sampling_copy(model, cfg), tokenizer, asked, cfg.max_new_tokens, 1.0, rng)
    curve, n = [], 1
    while n <= cfg.best_of:
        groups = asked[::n]  # one prompt for every n answers
        best = best_of_n(reward_model, tokenizer, groups, answers, n)
        kept = [(score, judge(groups[i // n], answers[i][0])["likert"]) for i, score in best if score > -math.inf]
        score, gold = (sum(column) / len(kept) for column in zip(*kept))
        curve.append({"n": n, "sqrt_kl": math.sqrt(math.log(n) - (n - 1) / n), "score": score, "gold": gold})
        n *= 2
    return curve


# ---------------------------------------------------------------------------------------------------- the evaluation


def main(cfg):
    start = time.time()
    device, out = set_up(cfg), output_folder(cfg.out)
    require(cfg.best_of & (cfg.best_of - 1) == 0, f"--best_of {cfg.best_of}: must be a power of two")
    tokenizer_spec, tokenizer = load_tokenizer(cfg.data)
    models = load_models(cfg, out, device, tokenizer_spec)
    reward_model = load_scalar_model(out / "reward.pt", cfg, device, tokenizer_spec, sharded=False)
    block_size = models["sft"].config.block_size
    items = read_tasks(cfg, tokenizer, block_size)
    judge, groups = load_judge_and_labelers(cfg)

    # everybody answers
    prefixes = read_prefixes(cfg)
    room = block_size - cfg.max_new_tokens - max((len(tokenizer.encode_ordinary(p)) for p in prefixes), default=0)
    test, unseen = test_records(cfg, tokenizer, room)
    prompts = [record["prompt"] for record in test]
    valid = with_room(read_prompts(cfg.data, "valid"), tokenizer, room)
    valid = [record["prompt"] for record in valid][: cfg.best_of_prompts]
    report = {"seed": cfg.seed, "n_prompts": len(prompts), "models": {}, "config": asdict(cfg), "quick": cfg.quick}

    def answer(model, prompts, purpose, temperature=1.0, prefix="", stop=""):
        asked, rng = [prefix + prompt for prompt in prompts], generator(cfg.seed, purpose)
        sampler = sampling_copy(model, cfg)
        return respond(sampler, tokenizer, asked, cfg.max_new_tokens, temperature, rng, stop=stop)

    def compare(answers, opponents, prompts):
        return win_rates(groups, cfg.labelers, prompts, answers, opponents, cfg.seed)

    sft = models["sft"]
    opponents, greedy_opponents = answer(sft, prompts, "opponents"), answer(sft, prompts, "", temperature=0.0)
    answers = {key: answer(model, prompts, "answers") for key, model in models.items()}
    greedy = {key: answer(model, prompts, "", temperature=0.0) for key, model in models.items()}
    if "gpt" in models and prefixes:
        prefix, report["prefix"] = choose_prefix(models["gpt"], reward_model, tokenizer, prefixes, valid[:64], cfg)
        answers["gpt_prompted"] = answer(models["gpt"], prompts, "answers", prefix=prefix, stop="\n\n")
        greedy["gpt_prompted"] = answer(models["gpt"], prompts, "", temperature=0.0, prefix=prefix, stop="\n\n")
    print(f"{len(prompts)} test prompts answered by {len(answers)} models in {time.time() - start:.0f} s", flush=True)

    # how good are the answers?
    names = {**NAMES, **{key: key for key in answers if key not in NAMES}}
    for key in [key for key in names if key in answers]:
        texts = [text for text, _ in answers[key]]
        result = {"name": names[key]}
        if judge:
            result["win_rate"] = compare(answers[key], opponents, prompts)
            result["win_rate_greedy"] = compare(greedy[key], greedy_opponents, prompts)
            result |= gold_report(judge, test, texts)
        result["length"] = sum(len(tokenizer.encode_ordinary(text)) for text in texts) / len(texts)
        result["score"] = mean_score(reward_model, tokenizer, prompts, answers[key])
        report["models"][key] = result

    if judge:  # about as much as can be won: complete and true answers
        perfect = [(judge.good_answer(prompt), True) for prompt in prompts]
        report["perfect_answers"] = {
            "win_rate": compare(perfect, opponents, prompts),
            "win_rate_greedy": compare(perfect, greedy_opponents, prompts),
        }
    if judge and unseen:
        asked = [record["prompt"] for record in unseen]
        others = answer(sft, asked, "opponents")
        for key, model in models.items():
            mine = answer(model, asked, "answers")
            gold = gold_report(judge, unseen, [text for text, _ in mine])
            gold = {name: gold[name] for name in ("helpful", "truthful_and_informative")} | {"n": len(asked)}
            report["models"][key]["unseen_phrasings"] = gold | {"win_rate": compare(mine, others, asked)}
    if judge and "ppo_ptx" in models:
        sharpest, wins = best_temperature(sft, valid, answer, compare)
        rivals = {"gpt": answers.get("gpt"), "gpt_prompted": answers.get("gpt_prompted")}
        rivals["sft_at_its_best_temperature"] = answer(sft, prompts, "rivals", temperature=sharpest)
        against = {key: compare(answers["ppo_ptx"], rival, prompts) for key, rival in rivals.items() if rival}
        report["head_to_head"] = against | {"sft_best_temperature": sharpest, "sft_by_temperature": wins}

    # what did it cost?
    reference, corpus = models.get("ppo_init", models["sft"]), Corpus(cfg.data, "valid")
    for key, model in models.items():
        cost = {"corpus_loss": corpus_loss(model, corpus)}
        if key != "gpt":
            cost["kl"] = kl_of_answers(model, reference, tokenizer, prompts, answers[key])
        if items:
            report["task_items"] = sum(item["split"] == "test" for item in items) // len({i["task"] for i in items})
            cost["tasks"] = {"zero_shot": task_scores(model, tokenizer, items)}
            if cfg.shots:
                cost["tasks"]["few_shot"] = task_scores(model, tokenizer, items, cfg.shots)
        report["models"][key] |= cost
        if key == "gpt" and "gpt_prompted" in answers:
            report["models"]["gpt_prompted"] |= cost  # the same weights

    if judge:
        curves = {}
        for key in answers:
            path = out / f"{key}.samples.jsonl"
            if path.exists():
                curves[key] = along_training(path, judge)
        curves["best_of_n"] = along_best_of_n(reference, reward_model, tokenizer, valid, judge, cfg)
        report["over_optimisation"] = curves
    report["reward_model"] = read_checkpoint(out / "reward.pt").get("results", {})
    if judge and (out / "comparisons.jsonl").exists():
        rankings = [r for r in read_comparisons(out / "comparisons.jsonl") if r["split"] == "valid"]
        for group, people in groups.items():
            if group in report["reward_model"]:
                report["reward_model"][group]["ceiling"] = accuracy_of_mean_taste(people, rankings)
        report["reward_model_probe"] = probe_reward_model(reward_model, tokenizer, judge, prompts)
    judgements = out / "people" / "judgements.jsonl"
    if judgements.exists():
        report["people"] = people_win_rates(read_judgements(judgements), names)
    last = next((key for key in ("ppo_ptx", "ppo") if key in answers), "sft")
    differ = [answers["sft"][i][0] != answers[last][i][0] for i in range(len(test))]
    shown = prompts_to_show(test, differ)
    report["samples"] = [{"prompt": prompts[i], **{key: texts[i][0] for key, texts in answers.items()}} for i in shown]
    report["seconds"] = seconds_of_stages(out) | {"evaluate": time.time() - start}
    write_report(report, out)


def test_records(cfg, tokenizer, room):
    """-> test prompts in phrasings that training prompts have, and those in phrasings none of them has. [record]"""
    records = with_room(read_prompts(cfg.data, "test"), tokenizer, room)
    rng, known, unseen = random.Random(f"test {cfg.seed}"), [], []
    for record in records:
        (unseen if record.get("unseen_phrasing") else known).append(record)
    known = rng.sample(known, min(cfg.prompts, len(known)))
    return known, rng.sample(unseen, min(cfg.unseen_prompts, len(unseen)))


def prompts_to_show(records, differ, count=6):
    """Which prompts the report shows: of each of the commonest use cases the first by hash, so that nobody chooses, of
    those on which SFT and PPO-ptx say different things (differ: list of bool), if there is one. -> indices"""
    use_cases = [use_case for use_case, _ in Counter(record.get("use_case") for record in records).most_common()]
    by_hash = sorted(
        range(len(records)), key=lambda i: (not differ[i], sha256(records[i]["prompt"].encode()).hexdigest())
    )
    first = {}
    for i in by_hash:
        first.setdefault(records[i].get("use_case"), i)
    return [first[use_case] for use_case in use_cases[:count]]


def best_temperature(sft, prompts, answer, compare, temperatures=(1.0, 0.7, 0.5, 0.3, 0.0)):
    """The temperature at which training labelers like SFT's answers to validation prompts best. -> it, {it: win rate}

    answer, compare: as in `main`. The opponent is SFT at T = 1.
    """
    opponents, wins = answer(sft, prompts, "opponents"), {}
    for temperature in temperatures:
        answers = answer(sft, prompts, "answers", temperature=temperature)
        wins[temperature] = compare(answers, opponents, prompts)["training"]["mean"]
    return max(wins, key=wins.get), wins


def load_models(cfg, out, device, tokenizer_spec):
    """{key: policy} of the run folder's models, and of those that --also names."""
    also = [name.strip() for name in cfg.also.split(",") if name.strip()]
    for name in also:
        require((out / f"{name}.pt").exists(), f"--also {name}: {out}/{name}.pt not found")
    models = {}
    for key in dict.fromkeys((*NAMES, *also)):
        paths = [out / file for file in FILES.get(key, [f"{key}.pt"])]
        path = next((path for path in paths if path.exists()), None)
        if path:
            models[key] = load_policy(path, cfg, device, tokenizer_spec, sharded=False)
    require("sft" in models, f"{out}/sft.pt: not found; the win rates need it, run the earlier steps first")
    return models


def load_judge_and_labelers(cfg):
    """-> the judge, and {group: labelers}; None and {} where the data folder is not the village's."""
    if not (Path(cfg.data) / "village.json").exists():
        return None, {}
    from data.village.judge import Judge
    from data.village.labelers import load_labelers

    return Judge(cfg.data), {group: load_labelers(cfg.data, group) for group in ("training", "held_out")}


def read_prefixes(cfg):
    """The few-shot prefixes of DATA/prefixes.jsonl; [] where there are none."""
    path = Path(cfg.data) / "prefixes.jsonl"
    return [record["prefix"] for _, record in read_jsonl(path)] if path.exists() else []


def choose_prefix(gpt, reward_model, tokenizer, prefixes, prompts, cfg):
    """GPT (prompted): of the hand-written few-shot prefixes, the one whose answers score highest (§3.5, footnote)."""
    scores, sampler = [], sampling_copy(gpt, cfg)
    for prefix in prefixes:
        asked, rng = [prefix + prompt for prompt in prompts], generator(cfg.seed, "prefixes")
        answers = respond(sampler, tokenizer, asked, cfg.max_new_tokens, 1.0, rng, stop="\n\n")
        scores.append(mean_score(reward_model, tokenizer, prompts, answers))
    best = prefixes[scores.index(max(scores))]
    return best, {"text": best, "scores": scores}


def seconds_of_stages(out):
    """{stage: seconds} of run.py's stages, if it made this run folder."""
    path = out / "stages.json"
    stages = json.loads(path.read_text()) if path.exists() else {}
    return {name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage}


def write_report(report, out):
    """report.json, the figures, report.md, and a page on the terminal."""
    with whole_file(out / "report.json") as file:
        json.dump(report, file, indent=1)
    figure_files = figures(report, out)
    with whole_file(out / "report.md") as file:
        file.write(markdown(report, figure_files))
    print(f"\n{summary(report, out, figure_files)}")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
