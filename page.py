"""People in the loop: a page to ask the models, to rank answers, to write demonstrations, and to watch a run.

    python page.py --out out/run                    # open the address it prints
    python page.py --out out/run --host 0.0.0.0     # a classroom: the address has a key, without which there is nothing

Ask      every policy of the run folder answers a prompt, and each token of an answer can be looked at as ppo.py sees it
Rank     K answers to a prompt, as on the labelers' page (Fig. 12); or two models, blindly, both orders
Write    demonstrations
Watch    the curves of a run while it trains, samples, over-optimisation, win rates

What people write goes to OUT/people (data/people.py), each record on the disk before the page says so. Then

    python reward.py --reward_model out/run/reward_init.pt --comparisons out/run/people/comparisons.jsonl \\
        --name reward_people
    python ppo.py --reward_model out/run/reward_people.pt --name ppo_people

train a reward model on these rankings and a policy on that, which the page shows beside the others.

For an answer y to a prompt x, token by token (B answers, T tokens; `look_at`):

    log π, log π_ref     token_logprobs                    under the policy and under the reference, PPO's start
    R_t                  shaped_rewards                    -β (log π - log π_ref), plus the score at the last token
    V_t                  token_values                      of ppo.py's value model, or the reward model it starts from
    A_t                  gae                               not whitened: for that PPO needs all episodes of an iteration

The page is page.html, one file without a build step; the server is core/server.py. Nothing comes from the network.
"""

import hashlib
import json
import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path

import torch

import ppo
from core.batches import generator
from core.checkpoint import load_policy, load_scalar_model, read_checkpoint
from core.config import BadInput, Device, PositiveInt, Seed, command_line, require
from core.device import sampling_copy, set_up
from core.ranking_metrics import agreement_in
from core.sampling import generate
from core.server import OneAtATime, Server, address_of, choice_in, is_loopback, list_in, number_in, some_of, text_in
from core.text import respond
from core.watch import read_log
from data import collect
from data.folder import is_rating, load_tokenizer, read_demonstrations, read_jsonl, read_prompts, with_room, write_jsonl
from data.people import FLAGS, GROUPS, KINDS, LABELS, USE_CASES, PeopleFolder, dense, next_task, other_group, task_id
from evaluate import FILES, NAMES, people_win_rates, read_prefixes
from model import pad, response_mask, token_logprobs


@dataclass
class Config(Device):
    out: str = "out/run"  # run folder; every policy in it answers
    data: str = ""  # data folder; default: OUT/data
    people: str = ""  # folder for what people write; default: OUT/people
    host: str = "127.0.0.1"  # 0.0.0.0 lets other machines in, at an address with a key
    port: int = 8000  # 0 = any that is free
    supervised: str = ""  # policy whose answers are ranked; default: OUT/ppo_init.pt
    prompts: PositiveInt = 300  # training prompts to rank
    valid_prompts: PositiveInt = 60  # validation prompts to rank
    k_min: PositiveInt = 4  # fewest answers per prompt                                        paper: 4
    k_max: PositiveInt = 9  # most answers per prompt                                          paper: 9
    pairs: PositiveInt = 60  # test prompts on which two models are compared
    max_new_tokens: PositiveInt = 40  # longest answer
    waiting: PositiveInt = 16  # questions to models that may wait; who comes then is asked to try again
    seed: Seed = 0  # of what is sampled to be ranked


# ---------------------------------------------------------------------------------------------------- what PPO computes


def episodes_of(prompt, responses, eot, device):
    """Rows [prompt, response, padding], as ppo.rollout makes them. prompt: ids; responses: B lists of ids.

    -> {tokens, mask (B, T), lengths, ended (B,)}
    """
    tokens, lengths = pad([prompt + response for response in responses], device, value=eot)
    mask = response_mask(torch.full_like(lengths, len(prompt)), lengths, tokens.size(1))
    ended = tokens.gather(1, lengths[:, None] - 1).squeeze(1) == eot
    return {"tokens": tokens, "mask": mask, "lengths": lengths, "ended": ended}


@torch.no_grad()
def look_at(prompt, responses, policy, reference, reward_model, value_model, eot, cfg, prefix=()):
    """What ppo.py computes for responses to one prompt. cfg: a ppo.Config

    prompt, prefix: lists of ids; responses: B lists of ids. -> {scores (B,), mask, logprobs, ref_logprobs, values,
    rewards, advantages, returns (B, T)}. prefix: what stood in front of the prompt when the policy was asked; the
    others are asked without it (as in core.text.kl_of_answers).
    """
    device = policy.transformer.wte.weight.device
    episodes = episodes_of(prompt, responses, eot, device)
    episodes |= ppo.score_responses(episodes, policy, reference, reward_model, value_model, cfg)
    if prefix:
        seen = episodes_of([*prefix, *prompt], responses, eot, device)
        episodes["logprobs"] = token_logprobs(policy, seen["tokens"], seen["mask"])[:, len(prefix) :]
    mask, logprobs, ref_logprobs = episodes["mask"], episodes["logprobs"], episodes["ref_logprobs"]
    episodes["rewards"] = ppo.shaped_rewards(episodes["scores"], logprobs, ref_logprobs, mask, cfg.kl_coef)
    advantages, returns = ppo.gae(episodes["rewards"], episodes["values"], mask, cfg.discount, cfg.lam)
    return episodes | {"advantages": advantages, "returns": returns}


@torch.no_grad()
def alternatives(prompt, response, policy, reference, count, prefix=()):
    """The likeliest tokens at every place of a response. -> for each of its tokens [(id, p by policy, p by reference)]

    prompt, response, prefix: lists of ids. The state before a token predicts it: with n tokens, n states.
    """

    def probabilities(model, context):
        ids = torch.tensor([[*context, *response[:-1]]], device=model.transformer.wte.weight.device)
        return model.unembed(model(ids)[0, len(context) - 1 :]).float().softmax(-1)  # (n, V)

    by_policy = probabilities(policy, [*prefix, *prompt])
    by_reference = probabilities(reference, prompt)
    top = by_policy.topk(min(count, by_policy.size(1)), dim=-1)
    columns = zip(top.indices.tolist(), top.values.tolist(), by_reference.gather(1, top.indices).tolist())
    return [list(zip(*column)) for column in columns]


def cut_at(stop, response, tokenizer):
    """Ids of a response up to the first `stop` in its text, which then counts as its end, as in core.text.respond."""
    text = tokenizer.decode(response)
    if stop not in text:
        return response
    text = text.split(stop)[0]
    kept = max(n for n in range(len(response)) if text.startswith(tokenizer.decode(response[:n])))
    rest = text.removeprefix(tokenizer.decode(response[:kept]))  # the beginning of the token that holds the stop
    return [*response[:kept], *tokenizer.encode_ordinary(rest), tokenizer.eot_token]


def answer_prompt(prompt, policy, others, tokenizer, ppo_cfg, ask, prefix="", stop="", cfg=None):
    """Sample n answers, keep the one that scores best, and look at it. -> what the page shows of one answer

    others: (reference, reward model, value model); ask: {"temperature", "max_new_tokens", "seed", "best_of"}; stop:
    cuts an answer there and ends it, as core.text.respond does for a few-shot prompted model.
    """
    eot = tokenizer.eot_token
    ids, before = tokenizer.encode_ordinary(prompt), tokenizer.encode_ordinary(prefix)
    new, room = ask["max_new_tokens"], policy.config.block_size
    total = len(before) + len(ids) + new
    require(total <= room, f"{len(before) + len(ids)} tokens and an answer of {new} do not fit the context of {room}")
    rng = generator(ask["seed"], "ask")
    asked = [before + ids] * ask["best_of"]
    tokens, lengths, _ = generate(sampling_copy(policy, cfg), asked, new, eot, ask["temperature"], generator=rng)
    responses = [row[len(asked[0]) : n] for row, n in zip(tokens.tolist(), lengths.tolist())]
    if stop:
        responses = [cut_at(stop, response, tokenizer)[:new] for response in responses]
    found = look_at(ids, responses, policy, *others, eot, ppo_cfg, before)
    scores = found["scores"].tolist()
    best = max(range(len(scores)), key=scores.__getitem__)  # best of n
    response, columns = responses[best], slice(len(ids), len(ids) + len(responses[best]))
    names = ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
    per_token = zip(*(found[name][best, columns].tolist() for name in names))
    top = alternatives(ids, response, policy, others[0], 6, before)

    def text_of(id):
        return "end of text" if id == eot else tokenizer.decode_single_token_bytes(id).decode(errors="replace")

    shown = []
    for id, numbers, likeliest in zip(response, per_token, top):
        token = {"text": text_of(id), "end": id == eot} | dict(zip(names, numbers))
        token["top"] = [{"text": text_of(i), "p": p, "ref": q, "chosen": i == id} for i, p, q in likeliest]
        shown.append(token)
    ended = response[-1] == eot
    text = tokenizer.decode(response[:-1] if ended else response)
    kl = sum(token["logprobs"] - token["ref_logprobs"] for token in shown)
    return {"text": text, "ended": ended, "score": scores[best], "scores": scores, "kl": kl, "tokens": shown}


# ---------------------------------------------------------------------------------------------------- the run's models


class RunModels:
    """The models of a run folder: listed from its .pt files, loaded when first asked for, again when a file changes."""

    def __init__(self, cfg, out, device):
        self.cfg, self.out, self.device = cfg, out, device
        self.tokenizer_spec, self.tokenizer = load_tokenizer(cfg.data)
        self.prefixes = read_prefixes(cfg)
        self.headers, self.models, self.looking = {}, {}, threading.Lock()

    def files(self, kind):
        """{name: path} of the checkpoints of a kind that belong to this data, states and epochs left out."""
        found = [*sorted(self.out.glob("*.pt")), *sorted(self.out.glob("round1/*.pt"))]
        paths = [p for p in found if ".state-" not in p.name and ".epoch-" not in p.name]
        with self.looking:
            names = {path: path.relative_to(self.out).with_suffix("").as_posix() for path in paths}
            return {name: path for path, name in names.items() if self.header(path)[1] == kind}

    def header(self, path):
        """(when the file changed, its kind, the settings it was made with), read again when it has changed."""
        changed = path.stat().st_mtime_ns
        if self.headers.get(path, (None,))[0] != changed:
            try:
                checkpoint = read_checkpoint(path)
                same = checkpoint["tokenizer"] == self.tokenizer_spec
                found = checkpoint["kind"] if same else "of another tokenizer", checkpoint["config"]
            except BadInput as problem:
                print(problem)
                found = "unreadable", {}
            self.headers[path] = changed, *found
        return self.headers[path]

    def policies(self):
        """{key: (name, path)} as evaluate.py calls them, then all others by their file's name."""
        files, found, used = self.files("policy"), {}, set()
        for key, name in NAMES.items():
            known = [file.removesuffix(".pt") for file in FILES.get(key, [key])]
            path = next((files[name] for name in known if name in files), None)
            if key == "gpt_prompted" and self.prefixes and "gpt" in found:
                path = found["gpt"][1]
            if path:
                found[key] = name, path
                used.update(known)
        return found | {stem: (stem, path) for stem, path in files.items() if stem not in used}

    def scorers(self):
        """{name: path} of the reward models, reward.pt first; value models are not among them."""
        files = {name: path for name, path in self.files("scalar").items() if not name.endswith(".value")}
        return dict(sorted(files.items(), key=lambda item: item[0] != "reward"))

    def load(self, path, load):
        changed = path.stat().st_mtime_ns
        if self.models.get(path, (None,))[0] != changed:
            self.models[path] = changed, load(path, self.cfg, self.device, self.tokenizer_spec, sharded=False)
        return self.models[path][1]

    def policy(self, key):
        policies = self.policies()
        require(key in policies, f"no model {key!r:.40} in {self.out}")
        return self.load(policies[key][1], load_policy)

    def others(self, key, scorer):
        """The reference, the reward model and the value model by which a policy's answers are looked at."""
        policies, scorers = self.policies(), self.scorers()
        start = "ppo_init" if "ppo_init" in policies else "sft"
        require(start in policies, f"{self.out}/ppo_init.pt: not there yet; it is the reference of every answer")
        require(scorers, f"{self.out}/reward.pt: not there yet; rank answers, then run reward.py")
        require(scorer in scorers, f"no reward model {scorer!r:.40} in {self.out}")
        name = policies[key][1].relative_to(self.out).with_suffix("")
        values = self.files("scalar").get(f"{name.as_posix()}.value", scorers[scorer])
        scalars = [self.load(path, load_scalar_model) for path in (scorers[scorer], values)]
        return self.policy(start), *scalars, values.name

    def ppo_config(self, key):
        """β, discount and λ with which a policy was trained; ppo.py's defaults for one that was not trained by it."""
        config = self.headers[self.policies()[key][1]][2]
        names = ("kl_coef", "discount", "lam", "score_without_eot", "missing_eot_score")
        own = {name: config[name] for name in names if name in config and "ptx_coef" in config}
        return replace(ppo.Config(), **own)

    def prefix(self):
        """The few-shot prefix of GPT (prompted): evaluate.py's choice if it has chosen, else the first."""
        path = self.out / "report.json"
        chosen = json.loads(path.read_text()).get("prefix", {}).get("text") if path.exists() else None
        return chosen if chosen in self.prefixes else self.prefixes[0]


def common_frame(prompts):
    """What stands before and after the words in every prompt of a data folder, e.g. ("", "\\n>") or ("User: ", …)."""
    before = commonprefix(prompts)
    before = before[: before.rfind(": ") + 2] if ": " in before else ""
    after = commonprefix([prompt[len(before) :][::-1] for prompt in prompts])[::-1]
    return before, after[after.find("\n") :] if "\n" in after else ""


def shown_once(record):
    """A record of answers to rank without those that look like another on the page: only space around them differs."""
    first = {text.strip(): i for i, text in reversed(list(enumerate(record["completions"])))}
    kept = sorted(first.values())
    return record | {key: [record[key][i] for i in kept] for key in ("completions", "ended")}


# ------------------------------------------------------------------------------------------------- the page's functions


def person_in(request):
    """-> {"labeler", "group"}"""
    name = text_in(request, "name", 40).strip()
    require(name.isprintable(), '"name" holds characters that cannot be printed')
    return {"labeler": name, "group": choice_in(request, "group", GROUPS)}


def submission_in(request):
    """What every submission says: who, when, how long it took, and its id."""
    seconds = round(number_in(request, "seconds", 0, 1e7, float), 1)
    said = {"id": text_in(request, "id", 64), "seconds": seconds, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
    return said | person_in(request)


class Page:
    """What the page can ask the server for: each function takes a request (dict) and returns a dict."""

    def __init__(self, cfg, device):
        self.cfg, self.device, self.out = cfg, device, Path(cfg.out)
        self.models = RunModels(cfg, self.out, device)
        self.people = PeopleFolder(cfg.people)
        self.one_at_a_time = OneAtATime(cfg.waiting)
        self.tasks, self.pairs, self.shown, self.logs = {}, {}, {}, {}
        every = [record["prompt"] for _, record in read_jsonl(Path(cfg.data) / "prompts.jsonl")]
        self.before, self.after = common_frame(every)
        completions = [record["completion"] for record in read_demonstrations(cfg.data, "train")]
        self.completion_start = " " if all(text.startswith(" ") for text in completions) else ""

    def functions(self):
        names = "start person prompt ask task rank skip undo demonstrate pair judge progress watch"
        return {f"/api/{name}": getattr(self, name) for name in names.split()}

    def plain(self, prompt):
        """A prompt without the frame that all prompts have."""
        return prompt.removeprefix(self.before).removesuffix(self.after)

    def framed(self, text):
        return self.before + text + self.after

    def start(self, request):
        """What the page has to know first."""
        return {
            "models": [{"key": key, "name": name} for key, (name, _) in self.models.policies().items()],
            "scorers": list(self.models.scorers()),
            "max_new_tokens": self.cfg.max_new_tokens,
            "labels": LABELS,
            "flags": FLAGS,
            "use_cases": USE_CASES,
            "out": self.cfg.out,
            "people": self.cfg.people,
        }

    # -------------------------------------------------------------------------------------------- Ask

    def prompt(self, request):
        """A prompt of a split, drawn at random."""
        split = choice_in(request, "split", ("train", "valid", "test"))
        record = random.choice(read_prompts(self.cfg.data, split))
        return {"prompt": self.plain(record["prompt"]), "split": split}

    def ask(self, request):
        """One model answers one prompt."""
        prompt = self.framed(text_in(request, "prompt", 20_000))
        key, scorer = text_in(request, "model", 200), text_in(request, "scorer", 200)
        settings = {
            "temperature": number_in(request, "temperature", 0, 5, float),
            "max_new_tokens": number_in(request, "max_new_tokens", 1, 2048),
            "seed": number_in(request, "seed", 0, 2**53),
            "best_of": number_in(request, "best_of", 1, 64),
        }

        def answer():
            policy = self.models.policy(key)
            *others, values = self.models.others(key, scorer)
            ppo_cfg, prompted = self.models.ppo_config(key), key == "gpt_prompted"
            words = {"prefix": self.models.prefix(), "stop": "\n\n"} if prompted else {}
            result = answer_prompt(
                prompt, policy, others, self.models.tokenizer, ppo_cfg, settings, **words, cfg=self.cfg
            )
            beta = {"beta": ppo_cfg.kl_coef, "discount": ppo_cfg.discount, "lam": ppo_cfg.lam}
            return result | beta | {"values_from": values, "model": key}

        return self.one_at_a_time(answer)

    # -------------------------------------------------------------------------------------------- Rank

    def person(self, request):
        """Has somebody of this name been here, and in which group?"""
        person = person_in(request)
        with self.people.alone():
            group = self.people.group_of(person["labeler"])
            require(group in (None, person["group"]), other_group(person["labeler"], group))
            counts = {kind: len(self.people.of(kind, person["labeler"])) for kind in KINDS}
        return person | {"counts": counts}

    def answers_to_rank(self):
        """{id: {"prompt", "completions", "ended", "split"}}; the answers are sampled once, by whoever asks first."""
        if not self.tasks:
            self.tasks = self.one_at_a_time(self.sample_answers)
        return self.tasks

    def sample_answers(self):
        path = Path(self.cfg.people) / "answers.jsonl"
        with self.people.alone():  # of several servers one samples
            if not path.exists():
                shared = (
                    "data",
                    "out",
                    "supervised",
                    "prompts",
                    "valid_prompts",
                    "k_min",
                    "k_max",
                    "max_new_tokens",
                    "seed",
                )
                shared = {name: getattr(self.cfg, name) for name in (*shared, "device", "threads", "dtype")}
                rng = random.Random(self.cfg.seed)
                records = collect.answers_to_rank(collect.Config(**shared), self.device, self.out, rng)
                write_jsonl(path, [record for record in map(shown_once, records) if len(record["completions"]) >= 2])
            records = [record for _, record in read_jsonl(path)]
        return {task_id(record["prompt"], record["completions"]): record for record in records}

    def task(self, request):
        """The next prompt with its answers to rank, or the one that this page has open (`current`)."""
        person, tab = person_in(request), text_in(request, "tab", 64)
        current, tasks = request.get("current"), self.answers_to_rank()
        labeler, group = person["labeler"], person["group"]
        with self.people.alone():
            before = self.people.group_of(labeler)
            require(before in (None, group), other_group(labeler, before))
            id = current if isinstance(current, str) and current in tasks else None
            if id and group == "held_out" and tasks[id]["split"] == "train":
                id = None
            if id is None or id in self.people.done_by(labeler):
                now = time.time()
                recent = {i: who for i, (who, at) in self.shown.items() if at > now - 1800 and who != (labeler, tab)}
                # not what this person has in another tab
                own = {i: tasks[i] for i in tasks if recent.get(i, ("",))[0] != labeler}
                id = next_task(own, self.people, labeler, group, recent)
                if id:
                    self.shown[id] = (labeler, tab), now
            count = len(self.people.of("comparisons", labeler))
        if id is None:
            return {"task": None, "count": count}
        order = self.order_for(labeler, id)
        completions = [tasks[id]["completions"][i].strip() for i in order]
        return {
            "task": {"id": id, "prompt": self.plain(tasks[id]["prompt"]), "completions": completions},
            "count": count,
        }

    def order_for(self, labeler, id):
        """The order in which a person sees the answers of a task: the same whenever the page is loaded again."""
        order = list(range(len(self.answers_to_rank()[id]["completions"])))
        random.Random(f"{labeler} {id}").shuffle(order)
        return order

    def rank(self, request):
        """Keep a ranking. Lists in the request are in the order in which the answers were shown."""
        submission, id = submission_in(request), text_in(request, "task", 64)
        tasks = self.answers_to_rank()
        require(id in tasks, "these answers are no longer there to be ranked")
        task, K = tasks[id], len(tasks[id]["completions"])
        trained_on = submission["group"] == "held_out" and task["split"] == "train"
        require(not trained_on, "nothing trains on what held-out labelers say, and this is a training prompt")
        ranks = list_in(request, "ranks", K, lambda rank: type(rank) is int and 1 <= rank <= K)
        order = self.order_for(submission["labeler"], id)
        place = [order.index(i) for i in range(K)]  # where answer i of the task was shown
        record = {key: task[key] for key in ("prompt", "completions", "ended", "split")}
        record["ranks"] = dense([ranks[j] for j in place])
        if request.get("ratings") is not None:
            ratings = list_in(request, "ratings", K, is_rating)
            record["ratings"] = [ratings[j] for j in place]
        for key, fits in (
            ("flags", some_of(FLAGS)),
            ("notes", lambda note: isinstance(note, str) and len(note) <= 2000),
        ):
            if request.get(key) is not None:
                values = list_in(request, key, K, fits)
                record[key] = [values[j] for j in place]
        labels = request.get("labels", [])
        require(some_of(LABELS)(labels), '"labels" must list labels of the instruction')
        record |= {"labels": labels, "use_case": request.get("use_case") or None, "order": order}
        require(record["use_case"] in (None, *USE_CASES), '"use_case" must be one of the ten')
        self.people.add("comparisons", record | submission | {"task": id})
        return self.done(submission)

    def skip(self, request):
        """Somebody does not want to rank these answers."""
        submission, id = submission_in(request), text_in(request, "task", 64)
        self.people.add("skipped", submission | {"task": id})
        return self.done(submission)

    def undo(self, request):
        """Take a submission back. -> what kind it was, and what the page needs to show it again"""
        person, id = person_in(request), text_in(request, "id", 64)
        kind, record = self.people.undo(id, person["labeler"])
        back = {"kind": kind, "task": record.get("task")}
        if kind == "comparisons":
            for key in ("ranks", "ratings", "flags", "notes"):
                back[key] = [record[key][i] for i in record["order"]] if key in record else None
            back |= {key: record[key] for key in ("labels", "use_case", "seconds")}
        if kind == "demonstrations":
            back |= {"prompt": self.plain(record["prompt"]), "completion": record["completion"].strip()}
        return back | self.done(person)

    def done(self, person):
        """What the page says when a record is on the disk: how many of them this person has written."""
        with self.people.alone():
            counts = {kind: len(self.people.of(kind, person["labeler"])) for kind in KINDS}
        return {"saved": True, "counts": counts}

    # -------------------------------------------------------------------------------------------- two models

    def pairs_of(self, a, b):
        """{id: {"prompt", "models", "completions"}} in both orders, of prompts on which two models say other things.

        Sampled at temperature 1 with a seed of their own, so they are the same after a restart.
        """
        policies = self.models.policies()
        for key in (a, b):
            require(key in policies, f"no model {key!r:.40} in {self.cfg.out}")
        require(a != b, "choose two different models")
        a, b = sorted((a, b))
        files = [policies[key][1] for key in (a, b)]
        version = (a, b, *(file.stat().st_mtime_ns for file in files))
        if version not in self.pairs:
            self.pairs[version] = self.one_at_a_time(self.sample_pairs, a, b)
        return self.pairs[version]

    def sample_pairs(self, a, b):
        cfg, tokenizer = self.cfg, self.models.tokenizer
        prefix = self.models.prefix() if "gpt_prompted" in (a, b) else ""
        room = self.models.policy(a).config.block_size - cfg.max_new_tokens - len(tokenizer.encode_ordinary(prefix))
        records = with_room(read_prompts(cfg.data, "test"), tokenizer, room)
        prompts, texts = [record["prompt"] for record in records][: cfg.pairs], {}
        for key in (a, b):
            prompted = key == "gpt_prompted"
            asked = [(prefix if prompted else "") + prompt for prompt in prompts]
            policy, rng = sampling_copy(self.models.policy(key), cfg), generator(cfg.seed, f"pairs {key}")
            stop = "\n\n" if prompted else ""
            texts[key] = [
                text for text, _ in respond(policy, tokenizer, asked, cfg.max_new_tokens, 1.0, rng, stop=stop)
            ]
        pairs = {}
        for prompt, one, other in zip(prompts, texts[a], texts[b]):
            if one.strip() != other.strip():
                for models, completions in (((a, b), (one, other)), ((b, a), (other, one))):
                    pair = {"prompt": prompt, "models": models, "completions": completions}
                    pairs[task_id(prompt, models, completions)] = pair
        return pairs

    def pair(self, request):
        """The next pair to compare: all prompts once in one order, then all in the other."""
        person, a, b = person_in(request), text_in(request, "a", 200), text_in(request, "b", 200)
        pairs, labeler = self.pairs_of(a, b), person["labeler"]
        with self.people.alone():
            done = self.people.done_by(labeler)
            count = len(done & pairs.keys())

        def order(id):
            prompt = pairs[id]["prompt"]
            digest = hashlib.sha256(f"{labeler} {prompt}".encode()).digest()
            first = (digest[0] % 2 == 0) == (pairs[id]["models"][0] == min(a, b))
            return not first, digest

        left = sorted((id for id in pairs if id not in done), key=order)
        if not left:
            return {"pair": None, "count": count, "of": len(pairs)}
        pair = pairs[left[0]]
        shown = {"id": left[0], "prompt": self.plain(pair["prompt"])}
        shown["completions"] = [text.strip() for text in pair["completions"]]
        return {"pair": shown, "count": count, "of": len(pairs)}

    def judge(self, request):
        """Keep a judgement: the first is better (1), the second (2), or they are equally good (0)."""
        submission, id = submission_in(request), text_in(request, "task", 64)
        pairs = self.pairs_of(text_in(request, "a", 200), text_in(request, "b", 200))
        require(id in pairs, "this pair is no longer there; one of the models has changed")
        preferred = number_in(request, "preferred", 0, 2)
        self.people.add("judgements", pairs[id] | submission | {"task": id, "preferred": preferred})
        return self.done(submission)

    # -------------------------------------------------------------------------------------------- Write

    def demonstrate(self, request):
        """Keep a demonstration, on a drawn prompt or on the labeler's own. Held-out labelers' go to validation."""
        submission = submission_in(request)
        prompt, completion = text_in(request, "prompt", 20_000), text_in(request, "completion", 20_000)
        own = request.get("own") is True
        split = "train" if own else choice_in(request, "split", ("train", "valid"))
        if submission["group"] == "held_out":
            split = "valid"
        record = {
            "prompt": self.framed(prompt),
            "completion": self.completion_start + completion.strip(),
            "split": split,
        }
        record |= {"source": "labeler"} if own else {}
        self.people.add("demonstrations", record | submission)
        return self.done(submission)

    # -------------------------------------------------------------------------------------------- Watch

    def progress(self, request):
        """Who has written how much, how far people agree, and which model they prefer."""
        with self.people.alone():
            records = {kind: self.people.of(kind) for kind in KINDS}
        counts = defaultdict(Counter)
        for kind, some in records.items():
            for record in some:
                counts[record.get("labeler") or "?", record.get("group", "training")][kind] += 1
        labelers = [{"name": name, "group": group, **count} for (name, group), count in sorted(counts.items())]
        agreement = {group: agreement_in(records["comparisons"], group) for group in GROUPS}
        names = {key: name for key, (name, _) in self.models.policies().items()}
        return {
            "labelers": labelers,
            "agreement": agreement,
            "win_rates": people_win_rates(records["judgements"], names),
        }

    def watch(self, request):
        """The run's logs and samples that changed since, and the report. have: {name: version} of what the page has"""
        have = request.get("have")
        require(isinstance(have, dict), '"have" must be an object like {...}')
        found = {}
        for path in sorted(self.out.glob("*.jsonl")):
            name = path.name.removesuffix(".jsonl")
            if name.split(".")[0] in ("comparisons", "answers"):
                continue
            status = path.stat()
            version = f"{status.st_mtime_ns} {status.st_size}"
            if self.logs.get(name, (None,))[0] != version:
                self.logs[name] = version, read_log(path, self.plain), status.st_mtime
            found[name] = self.logs[name]
        changed = {
            name: {"version": version, "changed": at, **content}
            for name, (version, content, at) in found.items()
            if have.get(name) != version
        }
        return {"logs": changed, "names": list(found), "report": self.report(have), "now": time.time()}

    def report(self, have):
        """The parts of report.json that the page draws, if it is there and new to the page."""
        path = self.out / "report.json"
        if not path.exists() or have.get("report.json") == str(path.stat().st_mtime_ns):
            return None
        report = json.loads(path.read_text())
        keys = ("name", "win_rate", "win_rate_greedy", "score", "length")
        models = {key: {k: model[k] for k in keys if k in model} for key, model in report["models"].items()}
        parts = {key: report[key] for key in ("over_optimisation", "quick") if key in report}
        return {"version": str(path.stat().st_mtime_ns), "models": models, **parts}


# ---------------------------------------------------------------------------------------------------- main


def classroom_key(folder):
    """The key of a folder's page: the same after a restart, so a class can go on. Delete the file for a new one."""
    path = Path(folder) / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(16))
    return path.read_text().strip()


def main(cfg):
    require(2 <= cfg.k_min <= cfg.k_max, f"--k_min {cfg.k_min} --k_max {cfg.k_max}: must be 2 <= k_min <= k_max")
    require(cfg.port < 65536, f"--port {cfg.port}: must be below 65536")
    require(Path(cfg.out).is_dir(), f"--out {cfg.out}: no such run folder; python run.py makes one")
    cfg = replace(cfg, data=cfg.data or f"{cfg.out}/data", people=cfg.people or f"{cfg.out}/people")
    device = set_up(cfg)
    page = Page(cfg, device)
    key = "" if is_loopback(cfg.host) else classroom_key(cfg.people)
    html = (Path(__file__).resolve().parent / "page.html").read_bytes()
    try:
        server = Server(cfg.host, cfg.port, html, page.functions(), key)
    except OSError as problem:
        raise BadInput(f"--host {cfg.host} --port {cfg.port}: {problem.strerror}; try --port 0") from None
    supervised = Path(cfg.supervised) if cfg.supervised else page.out / "ppo_init.pt"
    if supervised.exists():  # otherwise when somebody ranks; the run may not have come that far
        print(f"{len(page.answers_to_rank()):,} prompts to rank, answers by {supervised} ({cfg.people}/answers.jsonl)")
    print(f"models: {', '.join(name for name, _ in page.models.policies().values()) or 'none yet'}")
    print(f"what people write goes to {cfg.people}")
    print(f"open {address_of(server)}   (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\nstopped; {cfg.people} holds what was written")
        flags = f"--data {cfg.data} --out {cfg.out} --comparisons {cfg.people}/comparisons.jsonl"
        print(f"next: python reward.py {flags} --name reward_people")
    finally:
        server.server_close()


if __name__ == "__main__":
    command_line(Config, main, __doc__)
