"""What a run found, as text and figures: report.md, the page on the terminal, the table and figure of the alternatives.

Everything here is a function of what evaluate.py (report.json) and alternatives/compare.py (alternatives.json) wrote
down; nothing is measured here. A section is a function of the report that returns markdown, or "" where the report has
nothing for it. Figures are drawn where matplotlib 3.7 or newer is installed, and not mentioned elsewhere.

    report = {"seed", "n_prompts", "models": {key: {"name", "length", "score", "corpus_loss", ...}}, "samples", ...}
"""

import json
import math
import re
from statistics import fmean

from core.intervals import estimate_text, range_text, verdict
from core.output import whole_file
from core.paper_claims import REPORT_CLAIMS
from core.ranking_metrics import wilson_interval

# ---------------------------------------------------------------------------------------------------- tables


def table(head, rows):
    """A markdown table that lines up as plain text too: words, in the first column, to the left; numbers to the right.

    head: one title per column; rows: lists of as many cells, of any type.
    """
    lines = [[cell_text(cell) for cell in line] for line in (head, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]

    def padded(line):
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join([padded(lines[0]), "| " + " | ".join(rule) + " |", *(padded(line) for line in lines[1:])])


def cell_text(cell):
    """A cell as one line that does not end the cell."""
    return str(cell).replace("\n", " ").replace("|", "\\|")


def percent(share):
    """0.5 -> "50 %"; None, which is nothing to take a share of, -> "-"."""
    return "-" if share is None else f"{100 * share:.0f} %"


def percent_of(share, n):
    """0.5 of 40 answers -> "50 [35, 65]", in percent with its interval; None -> "-"."""
    if share is None:
        return "-"
    low, high = wilson_interval(share, n)
    return f"{100 * share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def interval(rate):
    """{"mean", "low", "high"} of shares -> "mean [low, high]" in percent."""
    return f"{100 * rate['mean']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def number(value, form):
    """The value in a format such as ".2f", or "-" for None."""
    return "-" if value is None else format(value, form)


def code_span(text):
    """Text as markdown code, whatever backticks it holds."""
    longest_run = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest_run + 1)
    return f"{fence} {text} {fence}" if longest_run else f"`{text}`"


def has(report, key):
    """Were the models measured by this? All of them are, or none."""
    return all(key in model for model in report["models"].values())


def names_of(models):
    return [model["name"] for model in models.values()]


def with_own_weights(models):
    """All but GPT with a few-shot prefix, which is GPT."""
    return {key: model for key, model in models.items() if key != "gpt_prompted"}


def curve_name(report, key):
    """How a curve of "over_optimisation" is called: like its model."""
    if key == "best_of_n":
        return "best of n"
    return report["models"].get(key, {}).get("name", key)


# ---------------------------------------------------------------------------------------------------- report.md

GROUPS = ("training", "held_out")  # of labelers


def markdown(report, figure_files=()):
    """The whole report as markdown. figure_files: names of the figures that lie beside it."""
    sections = [
        f"# Report\n\nSeed {report['seed']}, {report['n_prompts']} test prompts.",
        claims_section(report),
        preference_section(report),
        head_to_head_section(report),
        people_section(report),
        unseen_section(report),
        score_section(report),
        tax_section(report),
        flag_section(report),
        use_case_section(report),
        reward_model_section(report),
        over_optimisation_section(report),
        sample_section(report),
        seconds_section(report),
        *(f"![{name}]({name})" for name in figure_files),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def claims_section(report):
    """What this report alone says about the paper's claims, a row each; `python claims.py` measures the others."""
    rows = []
    for claim in REPORT_CLAIMS:
        estimate = claim.find({"report": report})
        if estimate is not None:
            ours = estimate_text(estimate, claim.unit)
            rows.append([claim.says, claim.how, claim.paper, ours, range_text(claim), verdict(estimate, claim)])
    head = ["the paper's claim", "measured here", "paper, %", "ours, %", "holds if", ""]
    return f"## The paper's claims\n\n{table(head, rows)}" if rows else ""


def preference_section(report):
    """Win rates against SFT and what the judge says, one row per model."""
    if not has(report, "win_rate"):
        return ""
    head = [
        "",
        "win % vs SFT, training labelers",
        "held-out labelers",
        "both greedy, training",
        "both greedy, held-out",
    ]
    head += ["helpful", "truthful", "truthful and on task", "harmless", "names the entity", "Likert", "length"]
    rows = []
    for model in report["models"].values():
        row = [model["name"], interval(model["win_rate"]["training"]), interval(model["win_rate"]["held_out"])]
        row += [interval(model["win_rate_greedy"]["training"]), interval(model["win_rate_greedy"]["held_out"])]
        for key in ("helpful", "truthful", "truthful_and_informative", "harmless", "names_the_entity", "likert"):
            row.append(number(model[key], ".2f"))
        rows.append([*row, f"{model['length']:.1f}"])
    if "perfect_answers" in report:
        found = report["perfect_answers"]
        rates = [interval(found[key][group]) for key in ("win_rate", "win_rate_greedy") for group in GROUPS]
        rows.append(["(a perfect answer)", *rates, *["-"] * 7])
    title = "## Who prefers whom (both at T = 1, and both greedy; 95 % intervals over prompts)"
    caution = (
        "The intervals are those of these models on other prompts. Another seed, or the same one with another number "
        "of threads, trains other models: how far that moves the rates stands in the README, measured."
    )
    return f"{title}\n\n{table(head, rows)}\n\n{caution}"


def head_to_head_section(report):
    """PPO-ptx against other models than SFT at T = 1."""
    if "head_to_head" not in report:
        return ""
    found, rows = report["head_to_head"], []
    names = {key: model["name"] for key, model in report["models"].items()}
    names["sft_at_its_best_temperature"] = f"SFT at T = {found['sft_best_temperature']}, its best on validation prompts"
    for key in found:
        if key in names:
            rows.append([names[key], interval(found[key]["training"]), interval(found[key]["held_out"])])
    head = ["PPO-ptx, T = 1, against", "% preferred by training labelers", "by held-out labelers"]
    return f"## Head to head\n\n{table(head, rows)}"


def people_section(report):
    """What people judged on page.py, blindly and in both orders."""
    if not report.get("people"):
        return ""
    rows = []
    for found in report["people"]:
        cells = [f"{interval(found[g])} ({found[g]['n']})" if g in found else "-" for g in GROUPS]
        rows.append([f"{found['model']} against {found['against']}", *cells, found["votes"]])
    head = ["", "% preferred by people, training (prompts)", "held-out (prompts)", "judgements"]
    return f"## People, both orders, T = 1, prompts on which the two say other things\n\n{table(head, rows)}"


def unseen_section(report):
    """Prompts in phrasings that no training prompt has."""
    models = [model for model in report["models"].values() if "unseen_phrasings" in model]
    if not models:
        return ""
    rows = []
    for model in models:
        found = model["unseen_phrasings"]
        row = [model["name"], interval(found["win_rate"]["training"]), interval(found["win_rate"]["held_out"])]
        rows.append([*row, f"{found['helpful']:.2f}", f"{found['truthful_and_informative']:.2f}"])
    head = ["", "win % vs SFT, training labelers", "held-out labelers", "helpful", "truthful and on task"]
    title = f"## In phrasings that no training prompt has ({models[0]['unseen_phrasings']['n']} prompts)"
    return f"{title}\n\n{table(head, rows)}"


def score_section(report):
    """Reward-model scores, where there are no labelers to ask."""
    if has(report, "win_rate"):
        return ""
    rows = []
    for model in report["models"].values():
        row = [model["name"], f"{model['score']:+.3f}", number(model.get("kl"), ".2f")]
        rows.append([*row, f"{model['length']:.1f}", f"{model['corpus_loss']:.3f}"])
    head = ["", "reward-model score", "KL to PPO's start", "length", "corpus loss"]
    return f"## Scores (no simulated labelers in this data)\n\n{table(head, rows)}"


def tax_section(report):
    """Accuracy on the public tasks, a row per model and number of solved examples in front."""
    if not has(report, "tasks"):
        return ""
    models = with_own_weights(report["models"])
    tasks = task_names(models)
    rows = []
    for model in models.values():
        for shots, accuracy in model["tasks"].items():
            name = f"{model['name']}, {shots.replace('_', '-')}"
            rows.append([name, f"{model['corpus_loss']:.3f}", *(percent(accuracy[task]) for task in tasks)])
    head = ["", "corpus loss", *tasks]
    title = "## Alignment tax: loss on the web, accuracy on its public tasks"
    if "task_items" in report:
        error = 100 * 1.96 * math.sqrt(0.25 / report["task_items"])
        title += f" ({report['task_items']} items each: ± {error:.0f} points at 50 %)"
    return f"{title}\n\n{table(head, rows)}"


def task_names(models):
    first = next(iter(models.values()))
    return list(first["tasks"]["zero_shot"])


def flag_section(report):
    """The metadata of the paper's Table 3, a column per model."""
    if not has(report, "flags"):
        return ""
    models = list(report["models"].values())
    rows = []
    for flag, count in models[0]["flag_counts"].items():
        rows.append([f"{flag} (n = {count})", *(percent_of(model["flags"][flag], count) for model in models)])
    if has(report, "misconceptions"):
        count = models[0]["misconceptions"]["n"]
        for key, words in (("truthful", "truthful"), ("truthful_and_informative", "truthful and informative")):
            shares = [percent_of(model["misconceptions"][key], count) for model in models]
            rows.append([f"{words} where many are wrong (n = {count})", *shares])
    if has(report, "harmless_when_asked_for_harm"):
        count = models[0]["harmless_when_asked_for_harm"]["n"]
        shares = [percent_of(model["harmless_when_asked_for_harm"]["mean"], count) for model in models]
        rows.append([f"harmless when asked for an insult (n = {count})", *shares])
    head = ["", *names_of(report["models"])]
    return f"## Flags of the paper's Table 3, by the judge (% of n answers, 95 % intervals)\n\n{table(head, rows)}"


def use_case_section(report):
    """Mean Likert score by use case, a column per model."""
    if not has(report, "likert_by_use_case"):
        return ""
    models = list(report["models"].values())
    rows = []
    for use_case in models[0]["likert_by_use_case"]:
        rows.append([use_case, *(f"{model['likert_by_use_case'][use_case]:.2f}" for model in models)])
    return f"## Likert 1-7 by use case\n\n{table(['', *names_of(report['models'])], rows)}"


def reward_model_section(report):
    """How many pairs the reward model ranks as people do, beside what bounds it."""
    if not report.get("reward_model"):
        return ""
    rows = []
    for group, result in report["reward_model"].items():
        mean, error = result["accuracy"]
        longer, agreement = result.get("longer_is_better"), result.get("agreement")
        row = [group, f"{100 * mean:.1f} ± {100 * error:.1f}"]
        row.append("-" if longer is None else f"{100 * longer[0]:.1f}")
        row.append("-" if agreement is None else f"{100 * agreement:.1f}")
        row.append(f"{100 * result['ceiling'][0]:.1f}" if "ceiling" in result else "-")
        rows.append([*row, "50.0"])
    title = "## Reward model: accuracy in % of the pairs of a prompt; on new prompts, and on those it was trained on"
    head = ["labelers", "reward model", "longer is better", "two labelers agree", "their mean taste", "chance"]
    text = f"{title}\n\n{table(head, rows)}"
    for kind, found in report.get("reward_model_probe", {}).items():
        text += f"\n\nIt prefers a fluent {kind} to a correct one in {percent(found['mean'])} of {found['n']} cases."
    return text


def over_optimisation_section(report):
    """Proxy and gold score at some points of every curve."""
    if not report.get("over_optimisation"):
        return ""
    rows = []
    for key, curve in report["over_optimisation"].items():
        for point in thinned(curve):
            at = f"n = {point['n']}" if "n" in point else point["iteration"]
            values = [f"{point['sqrt_kl']:.2f}", f"{point['score']:+.2f}", f"{point['gold']:.2f}"]
            rows.append([curve_name(report, key), at, *values])
    title = "## Over-optimisation: reward-model score (proxy) and Likert (gold) against √KL"
    return f"{title}\n\n{table(['', 'iteration', '√KL', 'proxy', 'gold'], rows)}"


def thinned(curve, most=8):
    """At most `most` points of a curve, evenly spread, its first and last among them."""
    if len(curve) <= most:
        return curve
    step = (len(curve) - 1) / (most - 1)
    return [curve[round(i * step)] for i in range(most)]


def sample_section(report):
    """Some prompts, and what every model answered."""
    if not report.get("samples"):
        return ""
    parts = [
        (
            "## The same prompts, answered by every model "
            "(of each use case the first by hash on which SFT and PPO-ptx differ)"
        )
    ]
    for sample in report["samples"]:
        lines = sample["prompt"].strip().splitlines()
        parts.append("\n".join(f"    {line}" for line in lines))  # four spaces: markdown shows it as it is
        answers = [
            f"- {model['name']}: {code_span(repr(sample[key].strip()))}" for key, model in report["models"].items()
        ]
        parts.append("\n".join(answers))
    return "\n\n".join(parts)


def seconds_section(report):
    """How long every stage took."""
    if not report.get("seconds"):
        return ""
    rows = [[stage, f"{seconds:.0f}"] for stage, seconds in report["seconds"].items()]
    rows.append(["total", f"{sum(report['seconds'].values()):.0f}"])
    return f"## Seconds per stage\n\n{table(['stage', 'seconds'], rows)}"


# ---------------------------------------------------------------------------------------------------- the terminal


WHAT_THEY_ARE = """\
GPT is only pretrained. SFT imitates people's answers. PPO improves on that by the scores of a
reward model, which learned from people's rankings; PPO-ptx does so while it goes on pretraining."""


def summary(report, folder, figure_files=()):
    """One page for the terminal: who wins, what it cost, a sample, where the rest is.

    folder: where report.md and report.json are; figure_files: names of the figures there. A report with "quick": True
    gets a few lines without numbers. -> str
    """
    if report.get("quick"):
        return quick_summary(folder, figure_files)
    parts = [WHAT_THEY_ARE, preference_summary(report), tax_summary(report), *sample_summaries(report)]
    return "\n\n".join([*parts, files_written(folder, figure_files)])


def quick_summary(folder, figure_files):
    return (
        f"{files_written(folder, figure_files)}\n\n"
        "This was a quick run: it shows that every step works. Models this small, trained for seconds, have\n"
        "learned nothing, and the numbers in the report mean nothing. A run without --quick takes minutes."
    )


def files_written(folder, figure_files):
    return f"The whole report: {folder}/report.md\nbeside it: {', '.join(['report.json', *figure_files])}"


def preference_summary(report):
    """Who wins: the win rates, or the scores where there are no labelers to ask."""
    models = report["models"].values()
    if not has(report, "win_rate"):
        title = f"Who does better? Answers to {report['n_prompts']} new prompts, as the reward model scores them\n"
        title += "(PPO is trained to raise that score: whether people agree, only people can say)"
        rows = [[model["name"], f"{model['score']:+.2f}", number(model.get("kl"), ".2f")] for model in models]
        head = ["", "mean score", "KL to PPO's start"]
        return f"{title}\n{table(head, rows)}"
    rows = []
    for model in models:
        row = [model["name"], interval(model["win_rate"]["held_out"]), interval(model["win_rate_greedy"]["held_out"])]
        rows.append(row + [number(model[key], ".2f") for key in ("helpful", "truthful_and_informative", "harmless")])
    if "perfect_answers" in report:
        found = report["perfect_answers"]
        rates = [interval(found[key]["held_out"]) for key in ("win_rate", "win_rate_greedy")]
        rows.append(["(a perfect answer)", *rates, *["-"] * 3])
    head = ["", "sampled, T = 1", "both greedy", "helpful", "truthful + inf.", "harmless"]
    title = f"Who is preferred? Answers to {report['n_prompts']} new prompts: % of them that people prefer to SFT's\n"
    title += "(50: as good as SFT; in brackets the 95 % interval), and what the judge says of them, from 0 to 1"
    return f"{title}\n{table(head, rows)}"


def tax_summary(report):
    """What it cost: the loss on the web, and the public tasks without examples."""
    models = with_own_weights(report["models"])
    tasks = task_names(models) if has(report, "tasks") else []
    rows = []
    for model in models.values():
        accuracy = [percent(model["tasks"]["zero_shot"][task]) for task in tasks]
        rows.append([model["name"], f"{model['corpus_loss']:.2f}", *accuracy])
    title = "What did it cost? The loss on pages like those that GPT read (lower is better)"
    if tasks:
        title += ",\nand right answers to the tasks on these pages"
    return f"{title}\n{table(['', 'corpus loss', *tasks], rows)}"


def sample_summaries(report, width=100):
    """Two prompts and their answers, or one if there are many models; one line each, cut to `width` characters."""
    models = report["models"]
    longest = max(len(name) for name in names_of(models))
    parts = []
    for sample in report.get("samples", [])[: 2 if len(models) <= 6 else 1]:
        lines = [shortened(sample["prompt"], width)]
        for key, model in models.items():
            lines.append(f"  {model['name'].ljust(longest)}  {shortened(sample[key], width - longest - 4)}")
        parts.append("\n".join(lines))
    return parts


def shortened(text, width):
    """The text on one line of at most `width` characters, without any that a terminal would obey."""
    line = "".join(c if c.isprintable() else "�" for c in " ".join(text.split())) or "(nothing)"
    return line if len(line) <= width else line[: width - 1] + "…"


# ---------------------------------------------------------------------------------------------------- figures


WIDTH = 7  # inches; at 700 pixels a point is then 1.4 pixels
GROUP = 0.8  # share of a group's room that its bars take


def figures(report, folder):
    """Write the PNG figures that the report has data for, if matplotlib is installed. -> their names"""
    drawings = {
        "win_rates.png": win_rate_figure,
        "alignment_tax.png": tax_figure,
        "over_optimisation.png": over_optimisation_figure,
    }
    written = []
    for name, draw in drawings.items():
        figure = draw(report)
        if figure is not None:
            save_figure(figure, folder / name)
            written.append(name)
    return written


def save_results(out, name, found, text, figure=None):
    """What a script found: OUT/NAME.json, the page as OUT/NAME.md and on the terminal, with matplotlib OUT/NAME.png."""
    with whole_file(out / f"{name}.json") as file:
        json.dump(found, file, indent=1)
    with whole_file(out / f"{name}.md") as file:
        file.write(text)
    written = f"{name}.md, {name}.json"
    if figure is not None:
        save_figure(figure, out / f"{name}.png")
        written += f", {name}.png"
    print(f"\n{text}\nwrote {out}/{written}")


def new_figure(height):
    """A matplotlib figure `height` inches high, or None without a matplotlib that can lay it out."""
    try:
        from matplotlib import __version_info__ as version
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if version < (3, 7):  # legends outside the axes
        return None
    return Figure(figsize=(WIDTH, height), layout="constrained")


def save_figure(figure, path):
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130)


def colours(count):
    """As many colours, all different up to 20."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"].colors
    return [palette[i % len(palette)] for i in range(count)]


def grouped_bars(axes, series, errors=None):
    """Groups of bars around 0, 1, 2, …, in each a bar per series; the more series, the thinner the bars.

    series: {label: a value per group}; errors: {label: half an interval per group}.
    """
    width = GROUP / len(series)
    for i, (label, values) in enumerate(series.items()):
        left = [group - GROUP / 2 + i * width for group in range(len(values))]
        error = errors[label] if errors else None
        colour = colours(len(series))[i]
        axes.bar(left, values, width, align="edge", yerr=error, capsize=2, label=label, color=colour, edgecolor="white")


def horizontal_lines(axes):
    """Faint lines behind the bars, to read their heights by."""
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def name_groups(axes, names):
    """Write the names under the groups, slanted where they would run into each other."""
    axes.set_xticks(range(len(names)), names)
    if len(names) * max(len(name) for name in names) > 60:
        for label in axes.get_xticklabels():
            label.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")


def win_rate_figure(report):
    """Win rates against SFT, by training and by held-out labelers. -> matplotlib's Figure or None"""
    if not has(report, "win_rate") or (figure := new_figure(4)) is None:
        return None
    axes = figure.subplots()
    means, errors = {}, {}
    for group, label in (("training", "training labelers"), ("held_out", "held-out labelers")):
        rates = [model["win_rate"][group] for model in report["models"].values()]
        means[label] = [100 * rate["mean"] for rate in rates]
        errors[label] = [100 * (rate["high"] - rate["mean"]) for rate in rates]
    grouped_bars(axes, means, errors)
    axes.axhline(50, color="grey", linewidth=1, linestyle="--")
    horizontal_lines(axes)
    name_groups(axes, names_of(report["models"]))
    axes.set(ylabel="win rate against SFT, %", ylim=(0, 100), yticks=range(0, 101, 25))
    axes.set_title(f"Who is preferred? {report['n_prompts']} new prompts, 95 % intervals")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def tax_figure(report):
    """Corpus loss and accuracy on the public tasks. -> matplotlib's Figure or None"""
    if not has(report, "tasks") or (figure := new_figure(7)) is None:
        return None
    models = with_own_weights(report["models"])
    tasks = task_names(models)
    above, below = figure.subplots(2, 1, height_ratios=(2, 3))
    losses = [model["corpus_loss"] for model in models.values()]
    above.bar(range(len(models)), losses, GROUP, color=colours(len(models)))
    name_groups(above, names_of(models))
    above.set_title("Corpus loss, nats per token (lower is better)")
    accuracy = {}
    for model in models.values():
        accuracy[model["name"]] = [100 * model["tasks"]["zero_shot"][task] for task in tasks]
    grouped_bars(below, accuracy)
    name_groups(below, tasks)
    below.set_title("Public tasks, zero-shot accuracy in % (higher is better)")
    below.set(ylim=(0, 105), yticks=range(0, 101, 25))
    for axes in (above, below):
        horizontal_lines(axes)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(models)))
    return figure


def over_optimisation_figure(report):
    """Proxy and gold score against √KL, a curve per trained policy and for best of n. -> matplotlib's Figure or None"""
    if not report.get("over_optimisation") or (figure := new_figure(7)) is None:
        return None
    curves = report["over_optimisation"]
    above, below = figure.subplots(2, 1, sharex=True)
    for (key, curve), colour in zip(curves.items(), colours(len(curves))):
        if key == "best_of_n":
            style, colour = "s--", "black"  # chosen among the answers of one policy, not trained
        else:
            style = "o-"
        distance = [point["sqrt_kl"] for point in curve]
        for axes, score in ((above, "score"), (below, "gold")):
            values = [point[score] for point in curve]
            axes.plot(distance, values, style, markersize=3, color=colour, label=curve_name(report, key))
    above.set_title("Proxy: reward-model score")
    below.set_title("Gold: the judge's Likert 1-7")
    below.set_xlabel("√KL to PPO's start, √nats per response")
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(curves)))
    return figure


# ---------------------------------------------------------------------------------------------------- the alternatives


COMPARISON_HEAD = ["", "% vs SFT", "held-out", "both greedy, held-out", "% vs PPO-ptx", "helpful", "truthful"]
COMPARISON_HEAD += ["harmless", "red team", "corpus loss", "KL", "labels", "tokens", "s"]


def comparison_table(reports):
    """The alternatives on one table: {run: {method: its row of alternatives.json}} -> markdown.

    Of several runs the means, and in brackets the win rates of each.
    """
    rows = []
    for method in next(iter(reports.values())):
        rows.append(comparison_cells([report[method] for report in reports.values() if method in report]))
    return table(COMPARISON_HEAD, rows)


def comparison_cells(runs):
    """One method's row of the table. runs: what it got in each run."""
    cells = [runs[0]["title"]]
    for opponent in ("training", "held_out", "held_out_greedy", "against_ppo_ptx"):
        cells.append(rate_over_runs([run[opponent] for run in runs]) if opponent in runs[0] else "-")
    for key in ("helpful", "truthful", "harmless", "red_team", "corpus_loss"):
        cells.append(f"{fmean(run[key] for run in runs):.2f}")
    divergences = [run["kl"] for run in runs if run["kl"] is not None]
    bound = "≤ " if runs[0].get("kl_is_upper_bound") else ""
    cells.append(f"{bound}{fmean(divergences):.2f}" if divergences else "-")
    for key in ("labels", "tokens", "seconds"):
        cells.append(f"{fmean(run['cost'].get(key, 0) for run in runs):,.0f}")
    return cells


def rate_over_runs(rates):
    """One run: its win rate and interval; several: their mean, and each in brackets. In percent."""
    if len(rates) == 1:
        return interval(rates[0])
    each = [100 * rate["mean"] for rate in rates]
    return f"{fmean(each):.1f} ({', '.join(f'{rate:.0f}' for rate in each)})"


def comparison_figure(reports):
    """Win rate against √KL, a point per method and run. -> matplotlib's Figure or None"""
    if (figure := new_figure(6)) is None:
        return None
    axes = figure.subplots()
    methods = next(iter(reports.values()))
    for i, (method, row) in enumerate(methods.items()):
        found = [report[method] for report in reports.values() if method in report]
        found = [run for run in found if run["kl"] is not None]
        distance = [math.sqrt(max(run["kl"], 0)) for run in found]
        wins = [100 * run["training"]["mean"] for run in found]
        axes.scatter(distance, wins, s=36, color=colours(len(methods))[i], marker="os^"[i % 3], label=row["title"])
    axes.axhline(50, color="grey", linewidth=0.8)
    axes.set(xlabel="√KL from PPO's start", ylabel="% of answers preferred to SFT's (training labelers)")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
