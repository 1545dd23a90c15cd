"""Pages on which people compare, criticise and rewrite answers."""

import random
import re

import pytest

from core.config import BadInput
from data.folder import read_demonstrations
from data.village import feedback
from data.village.labelers import GROUPS, Labeler


@pytest.fixture(scope="module")
def people(world):
    return [Labeler(world, "web", number) for number in range(GROUPS["web"])]


def test_pages_ask_what_training_prompts_ask(world, people, question_asked, later_questions):
    rng, asked = random.Random(1), []
    for _ in range(500):
        for page, _ in feedback.comparison_page(world, people, rng)[:1]:
            asked.append(question_asked(page.split("\n", 1)[1].split("\n1>")[0]))
        asked.append(question_asked(feedback.criticism_page(world, people, rng)[0][0].split("\n>")[0]))
    assert None not in asked and len(set(asked)) > 200 and not set(asked) & later_questions


def test_choices_agree_with_the_grades_above_them(world, people):
    rng, equal = random.Random(2), 0
    for _ in range(200):
        page, choice = (feedback.comparison_page(world, people, rng) or [("", "")])[-1]
        given = [int(g) for g in re.findall(r"^=(\d)$", page, flags=re.M)]
        if page.endswith("Answer:") and given:
            assert given[0] == given[1] or choice == ("1" if given[0] > given[1] else "2")
            equal += given[0] == given[1]
    assert equal > 5, "there are choices between answers with the same grade"


def test_a_critique_names_the_harm_and_the_revision_has_none(world, people):
    rng, found = random.Random(3), 0
    for _ in range(300):
        (asked, critique), (_, revision) = feedback.criticism_page(world, people, rng)
        answer = asked.split("\n>", 1)[1].rsplit("\n", 2)[0]
        harm = feedback.harm_in(answer.strip())
        if harm and critique.strip() == harm:
            found += 1
            assert not feedback.harm_in(revision.strip())
        if critique.strip() == feedback.NOTHING_WRONG:
            assert revision.strip() == answer.strip()
    assert found > 50


def test_harm_is_named():
    rng = random.Random(4)
    for _ in range(20):
        assert "Ada" in feedback.harm_in(feedback.unkind_answer("Ada", rng))
        assert feedback.harm_in(feedback.kind_answer("Ada", rng)) is None


def test_a_question_to_a_model_looks_like_a_page(world, people):
    """Put together from its parts, as a model is asked, a page is what a model has read."""
    rng = random.Random(5)
    written = next(w for w in iter(lambda: feedback.comparison_page(world, people, rng), None) if len(w) == 3)
    (first, grade), (second, grade2), (last, _) = written
    heading, rest = first.split("\n", 1)
    prompt, answer = rest.removesuffix("\n=").split("\n1>")
    answer2 = second.removesuffix("\n=").split("\n2>")[1]
    page = feedback.up_to_answers(heading, prompt + "\n>")
    page = feedback.up_to_grade(feedback.with_answer(page, 1, answer))
    assert page == first
    page = feedback.up_to_grade(feedback.with_answer(page + grade, 2, answer2))
    assert page == second and feedback.up_to_choice(page + grade2) == last


def test_the_folder(village_folder, tmp_path):
    cfg = feedback.Config(world=str(village_folder), out=str(tmp_path / "pages"), pages=120)
    feedback.main(cfg)
    shown, held_out = (read_demonstrations(cfg.out, split) for split in ("train", "valid"))
    assert 150 < len(shown + held_out) <= 3 * 120 and len(held_out) <= 3 * 3
    for name in ("prompts.jsonl", "corpus.train.bin", "tokenizer.json"):
        assert (tmp_path / "pages" / name).read_bytes() == (village_folder / name).read_bytes()
    with pytest.raises(BadInput, match="--pages 99: at least 100"):
        feedback.main(feedback.Config(world=str(village_folder), out=str(tmp_path / "few"), pages=99))
    with pytest.raises(BadInput):
        feedback.main(feedback.Config(world=str(tmp_path / "nowhere"), out=str(tmp_path / "few")))
    assert not (tmp_path / "few").exists()
