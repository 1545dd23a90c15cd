"""Readers of the public benchmarks: small files in the official layouts, written here, and wrong ones."""

import gzip
import json

import pytest

from core.config import BadInput
from data import benchmarks
from data.benchmarks import prompts_of, read_benchmark, solved_examples, uniform_over_toxicity


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def question(asked, *answers):
    return {
        "question": asked,
        "id": "56e",
        "answers": [{"text": answer, "answer_start": 3} for answer in answers],
        "is_impossible": not answers,
    }


def squad(*passages):
    paragraphs = [{"context": f"Passage {i}.", "qas": list(qas)} for i, qas in enumerate(passages)]
    return {"version": "v2.0", "data": [{"title": "Old_Hens", "paragraphs": paragraphs}]}


def turn(asked, replied, *answers):
    """A question of a QuAC dialogue: the teacher's reply, and what people answered afterwards."""
    answers = [{"text": answer, "answer_start": 3} for answer in answers]
    reply = {"text": replied, "answer_start": 3}
    return {"question": asked, "id": "C_q#0", "answers": answers, "orig_answer": reply, "yesno": "x", "followup": "n"}


def quac(*turns):
    passage = {"context": "Hens sat. They ate. CANNOTANSWER", "qas": list(turns), "id": "C"}
    return {"data": [{"title": "Hens", "section_title": "Youth", "background": "Birds.", "paragraphs": [passage]}]}


def drop_answer(number="", spans=(), **date):
    return {"number": number, "spans": list(spans), "date": {"day": "", "month": "", "year": ""} | date}


DROP = {
    "history_1": {
        "passage": "Two hens met.",
        "qa_pairs": [
            {
                "question": "How many?",
                "answer": drop_answer("2"),
                "query_id": "q",
                "validated_answers": [drop_answer("3")],
            },
            {"question": "Who?", "answer": drop_answer(spans=["Ann", "Bea"]), "query_id": "r"},
            {"question": "When?", "answer": drop_answer(month="May", year="1807"), "query_id": "s"},
        ],
        "wiki_url": "",
    }
}

HELLASWAG = {
    "ind": 24,
    "activity_label": "Cleaning roofs",
    "ctx_a": "A hen stands.",
    "ctx_b": "it",
    "ctx": "A hen stands. it",
    "split": "val",
    "split_type": "indomain",
    "label": 2,
    "endings": ["flies.", "reads.", "sits down.", "[step] sings [title] Sing well. "],
    "source_id": "activitynet~v_x",
}
WSC = {
    "text": "The hen saw the fox before it ran.",
    "target": {"span1_index": 0, "span1_text": "The hen", "span2_index": 6, "span2_text": "it"},
    "idx": 0,
    "label": False,
}
SCHEMAS = """<?xml version="1.0" encoding="ISO-8859-1"?>
<?xml-stylesheet type="text/xsl" href="WSExample.xsl"?>

<collection>

<schema>
<text>
<txt1>
René's hen saw the fox before
</txt1>
<pron> it </pron>
<txt2>
ran away.
</txt2>
</text>
<quote>
<pron>it </pron>
<quote2> ran away</quote2>
</quote>
<answers>
<answer> René's hen </answer>
<answer>the fox </answer>
</answers>
<correctAnswer> B.  </correctAnswer>
<source> (1972) </source>
</schema>

<schema>
<text><txt1>The hens fed the foxes, so we thanked </txt1><pron>them</pron><txt2>.</txt2></text>
<answers><answer>The hens</answer><answer>the foxes</answer></answers><correctAnswer> A </correctAnswer>
</schema>
</collection>"""
TOXIC = {"filename": "x.txt", "begin": 0, "end": 9, "challenging": False}
TOXIC |= {
    "prompt": {"text": "The hens", "toxicity": 0.31, "threat": None},
    "continuation": {"text": "!", "toxicity": 0.2},
}
TRUTHFUL_HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
TRUTHFUL_CSV = (
    TRUTHFUL_HEADER + 'Adversarial,Hens,Do hens fly?,A bit,A bit; Not far; "Badly",Yes; Never,http\n'.replace('"', "")
)
MC = {
    "question": "Do hens fly?",
    "mc1_targets": {"A bit": 1, "Yes": 0},
    "mc2_targets": {"A bit": 1, "Not far": 1, "Yes": 0, "Never": 0},
}


def put(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


# ---------------------------------------------------------------------------------------------------- what is read


def test_squad_is_a_dialogue_about_a_passage(tmp_path):
    first = [question("Who? ", "Ann", "Ann", "the Ann"), question("Why?"), question("Where?", "here")]
    path = put(tmp_path, "dev.json", squad(first, [question("When?", "now")]))
    items, pool = read_benchmark("squadv2", path)
    assert pool is None and len(items) == 4
    assert items[0]["references"] == ["Ann", "the Ann"] and items[1]["references"] == ["Not in background."]
    expected = (
        "Title: Old_Hens\n\nBackground: Passage 0.\n\n"
        "Q: Who?\n\nA: Ann\n\nQ: Why?\n\nA: Not in background.\n\nQ: Where?\n\nA:"
    )
    assert items[2]["context"] == expected and items[2]["solved"] == expected + " here"
    assert items[3]["context"] == "Title: Old_Hens\n\nBackground: Passage 1.\n\nQ: When?\n\nA:"
    assert items[0]["group"] == items[2]["group"] != items[3]["group"]


def test_quac_is_a_dialogue_that_the_majority_answers(tmp_path):
    none = "CANNOTANSWER"
    turns = [turn("Who?", "Hens", "Hens", none, "Hens sat."), turn("Why?", none, none, "They ate.", none)]
    turns += [turn("When?", "They", "They", none), turn("What?", "ate", "ate", "ate", "They ate.")]
    items, _ = read_benchmark("quac", put(tmp_path, "val.json", quac(*turns)))
    cannot = "This cannot be answered from the paragraph."
    expected = [["Hens", "Hens sat."], [cannot], [cannot], ["ate", "ate", "They ate."]]
    assert [item["references"] for item in items] == expected
    asked = f"Q: Who?\n\nA: Hens\n\nQ: Why?\n\nA: {cannot}\n\nQ: When?\n\nA: They\n\nQ: What?\n\nA:"
    assert items[3]["context"] == f"TITLE: Hens, Youth\n\nPARAGRAPH: Hens sat. They ate.\n\n{asked}"
    assert items[3]["solved"] == items[3]["context"] + " ate"
    assert len({item["group"] for item in items}) == 1


def test_drop_answers_are_numbers_spans_or_dates(tmp_path):
    items, _ = read_benchmark("drop", put(tmp_path, "drop.json", DROP))
    assert [item["references"] for item in items] == [[["2"], ["3"]], [["Ann", "Bea"]], [["May 1807"]]]
    assert items[1]["context"] == "Passage: Two hens met.\nQuestion: Who?\nAnswer:"
    assert items[1]["solved"].endswith("Answer: Ann, Bea")


def test_hellaswag(tmp_path):
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(jsonl(HELLASWAG, HELLASWAG | {"label": "0"}).encode()))
    (item, other), _ = read_benchmark("hellaswag", str(tmp_path / "val.jsonl.gz"))
    assert item["context"] == "Cleaning roofs: A hen stands. it" and item["answer"] == 2 and other["answer"] == 0
    assert item["choices"] == [" flies.", " reads.", " sits down.", " sings. Sing well."]


def test_rte_in_both_layouts(tmp_path):
    record = {"premise": "A hen sat.", "hypothesis": "Hens sit.", "label": "not_entailment", "idx": 0}
    table = 'index\tsentence1\tsentence2\tlabel\n0\tA "hen sat.\tHens sit.\tentailment\n'  # quotes are text in GLUE
    (new,), _ = read_benchmark("rte", put(tmp_path, "val.jsonl", jsonl(record)))
    (old,), _ = read_benchmark("rte", put(tmp_path, "dev.tsv", table))
    assert new["context"] == "Passage: A hen sat.\nQuestion: Does it follow from the passage that Hens sit?\nAnswer:"
    assert new["choices"] == [" Yes", " No"] and new["solved"].endswith("Answer: No")
    assert 'A "hen sat.' in old["context"] and (new["answer"], old["answer"]) == (1, 0)


def test_sst(tmp_path):
    items, _ = read_benchmark("sst", put(tmp_path, "dev.tsv", "sentence\tlabel\na fine hen \t1\na dull hen\t0\n"))
    assert [item["solved"] for item in items] == [
        "Text: a fine hen\nLabel: positive",
        "Text: a dull hen\nLabel: negative",
    ]


def test_wsc_in_both_layouts(tmp_path):
    (item, true), _ = read_benchmark("wsc", put(tmp_path, "val.jsonl", jsonl(WSC, WSC | {"label": True})))
    assert item["context"].startswith("Passage: The hen saw the fox before **it** ran.\nQuestion: ")
    assert (item["target"], item["label"]) == ("The hen", False)
    assert item["solved"] is None and true["solved"].endswith("Answer: The hen"), "a wrong noun is no example"
    (tmp_path / "WSCollection.xml").write_bytes(SCHEMAS.encode("latin-1"))
    (schema, other), _ = read_benchmark("wsc", str(tmp_path / "WSCollection.xml"))
    assert schema["context"].startswith("Passage: René's hen saw the fox before **it** ran away.\n")
    assert schema["choices"] == [" René's hen", " the fox"] and schema["answer"] == 1
    assert "thanked **them**.\n" in other["context"] and other["answer"] == 0


def test_pairs_of_sentences(tmp_path):
    header = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
    row = "0,\"Hens, old ones, nap.\",\"Hens, young ones, nap.\",stereo,age,[['age']],a1,\"['a1', 'a2']\"\n"
    (pair,), _ = read_benchmark("crows_pairs", put(tmp_path, "crows.csv", header + row))
    assert pair["choices"] == ["Hens, old ones, nap.", "Hens, young ones, nap."] and pair["context"] == ""
    rows = ["sentid\tsentence"]
    for other in ("guest", "someone"):
        for answer in "01":
            for gender, word in (("male", "his"), ("female", "her"), ("neutral", "their")):
                rows.append(
                    f"cook.{other}.{answer}.{gender}.txt\tThe cook told the {other} that {word} soup {answer} was hot."
                )
    items, _ = read_benchmark("winogender", put(tmp_path, "all_sentences.tsv", "\n".join(rows)))
    assert len(items) == 2, "one per template, whoever is 'someone' left out"
    assert items[1]["choices"] == [f"The cook told the guest that {word} soup 1 was hot." for word in ("his", "her")]


def test_truthfulqa_in_both_layouts(tmp_path):
    (table,), _ = read_benchmark("truthfulqa", put(tmp_path, "TruthfulQA.csv", TRUTHFUL_CSV))
    assert table["choices"] == [" A bit", " Not far", " Badly", " Yes", " Never"]
    assert table["mc1"] == (0, [3, 4]) and table["mc2"] == ([0, 1, 2], [3, 4])
    (item,), _ = read_benchmark("truthfulqa", put(tmp_path, "mc_task.json", [MC]))
    assert item["choices"] == [" A bit", " Not far", " Yes", " Never"]
    assert item["mc1"] == (0, [2]) and item["mc2"] == ([0, 1], [2, 3])
    lists = {"choices": ["Yes", "A bit"], "labels": [0, 1]}
    (item,), _ = read_benchmark("truthfulqa", put(tmp_path, "mc.jsonl", jsonl(MC | {"mc1_targets": lists})))
    assert item["mc1"] == (0, [2])


def test_toxicity_is_drawn_evenly(tmp_path):
    unknown = TOXIC | {"prompt": {"text": "Hens", "toxicity": None}}
    (item,), _ = read_benchmark("real_toxicity", put(tmp_path, "prompts.jsonl", jsonl(unknown, TOXIC)))
    assert (item["context"], item["toxicity"], item["continuation"]) == ("The hens", 0.31, 0.2)
    mild = [{"toxicity": i / 1000} for i in range(100)]
    items = [*mild, {"toxicity": 0.55}, {"toxicity": 0.56}, *({"toxicity": 0.9 + i / 100} for i in range(11))]
    drawn = [item["toxicity"] for item in uniform_over_toxicity(items, 12, seed=0)]
    tenths = [sum(low <= value < low + 0.1 for value in drawn) for low in (0.0, 0.5)]
    assert tenths == [5, 2] and len(drawn) == 12, "equal shares of what is there; 1.0 counts as the last tenth"
    assert uniform_over_toxicity(items, 12, 0) == uniform_over_toxicity(items, 12, 0) and len(set(drawn)) == 12
    assert uniform_over_toxicity(items, 0, 0) == items


def test_translations_and_summaries(tmp_path):
    french, english = put(tmp_path, "a.fr", "Une poule.\nDeux.\n\n"), put(tmp_path, "a.en", "One hen.\nTwo.\n")
    items, pool = read_benchmark("fr_to_en", f"{french},{english}")
    assert items[0]["context"] == "French: Une poule.\nEnglish:" and items[1]["references"] == ["Two."] and pool is None
    marked = '<refset>\n<doc>\n<seg id="1">Une &amp; poule.</seg>\n<seg id="2">Deux.</seg>\n</doc>\n'
    items, pool = read_benchmark("fr_to_en", f"{put(tmp_path, 'b.sgm', marked)},{english},{french},{english}")
    assert items[0]["context"] == "French: Une & poule.\nEnglish:" and len(pool) == 2
    news = put(tmp_path, "test.csv", 'id,article,highlights\n1,"Hens\nsat. ","They\nsat."\n')
    assert read_benchmark("cnn_dm", news)[0][0]["context"] == "Hens sat.\n\nTL;DR:"
    assert read_benchmark("cnn_dm", news)[0][0]["references"] == ["They sat."]
    post = {"id": "t", "subreddit": "hens", "title": "T", "post": "Long.", "summary": "Short."}
    (item,), _ = read_benchmark("tldr", put(tmp_path, "test.jsonl", jsonl(post)))
    assert item["context"].endswith("POST: Long.\n\nTL;DR:") and item["references"] == ["Short."]


# ---------------------------------------------------------------------------------------------------- what is refused

GOOD_SQUAD = squad([question("Who?", "Ann")])
WRONG = {
    "squad cut short": ("squadv2", "d.json", json.dumps(GOOD_SQUAD)[:40], r"d\.json:1: not JSON"),
    "squad of another version": ("squadv2", "d.json", {"rows": []}, r'd\.json: key "data" is missing'),
    "squad 1.1": (
        "squadv2",
        "d.json",
        squad([{"question": "Who?", "answers": []}]),
        r'd\.json, data\[0\], paragraphs\[0\], qas\[0\]: key "is_impossible" is missing',
    ),
    "squad without an answer": ("squadv2", "d.json", squad([question("?") | {"is_impossible": False}]), "no answer"),
    "quac without the reply": (
        "quac",
        "v.json",
        quac({"question": "Who?", "answers": [{"text": "Hens"}]}),
        r'v\.json, data\[0\], paragraphs\[0\], qas\[0\]: key "orig_answer" is missing',
    ),
    "quac that nobody answered": ("quac", "v.json", quac(turn("Who?", "Hens")), '"answers" is an empty list'),
    "squad as a list": ("squadv2", "d.json", [1], r"d\.json: expected one object"),
    "drop without an answer": (
        "drop",
        "d.json",
        {"p": {"passage": "x", "qa_pairs": [{"question": "?", "answer": drop_answer()}]}},
        r'd\.json: "p", qa_pairs\[0\]: no answer with',
    ),
    "drop without pairs": ("drop", "d.json", {"p": {"passage": "x", "qa_pairs": []}}, '"qa_pairs" is an empty list'),
    "hellaswag's test split": (
        "hellaswag",
        "d.jsonl",
        jsonl(HELLASWAG, HELLASWAG | {"label": ""}),
        r"d\.jsonl:2: label ''",
    ),
    "hellaswag without endings": ("hellaswag", "d.jsonl", jsonl(HELLASWAG | {"endings": [1]}), '"endings" must be'),
    "rte's test split": (
        "rte",
        "d.jsonl",
        jsonl({"premise": "a", "hypothesis": "b", "idx": 0}),
        r"d\.jsonl:1: label None",
    ),
    "another table": (
        "sst",
        "d.tsv",
        "text\tlabel\na\t1\n",
        r"d\.tsv:1: no column \['sentence'\]; found 'text', 'label'",
    ),
    "a cell too few": ("sst", "d.tsv", "sentence\tlabel\na\t1\nb\n", r"d\.tsv:3: 1 columns, the header has 2"),
    "another label": ("sst", "d.tsv", "sentence\tlabel\na\tgood\n", r"d\.tsv:2: label 'good'"),
    "an open quote": ("crows_pairs", "d.csv", 'sent_more,sent_less\na,"b\n', r"d\.csv:2: not a table"),
    "wsc with another index": (
        "wsc",
        "d.jsonl",
        jsonl(WSC | {"target": WSC["target"] | {"span2_index": 8}}),
        r'd\.jsonl:1: "span2_index" 8, but the text has 8 words',
    ),
    "wsc whose label is a number": (
        "wsc",
        "d.jsonl",
        jsonl(WSC | {"label": 1}),
        '"label" must be true or false, got int',
    ),
    "xml cut short": ("wsc", "d.xml", SCHEMAS[:-40], r"d\.xml:\d+: not XML"),
    "other xml": ("wsc", "d.xml", "<a/>", r"d\.xml: no <schema>"),
    "a third noun": (
        "wsc",
        "d.xml",
        SCHEMAS.replace("</answers>", "<answer>x</answer></answers>"),
        "schema 1: a pronoun",
    ),
    "an answer C": ("wsc", "d.xml", SCHEMAS.replace("> B.  <", ">C<"), "schema 1: label 'C'"),
    "a sentid of another kind": ("winogender", "d.tsv", "sentid\tsentence\nx.txt\ty\n", r"d\.tsv:2: sentid 'x\.txt'"),
    "half a pair": (
        "winogender",
        "d.tsv",
        "sentid\tsentence\na.b.0.male.txt\ty\n",
        r"d\.tsv: a\.b\.0: no male or no female",
    ),
    "two best answers": (
        "truthfulqa",
        "d.json",
        [MC | {"mc1_targets": {"a": 1, "b": 1}}],
        r'd\.json:1: "mc1_targets" has 2 true answers',
    ),
    "no false answers": (
        "truthfulqa",
        "d.csv",
        TRUTHFUL_HEADER + "A,B,Q?,a,a,,s\n",
        r"d\.csv:2: true and false answers",
    ),
    "toxicity out of range": (
        "real_toxicity",
        "d.jsonl",
        jsonl(TOXIC | {"prompt": {"text": "x", "toxicity": 3}}),
        r'd\.jsonl:1: "toxicity" is 3',
    ),
    "toxicity without continuation": ("real_toxicity", "d.jsonl", jsonl({"prompt": {}}), '"continuation" is missing'),
    "an empty file": ("real_toxicity", "d.jsonl", "", r"d\.jsonl: nothing in it"),
    "an empty table": ("sst", "d.tsv", "", r"d\.tsv:1: no column"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_say_where(tmp_path, name):
    task, file, content, message = WRONG[name]
    with pytest.raises(BadInput, match=message):
        read_benchmark(task, put(tmp_path, file, content))


def test_wrong_translations_say_where(tmp_path):
    one, two = put(tmp_path, "a.fr", "Une.\n\nDeux.\n"), put(tmp_path, "b.fr", "Une.\n")
    for option, message in (
        (f"{one},{two}", r"a\.fr:2: an empty sentence"),
        (f"{two},{put(tmp_path, 'a.en', 'One.' + chr(10) + 'Two.')}", r"b\.fr: 1 sentences, but .*a\.en has 2"),
        (f"{two},{put(tmp_path, 'c.sgm', 'One.')}", r"c\.sgm: no sentence in it"),
        (two, "--fr_to_en .*: give two files"),
        (f"{two},{two},{two}", "give two files, French,English, or twice"),
    ):
        with pytest.raises(BadInput, match=message):
            read_benchmark("fr_to_en", option)


# ---------------------------------------------------------------------------------------------------- prompts


def test_solved_examples_are_of_other_passages(tmp_path):
    passages = [[question(f"Q{i}?", f"A{i}"), question(f"R{i}?", f"B{i}")] for i in range(5)]
    items, _ = read_benchmark("squadv2", put(tmp_path, "dev.json", squad(*passages)))
    few = prompts_of("squadv2", items, None, 9, 0)
    assert set(few) == {"zero-shot", "few-shot"} and len(few["zero-shot"]) == 10
    assert len(few["few-shot"]) == 2, "SQuADv2 gets 4 solved passages at most, the fifth is asked"
    first, second = few["few-shot"]
    i = first["references"][0][1]
    assert first["context"] == f"Title: Old_Hens\n\nBackground: Passage {i}.\n\nQ: Q{i}?\n\nA:"
    instruction, examples = benchmarks.INSTRUCTIONS["squadv2"], first["prompt"].removesuffix(first["context"])
    assert examples.startswith(instruction + "\n\nTitle: ") and examples.endswith("\n\n")
    for j in set("01234") - {i}:
        assert f"Passage {j}.\n\nQ: Q{j}?\n\nA: A{j}\n\nQ: R{j}?\n\nA: B{j}\n\n" in examples
    assert f"Passage {i}." not in examples
    assert few["zero-shot"][0]["prompt"] == instruction + "\n\n" + items[0]["context"]
    assert prompts_of("squadv2", items, items[:4], 2, 0)["few-shot"][9]["context"] == items[9]["context"]
    with pytest.raises(BadInput, match="--sst: the file has too few passages for 2"):
        solved_examples("sst", items[:4], None, 2, 0)
    with pytest.raises(BadInput, match="the second file has too few passages for 3"):
        solved_examples("sst", items, items[:4], 3, 0)
    assert len(solved_examples("sst", items, items[:4], 2, 0)[0]) == 2


def test_sentences_stand_behind_an_instruction():
    pairs = prompts_of("crows_pairs", [{"context": "", "choices": ["a", "b"]}], None, 5, 0)
    assert list(pairs) == ["basic", "respectful", "biased"]
    assert pairs["basic"][0]["prompt"] == "" and pairs["biased"][0]["prompt"].endswith("you can:\n\n")
    starts = prompts_of("real_toxicity", [{"context": "The hens"}], None, 0, 0)
    assert starts["basic"][0]["prompt"] == "The hens" and starts["respectful"][0]["prompt"].endswith(
        "prejudice:\n\nThe hens"
    )
    asked = prompts_of("truthfulqa", [{"context": "Q: Why?\nA:"}], None, 0, 0)
    assert list(asked) == ["QA prompt", "QA + instruction", "instruction prompt"]
    assert asked["QA prompt"][0]["prompt"].count("\nA:") == 7, "six pairs and the question"
    assert asked["instruction prompt"][0]["prompt"] == benchmarks.LITERAL + "\n\nQ: Why?\nA:"
    assert asked["QA + instruction"][0]["prompt"].count("\nA:") == 7
