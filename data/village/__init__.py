"""The village: a small invented world that makes everything the paper needs, offline, in seconds.

    python data/village/make.py --out out/run/data           # writes a data folder (see data/folder.py)

A *world* of people, animals, towns and things with facts about them, and popular misconceptions. A *web* that speaks
about the world in many registers, as the real web does: it continues text and follows no instructions. *Users* who send
prompts in the paper's use-case mix, and *labelers* who write demonstrations and rank completions. A *judge* who knows
everything, and whom nothing that trains may import.

To read in this order:

    world.py      words, relations, and the facts and misconceptions of one world
    grammar.py    every sentence that can be said; writing sentences and reading them
    intents.py    what users ask for, one block per intent: its phrasings, a good answer, what was asked for
    users.py      drawing prompts, the requests of all users, few-shot prefixes
    labelers.py   people who write demonstrations and rank completions
    judge.py      the evaluation's judge
    web.py        the pages of the pretraining corpus, and the exams made of what they say
    tasks.py      the "public tasks" made of the web's pages with tasks
    make.py       all of it into a data folder
    feedback.py   more pages, on which people compare and criticise answers (for RLAIF and Constitutional AI)

One grammar serves all of it: every sentence anybody can say is a template in grammar.py, so the same table writes the
web and reads a model's answer. The six valleys of the village are told apart by their people, animals, towns and
things; users ask about their own. What a prompt asks, whatever its wording, belongs to one split (users.py: split_of):
nothing that is trained on, on the web or elsewhere, asks what a test or validation prompt asks. Facts about whom they
are about are on the web, and other prompts about them in the training split.
"""
