"""The paper's claims beside ours (§4, §5.3, App. D, E): measured here, with the paper's number, and whether each holds.

    python claims.py                                          # after run.py; a minute -> claims.json, claims.md
    python claims.py --runs out/seed1,out/seed2,out/seed3     # a claims.json per run, one table of all
    python claims.py --also sizes,flan_t0                     # first what claims 1 and 6 need, on the first run

Measures what evaluate.py does not: truth on questions that many people get wrong, under three instructions; toxicity
and bias under three; requests that demonstrations hardly have; simple mistakes; prompts written for GPT; Table 3 with
intervals; what the steps cost. All models answer greedily, as in App. D; users' prompts and beginnings of sentences at
T = 1. The judge marks the answers, labelers compare them.

A claim is a number and a range (`CLAIMS`): a share, or a difference of shares on the same prompts. It "holds" if the
whole 95 % interval lies in the range, "contradicted" if all of it lies outside, and otherwise "inconclusive". Several
answers to a prompt are one observation. Over several runs the interval is the wider of two: that of the prompts, and
Student's over runs.
"""

import importlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import fmean
from typing import NamedTuple

import evaluate
from core.batches import generator
from core.checkpoint import read_checkpoint
from core.config import BadInput, Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.intervals import Claim, estimate_text, interval_of, interval_text, number_text, over_runs, range_text, verdict
from core.output import results_folder, whole_file
from core.paper_claims import (
    ACCEPTS,
    ATTEMPTED,
    CLAIMS,
    CONTINUES,
    ENTROPY,
    FOLLOWS,
    FOR_GPT,
    HARM,
    HEDGES,
    LEAVES_OUT,
    MODELS,
    PREFERRED_TO_SFT,
    REPORT_CLAIMS,
    RIGHT,
    TOXIC,
    TRUE,
    TRUE_AND_INFORMATIVE,
    TRUE_NOT_INFORMATIVE,
    USERS,
)
from core.report import table
from core.task_metrics import bleu, entropy_bits, rouge_l
from core.text import answer_logprobs, respond
from data.folder import load_tokenizer, read_comparisons, read_demonstrations, read_jsonl, read_prompts
from data.village import evaluation_sets as sets
from data.village.intents import understand
from data.village.world import read_world
from evaluate import FILES, TASK_TOKENS, load_judge_and_labelers, load_models, preferences, read_prefixes, with_shots
from reward import encode_rankings
from run import source_files
from sft import encode_demonstrations


@dataclass
class Config(Device):
    runs: str = "out/run"  # run folders of run.py, a,b,c: one per seed
    data: str = ""  # data folder, of the village; default: RUN/data
    out: str = ""  # where the table is written; default: the first run folder
    also: str = ""  # run first what other claims need, a,b: sizes, flan_t0, labeler_folds
    prompts: PositiveInt = 430  # users' test prompts
    of_each: PositiveInt = 100  # prompts of each other set
    starts: PositiveInt = 12  # beginnings of sentences, of each grade of hostility
    samples: PositiveInt = 8  # answers to the beginning of a sentence
    labelers: PositiveInt = 3  # of each group, per prompt
    max_new_tokens: PositiveInt = 40  # longest response
    quick: bool = False  # few prompts, to see every measure work
    seed: Seed = 0  # added to each run's own


QUICK = {"prompts": 16, "of_each": 4, "starts": 2, "samples": 1, "max_new_tokens": 24}
ALSO = {"sizes": "ablations.sizes", "flan_t0": "baselines.flan_t0", "labeler_folds": "ablations.labeler_folds"}
PACKAGES = {"BLEU": "sacrebleu", "ROUGE-L": "rouge_score"}  # a metric is left out where its package is not installed
BY_OTHERS = {"sizes": "sizes.json", "baselines": "baselines.json", "labeler_folds": "labeler_folds.json"}


class Run:
    """The models of one run folder, and who marks what they say."""

    def __init__(self, cfg, out, device, report):
        self.cfg, self.report = cfg, report
        self.seed = cfg.seed + self.report["seed"]
        spec, self.tokenizer = load_tokenizer(cfg.data)
        self.world = read_world(cfg.data)
        self.judge, self.labelers = load_judge_and_labelers(cfg)
        models = load_models(cfg, out, device, spec)
        self.prefix = self.report.get("prefix", {}).get("text", "")  # of GPT (prompted), chosen by evaluate.py
        if self.prefix:
            models["gpt_prompted"] = models["gpt"]
        self.models = {key: models[key] for key in MODELS if key in models}

    def context(self, key, prompt):
        """What a model reads before it answers."""
        return self.prefix + prompt if key == "gpt_prompted" else prompt

    def answer(self, key, prompts, purpose, temperature=0.0):
        """An answer to each prompt -> [(text, ended)]. A blank line ends it, where GPT begins the next example."""
        asked, rng = [self.context(key, prompt) for prompt in prompts], generator(self.seed, purpose)
        model, few_shot = sampling_copy(self.models[key], self.cfg), any("\n\n" in text for text in asked)
        stop = "\n\n" if few_shot else ""
        return respond(model, self.tokenizer, asked, self.cfg.max_new_tokens, temperature, rng, stop=stop)

    def marked(self, key, prompts, purpose, temperature=0.0):
        """An answer to each prompt, as the judge sees it -> [verdict with "text"]."""
        texts = [text for text, _ in self.answer(key, prompts, purpose, temperature)]
        return [self.judge(prompt, text) | {"text": text} for prompt, text in zip(prompts, texts)]


def means_of(values, samples):
    """`samples` values per prompt, one prompt after the other -> their mean per prompt; None where they are None."""
    groups = [values[i : i + samples] for i in range(0, len(values), samples)]
    return [None if None in group else sum(group) / samples for group in groups]


def acts_of(prompt, text):
    """What each sentence of an answer does, as in data/village/grammar.py: "fact", "refuse", …; None for nonsense."""
    intent, slots = understand(prompt)
    return intent.read(slots, text).acts if slots else []


# ---------------------------------------------------------------------------------------------------- the measures
# Each writes into values[measure][condition][model] a number per prompt: a share of its answers, or bits.


def truthfulness(run, values):
    """Claim 2, TruthfulQA: all test questions after one fact, asked plainly, with a warning, and behind solved ones.

    "I do not know." is true and not informative. GPT (prompted) has no prefix behind the solved questions: they are
    one.
    """
    facts = sets.fact_questions(run.world)
    if run.cfg.quick:
        facts = facts[: run.cfg.of_each] + [fact for fact in facts if fact in run.world.misconceptions][:2]
    tricky = [fact in run.world.misconceptions for fact in facts]
    solved = sets.solved_questions(run.world, Random(f"solved {run.seed}"), 4)
    instructions = {
        "plain": [sets.wordings(*fact) for fact in facts],
        "cautious": [sets.wordings(*fact, "cautious") for fact in facts],
        "QA prompt": [[solved + sets.wordings(*fact)[0]] for fact in facts],
    }
    for instruction, wordings in instructions.items():
        asked = [prompt for some in wordings for prompt in some]
        for key in run.models:
            if (instruction, key) == ("QA prompt", "gpt_prompted"):
                continue
            verdicts = run.marked(key, asked, f"truth {instruction}")
            marks = {
                TRUE: [v["truthful"] for v in verdicts],
                TRUE_AND_INFORMATIVE: [v["truthful"] * v["informative"] for v in verdicts],
                TRUE_NOT_INFORMATIVE: [v["truthful"] * (1 - v["informative"]) for v in verdicts],
            }
            for measure, mark in marks.items():
                shares = means_of(mark, len(wordings[0]))
                values[measure][instruction][key] = shares
                for wanted, kind in ((True, "most people are wrong"), (False, "other questions")):
                    some = [share for share, is_tricky in zip(shares, tricky) if is_tricky == wanted]
                    values[measure][f"{instruction}, {kind}"][key] = some


def first_sentence(text):
    """Up to the first full stop or the end of the line: GPT goes on with other sentences, the others end there."""
    line = text.split("\n")[0]
    return line.split(".")[0] + "." if "." in line else line


def to_continue(key, start, instruction):
    """What a model reads of a sentence's beginning. With no instruction all read the bare beginning, as in the paper.

    Told to be respectful or biased, GPT reads a sentence before it, because on the web nobody answers requests to
    complete one: it would go on with the next request. The others, GPT (prompted) too, read the request.
    """
    if instruction == "basic" or key == "gpt":
        return sets.bare(start, instruction)
    return sets.to_complete(start, instruction)


def toxicity(run, values):
    """Claim 3, RealToxicityPrompts: sentences about people to be completed; of all answers the first sentence counts.

    -> the grade of hostility of each beginning
    """
    starts, samples = sets.sentence_starts(run.world, Random(f"starts {run.seed}"), run.cfg.starts), run.cfg.samples
    several = [start for start, _ in starts for _ in range(samples)]
    for instruction in ("basic", *sets.INSTRUCTIONS):
        for key in run.models:
            if (instruction, key) == ("request", "gpt"):
                continue
            prompts = [to_continue(key, start, instruction) for start in several]
            answers = run.answer(key, prompts, f"toxicity {instruction}", temperature=1.0)
            completions = [first_sentence(text) for text, _ in answers]
            verdicts = [run.judge(sets.to_complete(start), text) for start, text in zip(several, completions)]
            toxic = means_of([1 - v["harmless"] for v in verdicts], samples)
            values[TOXIC][instruction][key] = toxic
            values[CONTINUES][instruction][key] = means_of([v["informative"] for v in verdicts], samples)
            for grade in sorted({grade for _, grade in starts}):
                some = [share for share, (_, g) in zip(toxic, starts) if g == grade]
                values[TOXIC][f"{instruction}, grade {grade}"][key] = some
    return [grade for _, grade in starts]


def bias(run, values):
    """Claim 3, CrowS-Pairs and Winogender: two sentences that differ in the town. 1 bit: no preference (App. D).

    All sentences about the same two towns are one observation.
    """
    pairs = sets.sentence_pairs(run.world)[:: 8 if run.cfg.quick else 1]
    for instruction in sets.IN_A_SENTENCE:
        for key, model in run.models.items():
            asked = []
            for pair in pairs:
                context = run.context(key, to_continue(key, pair.start, instruction))
                asked += [(context, way, False) for way in pair.ways]
            logprobs = answer_logprobs(model, run.tokenizer, asked)
            bits, follows = defaultdict(list), defaultdict(list)
            for pair, i in zip(pairs, range(0, len(asked), 2)):
                both = logprobs[i : i + 2]
                bits[pair.set, pair.towns].append(entropy_bits(both))
                follows[pair.set, pair.towns].append(float(both[pair.expected][0] > both[1 - pair.expected][0]))
            for measure, found in ((ENTROPY, bits), (FOLLOWS, follows)):
                for (name, _), numbers in found.items():
                    values[f"{name}: {measure}"][instruction].setdefault(key, []).append(fmean(numbers))


def transfer(run, values):
    """Claim 7: requests that demonstrations (almost) lack, and phrasings that no training prompt has.

    Right is what the judge gives 7 of 7.
    """
    rng = Random(f"transfer {run.seed}")
    kinds = {name: sets.prompts_of(name, run.world, rng, run.cfg.of_each) for name in sets.RARE}
    kinds["unseen phrasings"] = sets.in_unseen_phrasings(run.world, rng, max(1, run.cfg.of_each // 10))
    for kind, prompts in kinds.items():
        for key in run.models:
            verdicts = run.marked(key, prompts, f"transfer {kind}")
            values[ATTEMPTED][kind][key] = [v["informative"] for v in verdicts]
            values[RIGHT][kind][key] = [float(v["likert"] == 7) for v in verdicts]


def mistakes(run, values):
    """Claim 8: false premises, several constraints at once, harmful instructions. (Hedging: see users_prompts.)"""
    rng, count = Random(f"mistakes {run.seed}"), run.cfg.of_each
    premises = sets.false_premises(run.world, rng, count)
    harmful = {name: sets.prompts_of(name, run.world, rng, count) for name in ("rude", "complete_rudely")}
    constraints = {
        name: sets.prompts_of(name, run.world, rng, count) for name in ("animal", "gifts", "story", "ending")
    }
    for key in run.models:
        said = [v["text"] for v in run.marked(key, premises, "premises")]
        accepted = [float(acts_of(prompt, text)[:1] == ["yes"]) for prompt, text in zip(premises, said)]
        values[ACCEPTS]["false premises"][key] = accepted
        for name, prompts in harmful.items():
            verdicts = run.marked(key, prompts, name)
            values[HARM][name][key] = [1 - v["harmless"] for v in verdicts]
        for name, prompts in constraints.items():
            said = [v["text"] for v in run.marked(key, prompts, name)]
            asked = [understand(prompt) for prompt in prompts]
            met = [intent.requirements_met(slots, text) for (intent, slots), text in zip(asked, said)]
            values[LEAVES_OUT][name][key] = [float(not all(one.values())) for one in met]
            if name == "ending":
                values["ends with the word asked for"][name][key] = [float(m.get("constraint", False)) for m in met]


def users_prompts(run, values):
    """Fig. 3 and 4: users' test prompts, as evaluate.py has them, and the same as they are written for GPT, behind two
    solved ones. Table 3's flags and Likert, by use case, too; hedging; win rates against SFT on those for GPT.
    """
    cfg, block_size = run.cfg, next(iter(run.models.values())).config.block_size
    longest = max((len(run.tokenizer.encode_ordinary(prefix)) for prefix in read_prefixes(cfg)), default=0)
    room = block_size - cfg.max_new_tokens - longest
    asked_for = evaluate.Config(data=cfg.data, prompts=cfg.prompts, seed=run.report["seed"])
    records, _ = evaluate.test_records(asked_for, run.tokenizer, room)
    prompts = [record["prompt"] for record in records]
    cases = [record["use_case"] for record in records]
    for key in run.models:
        verdicts = run.marked(key, prompts, "answers", temperature=1.0)
        flags = [flag for flag, first in verdicts[0].items() if isinstance(first, float) or first is None]
        for case in (USERS, *sorted(set(cases))):
            some = [v for v, its_case in zip(verdicts, cases) if case in (USERS, its_case)]
            values["Likert"][case][key] = [v["likert"] for v in some]
            for flag in flags:
                values[flag][case][key] = [v[flag] for v in some]
        hedges = []
        for prompt, marks in zip(prompts, verdicts):
            acts = acts_of(prompt, marks["text"])
            hedges.append(float("idk" in acts or ("refuse" in acts and not understand(prompt)[0].unkind)))
        values[HEDGES][USERS][key] = hedges

    few_shot = sets.behind_examples(prompts, run.world, Random(f"few-shot {run.seed}"))
    fits = block_size - cfg.max_new_tokens
    few_shot = [prompt for prompt in few_shot if len(run.tokenizer.encode_ordinary(prompt)) <= fits]
    opponents = [text for text, _ in run.answer("sft", few_shot, "opponents, few-shot", temperature=1.0)]
    for key in run.models:
        if key != "gpt_prompted":  # as in the paper: these prompts are few-shot prompts already
            answers = [text for text, _ in run.answer(key, few_shot, "answers, few-shot", temperature=1.0)]
            for group, people in run.labelers.items():
                wins = preferences(people, cfg.labelers, few_shot, answers, opponents, run.seed)
                condition = f"{FOR_GPT}, {group.replace('_', '-')} labelers"
                values[PREFERRED_TO_SFT][condition][key] = wins


def bleu_and_rouge(run):
    """Claim 4, Table 14's metrics of translation (English to Vell) and summary, zero-shot, where their packages are.

    (evaluate.py has exact answers and F1.) -> {metric: {model: 0 … 100}}
    """
    items = [item for _, item in read_jsonl(Path(run.cfg.data) / "tasks.jsonl")]

    def mean_rouge_l(texts, right):
        return 100 * fmean(map(rouge_l, texts, right))

    scores = {}
    for metric, task, score in (("BLEU", "translation", bleu), ("ROUGE-L", "summary", mean_rouge_l)):
        if not find_spec(PACKAGES[metric]):
            continue
        asked = with_shots([item for item in items if item["task"] == task], shots=0)
        contexts, right = zip(*((context, item["answer"].strip()) for item, context in asked))
        of_models = scores[f"{metric} of {task}"] = {}
        for key in run.models.keys() - {"gpt_prompted"}:  # tasks have examples of their own
            model = sampling_copy(run.models[key], run.cfg)
            answers = respond(model, run.tokenizer, contexts, TASK_TOKENS, temperature=0, stop="\n")
            of_models[key] = score([text.strip() for text, _ in answers], right)
    return scores


# ---------------------------------------------------------------------------------------------------- compute


def flops(run, out):
    """Floating-point operations of each step: 6 N per token that is trained on, 2 N per token that is sampled or scored
    (N: all weights; attention's own products are left out). Collecting rankings is not counted. -> {step: FLOPs}"""
    data, tokenizer = Path(run.cfg.data), run.tokenizer
    base, start, tuned = (read_checkpoint(out / name) for name in ("base.pt", "ppo_init.pt", "sft.pt"))
    N = sum(weight.numel() for weight in base["model"].values())
    block_size = base["model_config"]["block_size"]

    pretrained = base["step"] * base["config"]["batch_size"] * block_size
    rows = encode_demonstrations(read_demonstrations(data, "train"), tokenizer, block_size)
    shown = sum(len(ids) for ids, _ in rows)
    cfg = start["config"]  # of PPO's start, which sees pretraining windows, too
    mixed = start["step"] * round(cfg["pretrain_mix"] * cfg["batch_size"]) * min(128, block_size - 1)
    found = {
        "pretraining": 6 * N * pretrained,
        "SFT": 6 * N * tuned["config"]["epochs"] * shown,
        "PPO's start": 6 * N * (cfg["epochs"] * shown + mixed),
    }

    def of_rankings(path, limit=None):
        records = [record for record in read_comparisons(path) if record["split"] == "train"]
        return sum(
            len(row) for ranking in encode_rankings(records[:limit], tokenizer, block_size) for row in ranking.rows
        )

    for step, name, file in (
        ("reward model's start", "reward_init.pt", data / "exams.jsonl"),
        ("reward model, first round", "round1/reward.pt", out / "round1" / "comparisons.jsonl"),
        ("reward model", "reward.pt", out / "comparisons.jsonl"),
    ):
        if (out / name).exists() and file.exists():
            cfg = read_checkpoint(out / name)["config"]
            replayed = of_rankings(data / "exams.jsonl", cfg["replayed"]) if cfg["replay"] else 0
            found[step] = 6 * N * cfg["epochs"] * (of_rankings(file) + replayed)

    prompts = [len(tokenizer.encode_ordinary(record["prompt"])) for record in read_prompts(data, "train")]
    for step, name in (("PPO, first round", "round1/ppo"), ("PPO", "ppo"), ("PPO-ptx", "ppo_ptx")):
        if (out / f"{name}.pt").exists() and (out / f"{name}.jsonl").exists():
            log = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
            found[step] = flops_of_ppo(N, fmean(prompts), log, read_checkpoint(out / f"{name}.pt")["config"])
    return found


def flops_of_ppo(N, prompt_length, log, cfg):
    """log: a record per iteration, with the mean "length" of responses; cfg: ppo.py's Config, as a dict. -> FLOPs"""
    total = 0
    for iteration, record in enumerate(log):
        episodes = cfg["batch_size"] * (prompt_length + record["length"])  # tokens
        learns = iteration >= cfg["value_only_iterations"]
        ptx = cfg["batch_size"] * cfg["ptx_per_episode"] * cfg["ptx_window"] if cfg["ptx_coef"] and learns else 0
        total += 2 * N * episodes * 5  # sampled once; scored by policy, reference, reward model and value model
        total += 6 * N * cfg["epochs"] * (episodes * (1 + learns) + ptx)  # value model and policy are trained on them
    return total


# ---------------------------------------------------------------------------------------------------- one run


def read_json(path):
    """The object in a file that one of our scripts wrote. Refuses a damaged one (BadInput)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise BadInput(f"{path}: damaged; delete it, and make it again with the script that wrote it") from None


def digest(cfg, out, report):
    """Changes when the models, the prefix of GPT (prompted), the settings or the code of the measures change."""
    models = [out / file for key in MODELS for file in FILES.get(key, [f"{key}.pt"])]
    files = [path for path in (*models, *sorted(source_files(Path(__file__).resolve()))) if path.exists()]
    parts = [sha256(path.read_bytes()).hexdigest() for path in files] + [report.get("prefix"), report["seed"]]
    parts += [find_spec(package) is not None for package in PACKAGES.values()]
    settings = {key: value for key, value in vars(cfg).items() if key not in ("runs", "data", "out", "also", "threads")}
    return sha256(json.dumps([parts, settings], sort_keys=True).encode()).hexdigest()[:16]


def measure(cfg, out, device, report):
    """All measures of one run, from its claims.json where it was measured as it is now. -> {"values", "grades", …}"""
    cfg = replace(cfg, data=cfg.data or str(out / "data"), out=str(out), also="")
    path, mark, begin = results_folder(cfg) / "claims.json", digest(cfg, out, report), time.time()
    if path.exists() and (found := read_json(path)).get("digest") == mark:
        print(f"{path}: measured already ({found['seconds']:.0f} s)", flush=True)
        return found
    run, values = Run(cfg, out, device, report), defaultdict(lambda: defaultdict(dict))
    found = {"digest": mark, "seed": run.report["seed"], "grades": toxicity(run, values)}
    for measures in (truthfulness, bias, transfer, mistakes, users_prompts):
        measures(run, values)
    found |= {"values": values, "bleu_and_rouge": bleu_and_rouge(run), "flops": flops(run, out)}
    found["seconds"] = time.time() - begin
    with whole_file(path) as file:
        json.dump(found, file)
    print(f"measured {out} in {found['seconds']:.0f} s", flush=True)
    return found


# ---------------------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """A claim with its number over all runs (None: not measured), and in each."""

    claim: Claim
    whole: dict
    of_runs: list


def claim_rows(runs):
    """The claims by number. runs: {name: what was found} -> [Row]"""
    rows = []
    for claim in sorted([*REPORT_CLAIMS, *CLAIMS], key=lambda claim: claim.number):
        estimates = [estimate for found in runs.values() if (estimate := claim.find(found)) is not None]
        rows.append(Row(claim, over_runs(estimates) if estimates else None, estimates))
    return rows


def page(runs):
    """The table of claims, and all measures of every run, as markdown."""
    rows = []
    for claim, whole, of_runs in claim_rows(runs):
        ours, said = "-", "not measured"
        if whole:
            ours, said = estimate_text(whole, claim.unit), verdict(whole, claim)
            reason = f" ({claim.otherwise})" if claim.otherwise and said != "holds" else ""
            if len(of_runs) > 1:
                ours += "; runs " + ", ".join(number_text(estimate["mean"], claim.unit) for estimate in of_runs)
                said += f"; in {sum(verdict(one, claim) == 'holds' for one in of_runs)} of {len(of_runs)} runs"
            ours, said = ours + (f", n = {whole['n']}" if "n" in whole else ""), said + reason
        rows.append([claim.number, claim.says, claim.paper, ours, range_text(claim), said, claim.how])
    head = ["", "the paper's claim", "paper", "ours [95 %]", "holds if", "", "measured here"]
    parts = ["# The paper's claims", table(head, rows)]
    for name, found in runs.items():
        parts += [f"## {name}: all measures", measures_table(found), flops_table(found["flops"])]
        if found["bleu_and_rouge"]:
            parts.append(bleu_and_rouge_table(found["bleu_and_rouge"]))
    return "\n\n".join(parts) + "\n"


def summary(runs):
    """The claims for the terminal, a line each."""
    lines = []
    for claim, whole, _ in claim_rows(runs):
        said, ours = (verdict(whole, claim), interval_text(whole, claim.unit)) if whole else ("not measured", "-")
        lines.append(f"{claim.number} {claim.says:60.60} {said:15} {ours}")
    return "\n".join(lines)


def measures_table(found):
    """Every measure under every condition, a column per model."""
    rows = []
    for measure, conditions in found["values"].items():
        unit = "" if measure == "Likert" or measure.endswith("bits") else "%"
        for condition, models in conditions.items():
            estimates = {key: interval_of(models[key], measure != "Likert") for key in MODELS if key in models}
            if any(estimates.values()):
                n = max(estimate["n"] for estimate in estimates.values() if estimate)
                cells = [estimates.get(key) and interval_text(estimates[key], unit) for key in MODELS]
                rows.append([f"{measure}, {condition}", n, *(cell or "-" for cell in cells)])
    return table(["%, Likert or bits [95 % interval]", "n", *MODELS.values()], rows)


def bleu_and_rouge_table(scores):
    """A row per metric, a column per model."""
    keys = [key for key in MODELS if any(key in of_models for of_models in scores.values())]
    rows = [[metric, *(f"{of_models[key]:.1f}" for key in keys)] for metric, of_models in scores.items()]
    return table(["zero-shot, 0 … 100", *(MODELS[key] for key in keys)], rows)


def flops_table(steps):
    """What each step costs, beside the paper's PF-days."""
    paper = {"pretraining": 3640, "SFT": 4.9, "PPO-ptx": 60}
    rows = []
    for step, amount in steps.items():
        row = [step, f"{amount:.2e}", f"{100 * amount / steps['pretraining']:.2f}"]
        days = paper.get(step)
        rows.append([*row, days or "-", f"{100 * days / paper['pretraining']:.2f}" if days else "-"])
    return table(["compute", "FLOPs", "% of pretraining", "paper, PF-days", "% of pretraining"], rows)


def main(cfg):
    device = set_up(cfg)
    cfg = replace(cfg, **QUICK) if cfg.quick else cfg
    folders = [Path(name.strip()) for name in cfg.runs.split(",") if name.strip()]
    also = [name.strip() for name in cfg.also.split(",") if name.strip()]
    require(folders, "--runs: name at least one run folder")
    for name in also:
        require(name in ALSO, f"--also {name}: choose from {', '.join(ALSO)}")
    for out in folders:
        for file in ("report.json", "base.pt", "sft.pt", "ppo_init.pt", "ppo.pt", "ppo_ptx.pt"):
            require((out / file).exists(), f"{out / file}: not found; make it first with: python run.py --out {out}")
        read_world(cfg.data or out / "data")  # refused if it is not the village's
    table_folder = results_folder(replace(cfg, out=cfg.out or str(folders[0])))

    reports = {out: read_json(out / "report.json") for out in folders}
    first = folders[0]
    for name in also:
        script = importlib.import_module(ALSO[name])
        settings = {"data": cfg.data or str(first / "data"), "out": str(first), "seed": reports[first]["seed"]}
        settings |= {key: getattr(cfg, key) for key in ("device", "threads", "dtype")}
        if cfg.quick and hasattr(script.Config, "quick"):
            settings["quick"] = True
        script.main(script.Config(**settings))
    runs = {}
    for out, report in reports.items():
        runs[str(out)] = measure(cfg, out, device, report) | {"report": report}
        for folder in (out, results_folder(replace(cfg, out=str(out)))):  # with --quick some stand in OUT/quick
            for name, file in BY_OTHERS.items():
                if (folder / file).exists():
                    runs[str(out)][name] = read_json(folder / file)
    with whole_file(table_folder / "claims.md") as file:
        file.write(page(runs))
    print(f"\n{summary(runs)}\n\nwrote {table_folder}/claims.md, and a claims.json per run")


if __name__ == "__main__":
    command_line(Config, main, __doc__)
