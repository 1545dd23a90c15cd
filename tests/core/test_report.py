"""The report: every number of report.json lands in the right cell, and no bar or legend covers another."""

import random
import sys
from itertools import pairwise

import pytest

from core import report as reporting

SIX = {"gpt": "GPT", "gpt_prompted": "GPT (prompted)", "sft": "SFT", "ppo_init": "PPO's start", "ppo": "PPO"}
SIX |= {"ppo_ptx": "PPO-ptx"}
NINE = SIX | {name: name for name in ("rejection_ppo", "constitutional_3", "dpo")}
TASKS = ["reading", "translation", "sentiment", "ending", "facts"]


def rate(mean, half=0.03):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 430}


def fake_report(names=SIX, village=True):
    """A report.json such as evaluate.py writes, of random numbers; without a village, none that needs labelers."""
    rng = random.Random(0)
    models = {}
    for i, (key, name) in enumerate(names.items()):
        model = {"name": name, "length": rng.uniform(8, 20), "score": rng.uniform(-1, 1), "corpus_loss": 0.8 + 0.06 * i}
        if key not in ("gpt", "gpt_prompted"):
            model["kl"] = rng.uniform(0, 3)
        if village:
            model["win_rate"] = {group: rate(0.2 + 0.05 * i + 0.1 * rng.random()) for group in ("training", "held_out")}
            model["win_rate_greedy"] = {group: rate(rng.uniform(0.2, 0.7)) for group in ("training", "held_out")}
            judged = ("helpful", "truthful", "truthful_and_informative", "harmless", "names_the_entity")
            model |= {key: rng.random() for key in judged}
            if key != "gpt_prompted":
                unseen = {"helpful": rng.random(), "truthful_and_informative": rng.random(), "n": 150}
                model["unseen_phrasings"] = unseen | {"win_rate": model["win_rate"]}
            model["likert"] = rng.uniform(1, 7)
            model["flags"] = {"fails the task": rng.random(), "satisfies the constraint": None}
            model["flag_counts"] = {"fails the task": 43, "satisfies the constraint": 0}
            model["likert_by_use_case"] = {case: rng.uniform(1, 7) for case in ("brainstorming", "open qa")}
            model["misconceptions"] = {"truthful": rng.random(), "truthful_and_informative": rng.random(), "n": 12}
            model["harmless_when_asked_for_harm"] = {"mean": rng.random(), "n": 21}
            tasks = {shots: {task: rng.random() for task in TASKS} for shots in ("zero_shot", "few_shot")}
            model["tasks"] = tasks
        models[key] = model
    sample = {"prompt": "Where does the raven live?\n>"} | {key: f" In the {key}.\n\nI think " * 9 for key in names}
    report = {"seed": 0, "n_prompts": 430, "models": models, "samples": [sample] * 6, "config": {}}
    report["reward_model"] = {"trained on": {"accuracy": [0.801, 0.012]}}
    report["reward_model"]["training"] = {
        "accuracy": [0.673, 0.024],
        "longer_is_better": [0.483, 0.02],
        "agreement": 0.75,
    }
    report["seconds"] = {"pretrain": 200.4, "evaluate": 40.2}
    if village:
        curves = {}
        for key in [key for key in names if key not in ("gpt", "gpt_prompted", "sft", "ppo_init")]:
            curves[key] = []
            for i in range(21):
                kl, gold = 0.12 * i + 0.05 * rng.random(), 3 + 0.1 * i - 0.006 * i * i + 0.2 * rng.random()
                curves[key].append({"iteration": i, "sqrt_kl": kl, "score": 0.1 * i + 0.3 * rng.random(), "gold": gold})
        points = [
            {"n": n, "sqrt_kl": 0.3 * i, "score": 0.3 * i, "gold": 3 + 0.1 * i} for i, n in enumerate((1, 2, 4, 8))
        ]
        report["over_optimisation"] = curves | {"best_of_n": points}
        if "ppo_ptx" in names:
            rivals = {key: model["win_rate"] for key, model in models.items() if key.startswith("gpt")}
            rivals["sft_at_its_best_temperature"] = models["ppo_ptx"]["win_rate"]
            report["head_to_head"] = rivals | {"sft_best_temperature": 0.3, "sft_by_temperature": {"0.3": 0.6}}
    return report


def cells(text, row):
    """The cells of the table row that begins with this."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


# ---------------------------------------------------------------------------------------------------- tables


def test_table_lines_up_and_keeps_every_cell_in_its_row():
    text = reporting.table(["", "win %", "n"], [["PPO's start", 50.25, 7], ["a|b", "-", "two\nlines"]])
    lines = text.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    bars = [[i for i, c in enumerate(line) if c == "|" and line[i - 1] != "\\"] for line in lines]
    assert all(at == bars[0] for at in bars) and len(bars[0]) == 4
    assert lines[1].replace("-", "") == "|  | : | : |", "words to the left, numbers to the right"
    assert lines[2] == "| PPO's start | 50.25 |         7 |" and lines[3] == "| a\\|b        |     - | two lines |"


def test_numbers_are_written_in_percent():
    assert reporting.percent(0.256) == "26 %" and reporting.percent(None) == "-"
    assert reporting.interval({"mean": 0.5, "low": 0.25, "high": 0.754}) == "50.0 [25.0, 75.4]"


@pytest.mark.parametrize("text", ["plain", "`", "a ``` b", "``"])
def test_code_span_ends_only_at_its_end(text):
    span = reporting.code_span(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence) and fence not in span[len(fence) : -len(fence)].split() and text in span


def test_long_curves_are_thinned_evenly():
    curve = list(range(21))
    points = reporting.thinned(curve, 8)
    assert len(points) == 8 and points[0] == 0 and points[-1] == 20
    assert {b - a for a, b in pairwise(points)} == {2, 3}, "20 steps in 7"
    assert reporting.thinned(curve[:8], 8) == curve[:8]


# ---------------------------------------------------------------------------------------------------- report.md


def test_claims_have_their_number_and_what_it_says():
    report = fake_report()
    report["models"]["ppo_ptx"]["win_rate"]["held_out"] = rate(0.619, 0.03)
    report["head_to_head"]["gpt_prompted"] = {"held_out": rate(0.52, 0.03)}
    text = reporting.claims_section(report)
    held_out = ["PPO-ptx is preferred to SFT", "win rate, held-out labelers, both at T = 1", "73.4 ± 2"]
    assert cells(text, "PPO-ptx is preferred to SFT") == [*held_out, "61.9 [58.9, 64.9]", "> 50", "holds"]
    assert cells(text, "PPO-ptx is preferred to GPT (prompted)")[3:] == ["52.0 [49.0, 55.0]", "> 50", "inconclusive"]
    assert "public tasks" not in text, "how many items there are is not known"
    assert "PPO loses accuracy on public tasks" in reporting.claims_section(report | {"task_items": 90})
    assert reporting.claims_section({"models": {}}) == ""


def test_every_number_lands_in_its_cell():
    report = fake_report()
    ppo = report["models"]["ppo"]
    ppo["win_rate"] = {"training": rate(0.607, 0.031), "held_out": rate(0.5, 0.25)}
    ppo["win_rate_greedy"] = {"training": rate(0.625, 0.025), "held_out": rate(0.4, 0.1)}
    ppo |= {"helpful": 0.355, "truthful": 0.25, "truthful_and_informative": 0.125, "harmless": 1.0}
    ppo |= {"names_the_entity": 0.75, "likert": 3.5, "length": 11.94, "corpus_loss": 0.9305}
    ppo["tasks"]["few_shot"] = dict(zip(TASKS, (0, 0.5, 1, 0.254, 0.256)))
    want = ["PPO", "60.7 [57.6, 63.8]", "50.0 [25.0, 75.0]", "62.5 [60.0, 65.0]", "40.0 [30.0, 50.0]"]
    want += ["0.35", "0.25", "0.12", "1.00", "0.75", "3.50", "11.9"]
    assert cells(reporting.preference_section(report), "PPO") == want
    assert len(cells(reporting.preference_section(report), "")) == len(want), "a heading for each"
    ppo["names_the_entity"] = None  # no prompt asks for it
    assert cells(reporting.preference_section(report), "PPO")[9] == "-"
    assert cells(reporting.tax_section(report), "PPO, few-shot") == [
        "PPO, few-shot",
        "0.930",
        "0 %",
        "50 %",
        "100 %",
        "25 %",
        "26 %",
    ]

    for i, model in enumerate(report["models"].values()):
        model["flags"]["fails the task"] = i / 10
        model["harmless_when_asked_for_harm"] = {"mean": 1 - i / 10, "n": 21}
        model["likert_by_use_case"]["open qa"] = 1 + i
    flags = reporting.flag_section(report)
    failed = cells(flags, "fails the task (n = 43)")[1:]
    assert failed == [reporting.percent_of(i / 10, 43) for i in range(6)] and failed[0] == "0 [0, 8]"
    assert cells(flags, "satisfies the constraint (n = 0)")[1:] == ["-"] * 6
    rude = "harmless when asked for an insult (n = 21)"
    assert cells(flags, rude)[1:] == [reporting.percent_of(1 - i / 10, 21) for i in range(6)]
    assert cells(reporting.use_case_section(report), "open qa")[1:] == ["1.00", "2.00", "3.00", "4.00", "5.00", "6.00"]

    people = reporting.reward_model_section(report)
    assert cells(people, "trained on") == ["trained on", "80.1 ± 1.2", "-", "-", "-", "50.0"]
    assert cells(people, "training") == ["training", "67.3 ± 2.4", "48.3", "75.0", "-", "50.0"]
    report["reward_model"]["training"]["ceiling"] = [0.8749, 0.02]
    report["reward_model_probe"] = {"answer to another prompt": {"mean": 0.214, "n": 420}}
    people = reporting.reward_model_section(report)
    assert cells(people, "training") == ["training", "67.3 ± 2.4", "48.3", "75.0", "87.5", "50.0"]
    assert "fluent answer to another prompt to a correct one in 21 % of 420 cases" in people
    assert cells(reporting.seconds_section(report), "total") == ["total", "241"]


def test_who_meets_whom():
    report = fake_report()
    met = report["head_to_head"]
    met["gpt"] = {"training": rate(0.9, 0.05), "held_out": rate(0.8, 0.1)}
    met["sft_at_its_best_temperature"] = {"training": rate(0.5, 0.125), "held_out": rate(0.6, 0.05)}
    text = reporting.head_to_head_section(report)
    assert cells(text, "GPT") == ["GPT", "90.0 [85.0, 95.0]", "80.0 [70.0, 90.0]"]
    sft = "SFT at T = 0.3, its best on validation prompts"
    assert cells(text, sft) == [sft, "50.0 [37.5, 62.5]", "60.0 [55.0, 65.0]"]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 1 + 3, "heading, line, GPT twice and SFT, and nothing else"


def test_unseen_phrasings_have_a_section_of_their_own():
    report = fake_report()
    found = {"helpful": 0.375, "truthful_and_informative": 0.625, "n": 77}
    found["win_rate"] = {"training": rate(0.5, 0.25), "held_out": rate(0.7, 0.1)}
    for model in report["models"].values():
        if "unseen_phrasings" in model:
            model["unseen_phrasings"] = found
    text = reporting.unseen_section(report)
    assert cells(text, "PPO") == ["PPO", "50.0 [25.0, 75.0]", "70.0 [60.0, 80.0]", "0.38", "0.62"]
    assert "(77 prompts)" in text.splitlines()[0] and "GPT (prompted)" not in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 2 + 5


@pytest.mark.parametrize("missing", ["head_to_head", "unseen_phrasings"])
def test_sections_of_what_was_not_measured_are_not_there(missing):
    report = fake_report()
    report.pop(missing, None)
    for model in report["models"].values():
        model.pop(missing, None)
    text = reporting.markdown(report)
    assert ("## Head to head" in text) == (missing != "head_to_head")
    assert ("## In phrasings that no training prompt has" in text) == (missing != "unseen_phrasings")


def test_curves_are_called_like_their_models():
    report = fake_report(NINE)
    report["over_optimisation"] = {key: [] for key in ("ppo", "dpo", "gone", "best_of_n")}
    for i, curve in enumerate(report["over_optimisation"].values()):
        curve.append({"iteration": i, "sqrt_kl": 0.5, "score": -0.25, "gold": 4.5})
    del report["over_optimisation"]["best_of_n"][0]["iteration"]
    report["over_optimisation"]["best_of_n"][0]["n"] = 16
    text = reporting.over_optimisation_section(report)
    assert cells(text, "PPO") == ["PPO", "0", "0.50", "-0.25", "4.50"]
    assert cells(text, "dpo")[1] == "1" and cells(text, "gone")[1] == "2" and cells(text, "best of n")[1] == "n = 16"


def test_samples_show_what_was_asked_and_answered_as_it_is():
    report = fake_report({"sft": "SFT", "ppo": "PPO"})
    report["samples"] = [
        {"prompt": "# not a heading\n> nor a quotation\n", "sft": " It's *red*.\n\nAnd `so` on", "ppo": ""}
    ]
    lines = reporting.sample_section(report).splitlines()
    assert lines[2:4] == ["    # not a heading", "    > nor a quotation"]
    assert lines[5] == '- SFT: `` "It\'s *red*.\\n\\nAnd `so` on" ``' and lines[6] == "- PPO: `''`"


def test_a_report_without_labelers_has_no_sections_that_need_them():
    with_labelers, without = reporting.markdown(fake_report()), reporting.markdown(fake_report(village=False))

    def headings(text):
        return [line.split(":")[0].split(" (")[0] for line in text.splitlines() if line.startswith("#")]

    everywhere = ["## Reward model", "## The same prompts, answered by every model", "## Seconds per stage"]
    middle = ["## Alignment tax", "## Flags of the paper's Table 3, by the judge", "## Likert 1-7 by use case"]
    assert headings(with_labelers) == [
        *(
            "# Report",
            "## The paper's claims",
            "## Who prefers whom",
            "## Head to head",
            "## In phrasings that no training prompt has",
            *middle,
        ),
        *("## Reward model", "## Over-optimisation", *everywhere[1:]),
    ]
    assert headings(without) == ["# Report", "## Scores", *everywhere]
    report = fake_report(village=False)
    report |= {"samples": [], "seconds": {}, "reward_model": {}}
    assert headings(reporting.markdown(report)) == ["# Report", "## Scores"]
    assert cells(reporting.markdown(report), "GPT")[2] == "-", "no KL of GPT"
    assert "\n\n\n" not in with_labelers + without


def test_report_speaks_of_figures_only_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    report = fake_report()
    files = reporting.figures(report, tmp_path)
    assert files == [] and not list(tmp_path.iterdir()) and reporting.comparison_figure({"a": {}}) is None
    for text in (reporting.markdown(report, files), reporting.summary(report, "out/run", files)):
        assert "figure" not in text.lower() and ".png" not in text
    assert reporting.markdown(report, ["a.png"]).endswith("\n\n![a.png](a.png)\n")


def test_an_old_matplotlib_is_as_good_as_none(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setattr(matplotlib, "__version_info__", (3, 6, 3, "final", 0))
    assert reporting.figures(fake_report(), tmp_path) == []


# ---------------------------------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("names", [SIX, NINE])
@pytest.mark.parametrize("village", [True, False])
def test_summary_is_one_page(names, village):
    report = fake_report(names, village)
    text = reporting.summary(report, "out/run", ["win_rates.png"])
    lines = text.splitlines()
    assert len(lines) <= 45 and all(len(line) <= 100 for line in lines)
    assert "out/run/report.md" in text and "win_rates.png" in text
    ppo = report["models"]["ppo"]
    if village:
        want = [reporting.interval(ppo[key]["held_out"]) for key in ("win_rate", "win_rate_greedy")]
        want += [f"{ppo[key]:.2f}" for key in ("helpful", "truthful_and_informative", "harmless")]
        assert cells(text, "PPO")[1:] == want
    else:
        assert cells(text, "PPO")[1:] == [f"{ppo['score']:+.2f}", f"{ppo['kl']:.2f}"]
    cost = text[text.index("What did it cost") :]
    assert cells(cost, "PPO")[1] == f"{ppo['corpus_loss']:.2f}" and "| GPT (prompted) " not in cost
    assert "Where does the raven live? >" in lines and sum("In the ppo_ptx." in line for line in lines) in (1, 2)


def test_answers_on_the_terminal_take_one_line():
    assert reporting.shortened(" two\n\nlines ", 9) == "two lines" and reporting.shortened("two lines", 8) == "two lin…"
    assert reporting.shortened("\n", 9) == "(nothing)" and reporting.shortened("a\x1b[2Jb", 9) == "a�[2Jb"


def test_a_quick_run_prints_no_numbers():
    text = reporting.summary(fake_report() | {"quick": True}, "out/quick", ["win_rates.png"])
    assert len(text.splitlines()) <= 15 and "mean nothing" in text
    assert "out/quick/report.md" in text and "win_rates.png" in text and not any(c.isdigit() for c in text)


# ---------------------------------------------------------------------------------------------------- figures


def overlap(one, other):
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1


@pytest.mark.parametrize("count", [1, 2, 5, 9, 30])
def test_bars_cover_neither_each_other_nor_the_next_group(count):
    pytest.importorskip("matplotlib")
    report = fake_report({f"model{i}": f"model {i}" for i in range(count)})
    for figure in (reporting.win_rate_figure(report), reporting.tax_figure(report)):
        for axes in figure.axes:
            spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
            assert all(right <= left + 1e-9 for (_, right), (left, _) in pairwise(spans))
            ticks = axes.get_xticks()
            per_group = len(spans) // len(ticks)
            for i, tick in enumerate(ticks):
                group = spans[i * per_group : (i + 1) * per_group]
                assert tick - 0.5 < group[0][0] and group[-1][1] < tick + 0.5
                assert (group[0][0] + group[-1][1]) / 2 == pytest.approx(tick), "the name stands under the middle"


@pytest.mark.parametrize("names", [SIX, NINE])
def test_legends_and_names_cover_nothing(names):
    pytest.importorskip("matplotlib")
    report = fake_report(names)
    rows = {key: {"title": name, "kl": 0.1, "training": rate(0.5)} for key, name in names.items()}
    draw = [reporting.win_rate_figure, reporting.tax_figure, reporting.over_optimisation_figure]
    for figure in [*(function(report) for function in draw), reporting.comparison_figure({"a": rows})]:
        figure.savefig("/dev/null", format="png", dpi=100)  # lays it out
        (legend,) = figure.legends
        covered = [axes.get_tightbbox() for axes in figure.axes]
        assert not any(overlap(legend.get_window_extent(), box) for box in covered)
        assert all(
            0 <= box.x0 and box.x1 <= figure.bbox.x1 and 0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in covered
        )
        for axes in figure.axes:
            level = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_rotation() == 0]
            assert not any(overlap(a, b) for a, b in pairwise(level))


def test_bars_are_as_high_as_the_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    report = fake_report()
    bars = reporting.win_rate_figure(report).axes[0].patches
    want = [
        100 * model["win_rate"][group]["mean"]
        for group in ("training", "held_out")
        for model in report["models"].values()
    ]
    assert [bar.get_height() for bar in bars] == pytest.approx(want)
    for container in reporting.win_rate_figure(report).axes[0].containers:
        if hasattr(container, "patches"):
            (intervals,) = container.errorbar[2]
            for bar, ((x0, low), (x1, high)) in zip(container.patches, intervals.get_segments(), strict=True):
                assert x0 == x1 == pytest.approx(bar.get_x() + bar.get_width() / 2)
                assert (low, high) == pytest.approx((bar.get_height() - 3, bar.get_height() + 3))
    losses, tasks = reporting.tax_figure(report).axes
    own = [model for key, model in report["models"].items() if key != "gpt_prompted"]
    assert [bar.get_height() for bar in losses.patches] == [model["corpus_loss"] for model in own]
    want = [100 * model["tasks"]["zero_shot"][task] for model in own for task in TASKS]
    assert [bar.get_height() for bar in tasks.patches] == pytest.approx(want)
    files = reporting.figures(report, tmp_path)
    assert files == ["win_rates.png", "alignment_tax.png", "over_optimisation.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in files)
    assert reporting.figures(fake_report(village=False), tmp_path) == []


# ---------------------------------------------------------------------------------------------------- the alternatives


def alternative(win, kl=0.5, title="DPO"):
    numbers = {"helpful": 0.5, "truthful": 0.25, "harmless": 1.0, "red_team": 0.9, "corpus_loss": 1.0, "kl": kl}
    rates = {"training": rate(win, 0.1), "held_out": rate(win - 0.2, 0.1), "against_ppo_ptx": rate(0.5, 0.1)}
    rates |= {"held_out_greedy": rate(win - 0.1, 0.1)} if kl is not None else {}
    return numbers | rates | {"title": title, "cost": {"labels": 10, "tokens": 2000, "seconds": 3.0}}


def test_comparison_has_a_row_per_method_and_means_over_runs():
    one = reporting.comparison_table({"a": {"dpo": alternative(0.6)}})
    rates = ["60.0 [50.0, 70.0]", "40.0 [30.0, 50.0]", "50.0 [40.0, 60.0]", "50.0 [40.0, 60.0]"]
    assert cells(one, "DPO") == ["DPO", *rates, "0.50", "0.25", "1.00", "0.90", "1.00", "0.50", "10", "2,000", "3"]
    runs = {"a": {"dpo": alternative(0.6), "rest": alternative(0.7, None, "ReST")}, "b": {"dpo": alternative(0.5, 1.0)}}
    two = reporting.comparison_table(runs)
    assert cells(two, "DPO")[1:3] == ["55.0 (60, 50)", "35.0 (40, 30)"] and cells(two, "DPO")[10] == "0.75"
    assert cells(two, "DPO")[3] == "45.0 (50, 40)" and cells(two, "ReST")[3] == "-", (
        "greedy, where there is such a thing"
    )
    assert cells(two, "ReST")[1] == "70.0 [60.0, 80.0]" and cells(two, "ReST")[10] == "-"


def test_comparison_figure_has_a_point_per_method_and_run():
    pytest.importorskip("matplotlib")
    runs = {
        "a": {"dpo": alternative(0.6, 0.25), "rest": alternative(0.7, None, "ReST")},
        "b": {"dpo": alternative(0.5, 1.0)},
    }
    dpo, rest = reporting.comparison_figure(runs).axes[0].collections
    assert dpo.get_offsets().tolist() == [[0.5, 60], [1, 50]] and rest.get_offsets().tolist() == []
