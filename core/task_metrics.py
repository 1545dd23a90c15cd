"""How right an answer is: the metrics of the public benchmarks that the paper reports (§4.2, App. D, E)."""

import importlib
import math
import re
import string
from collections import Counter

from core.config import BadInput

# ---------------------------------------------------------------------------------------------------- answers as text


def squad_tokens(text):
    """Words of an answer as SQuAD's official script compares them: lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(answer, reference):
    """Harmonic mean of precision and recall over the words of two texts, each word as often as it occurs. -> 0 … 1"""
    words, right = squad_tokens(answer), squad_tokens(reference)
    if not words or not right:
        return float(words == right)
    shared = sum((Counter(words) & Counter(right)).values())
    return 2 * shared / (len(words) + len(right))


def squad_f1(answer, references):
    """SQuAD's F1: against the reference that fits best."""
    return max(token_f1(answer, reference) for reference in references)


def quac_f1(answer, references):
    """QuAC's F1. references: one text per person.

    People are measured against all others but themselves, so an answer is, too: each person is left out once, and the
    best F1 with those who remain is averaged.
    """
    f1 = [token_f1(answer, reference) for reference in references]
    return sum(max(f1[:i] + f1[i + 1 :], default=f1[i]) for i in range(len(f1))) / len(f1)


def number_in(word):
    """The number that a word spells, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def drop_words(text):
    """The set of words of an answer as DROP's official script compares them: numbers by their value, 7,761 = 7761.0."""
    words = set()
    for word in re.split(r"[ -]", text.lower()):
        if number_in(word) is None:
            word = "".join(c for c in word if c not in string.punctuation)
        if number_in(word) is not None:
            word = str(number_in(word))
        words.update(re.sub(r"\b(a|an|the)\b", " ", word).split())
    return words


def drop_span_f1(answer, span):
    """F1 of two texts over sets of words; 0 if the reference has numbers and the answer has none of them."""
    words, right = drop_words(answer), drop_words(span)
    numbers = {word for word in right if number_in(word) is not None}
    if numbers and not numbers & words:
        return 0.0
    if not words or not right:
        return float(words == right)
    shared = len(words & right)
    return 2 * shared / (len(words) + len(right))


def drop_f1(answer, references):
    """DROP's F1 of one written answer. references: lists of spans, each list one annotator's answer.

    An annotator's spans are all asked for, and one text can match only one of them: that F1 is divided by their number.
    (The official script also rounds each F1 to two decimals.)
    """
    return max(max(drop_span_f1(answer, span) for span in spans) / len(spans) for spans in references)


def names_the_target(answer, target):
    """WSC as the paper scores it: does the written noun contain the target, or the target contain it?"""
    answer, target = (" ".join(squad_tokens(text)) for text in (answer, target))
    return answer != "" and (answer in target or target in answer)


def bleu(answers, references):
    """Corpus BLEU, 0 … 100, by sacrebleu. answers, references: one text each per sentence."""
    return optional("sacrebleu", "BLEU").corpus_bleu(answers, [references]).score


def rouge_l(answer, reference):
    """ROUGE-L's F measure, 0 … 1, by rouge-score, with its stemmer."""
    optional("rouge_score", "ROUGE-L")
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True).score(reference, answer)["rougeL"].fmeasure


def optional(module, metric):
    """Import a package that only one metric needs, or say how to install it (BadInput)."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.replace("_", "-")
        raise BadInput(f"{metric} needs the package {package}, which is not there: pip install {package}") from None


# ---------------------------------------------------------------------------------------------------- choices


def most_likely(logprobs):
    """Index of the choice of highest mean log-prob per token. logprobs: [(sum, tokens)]"""
    means = [total / count for total, count in logprobs]
    return means.index(max(means))


def shares(logprobs):
    """Probabilities of the choices, made to add up to 1. logprobs: [(sum, tokens)]"""
    highest = max(total for total, _ in logprobs)
    weights = [math.exp(total - highest) for total, _ in logprobs]
    return [weight / sum(weights) for weight in weights]


def entropy_bits(logprobs):
    """-Σ p log₂ p over the choices: 1 for two equally likely ones, 0 when one is certain. logprobs: [(sum, tokens)]"""
    return -sum(p * math.log2(p) for p in shares(logprobs) if p > 0)


def mc1(logprobs, best, others):
    """TruthfulQA's MC1: is the best answer more likely than every false one? logprobs: [(sum, tokens)]; indices."""
    return float(all(logprobs[best][0] > logprobs[i][0] for i in others))


def mc2(logprobs, true, false):
    """TruthfulQA's MC2: the share of probability that true answers have among true and false ones. Lists of indices."""
    chosen = shares([logprobs[i] for i in (*true, *false)])
    return sum(chosen[: len(true)])
