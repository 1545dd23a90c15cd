"""OpenAssistant's conversation trees -> a data folder: real people's prompts, answers and rankings.

    python data/oasst.py --gpt2                                # downloads the trees (about 35 MB) and GPT-2's tokenizer
    python data/oasst.py --trees 2023-04-12_oasst_ready.trees.jsonl.gz --corpus text.txt --out out/oasst

The release (Apache-2.0) is the data set OpenAssistant/oasst1 on the Hugging Face hub; the file above is in it. Each
line is a tree of messages: a prompt, several replies by different volunteers, prompts that follow up on them, and so
on. Replies to the same message were ranked by people, rank 0 = best; the release holds their consensus.

    prompts         every prompter message, with the dialogue that led to it; the construction steps then keep about one
                    per tree, because follow-ups begin like the prompt they follow
    demonstrations  the best reply to it that a person wrote
    comparisons     all its ranked replies, where there are two or more: K is 2 to 9 or so

A tree plays the part of a user: all of it is in one split. Deleted messages and messages that did not pass review are
dropped, with everything below them. Tokenizer, corpus, splits and checks are those of data/files.py.
"""

import random
import reprlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.config import command_line, require
from data.download import cache_folder, download, hub_url
from data.files import FolderOptions, build, check_options, count_pairs, demonstrations_from, paths_in, read_records
from data.folder import is_rank, text_of

RELEASE = "2023-04-12_oasst_ready.trees.jsonl.gz"
NAMES = {"prompter": "User", "assistant": "Assistant"}
MAX_TURNS = 200  # messages in a dialogue; more than that is another kind of file


@dataclass
class Config(FolderOptions):
    out: str = "out/oasst"  # the data folder to write
    trees: str = ""  # the release's file of trees, .jsonl or .jsonl.gz; several files: a,b; default: download it
    lang: str = "en"  # keep trees that start in this language; all = every language
    also: str = ""  # more demonstrations, as data/files.py reads them, e.g. Dolly; several files: a,b
    corpus: str = ""  # text to pretrain on, as data/files.py reads it; several: a,b; default: the demonstrations


def render(thread):
    """A dialogue so far, [(role, text)], as one prompt. The answer to it starts with a space."""
    return "".join(f"{NAMES[role]}: {text}\n\n" for role, text in thread) + "Assistant:"


def instruction_as_dialogue(instruction, given):
    """A single instruction in the same form, so that the model meets one way of being asked."""
    return render([("prompter", f"{instruction}\n\n{given}".strip())])


def check_message(message, where, role, turns=1):
    """Refuse what is not a message of `role` in the release's format, down to the last reply."""
    require(turns <= MAX_TURNS, f"{where}: a dialogue of more than {MAX_TURNS} messages; is this the release's file?")
    require(isinstance(message, dict), f"{where}: a message must be an object like {{...}}")
    at = f"{where}: message {message.get('message_id', 'without message_id')}"
    found = message.get("role")
    require(found == role, f'{at}: "role" is {reprlib.repr(found)}, expected "{role}" here')
    require(isinstance(message.get("text"), str), f'{at}: key "text" is missing or not text')
    require(isinstance(message.get("replies"), list), f'{at}: key "replies" is missing or not a list')
    rank = message.get("rank")
    fits = rank is None or (isinstance(rank, int) and is_rank(rank))
    require(fits, f'{at}: "rank" is {reprlib.repr(rank)}; a whole number (0 = best) or nothing')
    for reply in message["replies"]:
        check_message(reply, where, "assistant" if role == "prompter" else "prompter", turns + 1)


def size(message):
    """Messages in a tree or a branch of one."""
    return 1 + sum(map(size, message["replies"]))


def usable(message, dropped):
    """Whether a message may be used; if not, counts why, and what is lost below it."""
    if message.get("deleted"):
        reason = "messages deleted"
    elif message.get("review_result") is not True:  # absent or null: nobody reviewed it
        reason = "messages not reviewed, or failed review"
    elif not message["text"].strip():
        reason = "messages empty"
    else:
        return True
    dropped[reason] += 1
    dropped["messages below a dropped one"] += size(message) - 1
    return False


def exchanges(message, thread, dropped):
    """Yield (thread, replies) for every prompter message: the dialogue that ends with it, and the answers it got."""
    thread = [*thread, (message["role"], message["text"].strip())]
    replies = [reply for reply in message["replies"] if usable(reply, dropped)]
    if message["role"] == "prompter":
        yield thread, replies
    for reply in replies:
        yield from exchanges(reply, thread, dropped)


def ranking_of(replies, dropped):
    """Ranked replies -> (completions, ranks), 1 = best; a text that comes twice keeps its better rank."""
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    ranks = {}
    for reply in sorted(ranked, key=lambda reply: reply["rank"]):
        text = " " + reply["text"].strip()
        if text in ranks:
            dropped["ranked replies that repeat a better one"] += 1
        else:
            ranks[text] = reply["rank"] + 1
    texts = list(ranks)
    random.Random("".join(texts)).shuffle(texts)  # so that the place in the list says nothing about the rank
    return texts, [ranks[text] for text in texts]


def best_by_a_person(replies):
    """The demonstration among the replies, or None. Unranked ones come last: mostly they are the only reply."""
    human = [reply for reply in replies if not reply.get("synthetic")]
    ranked = [reply for reply in human if reply.get("rank") is not None]
    if ranked:
        return min(ranked, key=lambda reply: reply["rank"])
    return human[0] if human else None


def read_trees(paths, lang):
    """-> prompts, demonstrations, comparisons, as lists of records; "user" is the tree."""
    prompts, demonstrations, comparisons, dropped, read = [], [], [], Counter(), 0
    for path in paths_in(paths):
        for where, tree in read_records(path):
            read += 1
            name = text_of(tree, "message_tree_id", where)
            require("prompt" in tree, f'{where}: key "prompt" is missing; is this the file of trees?')
            root = tree["prompt"]
            check_message(root, where, "prompter")
            if tree.get("tree_state", "ready_for_export") != "ready_for_export":
                dropped["trees that were not finished"] += 1
                continue
            if lang not in ("all", root.get("lang")):
                dropped[f"trees in another language than {lang}"] += 1
                continue
            if not usable(root, dropped):
                continue
            for thread, replies in exchanges(root, [], dropped):
                record = {"prompt": render(thread), "user": name, "use_case": "dialogue", "turns": len(thread)}
                prompts.append(dict(record))
                best = best_by_a_person(replies)
                if best is None:
                    dropped["prompts without a demonstration (no reply by a person)"] += 1
                else:
                    completion = " " + best["text"].strip()
                    demonstrations.append(record | {"completion": completion, "labeler": "oasst"})
                completions, ranks = ranking_of(replies, dropped)
                if len(set(ranks)) < 2:
                    dropped["prompts without a ranking (fewer than 2 ranked replies)"] += 1
                else:
                    ranking = {"completions": completions, "ranks": ranks, "labeler": "oasst"}
                    comparisons.append(record | ranking)
    require(prompts, f"{paths}: no tree to use; {dict(dropped) or 'it is empty'}")
    print(f"read {read:,} trees: {len(prompts):,} prompts, {len(demonstrations):,} demonstrations,", end=" ")
    print(f"{len(comparisons):,} rankings with {sum(map(count_pairs, comparisons)):,} pairs that are not ties")
    for reason, count in sorted(dropped.items()):
        print(f"  {count:6,} {reason}")
    return prompts, demonstrations, comparisons


def fetch():
    """The release's file of finished trees, downloaded once."""
    url = hub_url(f"datasets/OpenAssistant/oasst1/resolve/main/{RELEASE}")
    return download(url, cache_folder() / "oasst1" / RELEASE, "OpenAssistant's trees (about 35 MB)")


def main(cfg):
    check_options(cfg, needs_corpus=False)
    require(cfg.lang.strip() != "", "--lang: a language code like en, or all")
    trees = cfg.trees if paths_in(cfg.trees) else str(fetch())
    prompts, demonstrations, comparisons = read_trees(trees, cfg.lang)
    if paths_in(cfg.also):
        demonstrations += demonstrations_from(cfg.also, instruction_as_dialogue)
    build(cfg, demonstrations, comparisons, prompts)


if __name__ == "__main__":
    command_line(Config, main, __doc__)
