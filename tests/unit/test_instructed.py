"""ParallelBench's tasks in plain English: parsers, both graders, free text, and its figures."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_decode.errors import ConfigError, DllmDecodeError
from dllm_decode.evaluation import data, metrics
from dllm_decode.evaluation.curves import parallelizability, slope
from dllm_decode.evaluation.metrics import Sample
from dllm_decode.evaluation.reporting import parallel
from dllm_decode.evaluation.store import EvalRun
from dllm_decode.problems import FAMILIES, INSTRUCTED, Variant
from dllm_decode.problems.instructed import InstructedList, read_list, written
from dllm_decode.problems.sentences import (
    grammar_faults,
    is_paraphrase,
    is_sentence,
    is_summary,
    rouge_l,
    words_in,
)
from dllm_decode.tasks.eval import Eval

ENTRIES = st.lists(st.text("abc DE'", min_size=1).map(str.strip).filter(bool), min_size=1)


@given(ENTRIES)
def test_a_written_list_is_read_back_by_both_parsers(entries: list[str]) -> None:
    entries = [entry.strip("' ") or "x" for entry in entries]
    text = written(entries)
    assert read_list(text, strict=True) == read_list(f"So: {text} and done") == entries


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ('["A B", "C D"]', True, True),
        ('["A B","C D"]', True, False),
        ("[A B, C D]", True, False),
        ("['A B', 'C D']", True, False),
        ("[\N{LEFT DOUBLE QUOTATION MARK}A B\N{RIGHT DOUBLE QUOTATION MARK}, C D]", True, False),
        ('["A B", "C D"', True, False),
        ('first ["X"] then ["A B", "C D"]', True, True),
        ('["A B", "C D",]', False, False),
        ('"A B", "C D"', False, False),
        ("[]", False, False),
        ("", False, False),
    ],
)
def test_what_the_two_list_parsers_accept(text: str, loose: bool, strict: bool) -> None:
    assert (read_list(text) == ["A B", "C D"]) is loose
    assert (read_list(text, strict=True) == ["A B", "C D"]) is strict


@pytest.mark.parametrize("name", list(INSTRUCTED))
def test_every_family_accepts_its_answer_and_no_other_problems(name: str) -> None:
    family = INSTRUCTED[name]
    rng = random.Random(7)
    problems = [family.generate(rng) for _ in range(12)]
    for problem, other in zip(problems, problems[1:] + problems[:1], strict=True):
        assert family.grade(problem, problem.answer) and family.grade_strictly(
            problem, problem.answer
        )
        around = f"Here you are:\n{problem.answer}\n"
        assert family.grade(problem, around) and not family.grade_strictly(problem, around)
        assert not family.grade(problem, other.answer) and not family.grade(problem, "")
    assert len({problem.prompt for problem in problems}) > 9


@pytest.mark.parametrize(
    "form",
    ["{0} {1} {2} {3}", "| {0} | {1} | {2} | {3} |", "- {0},{1},{2},{3}", "{0},{1},{2},{3},"],
)
def test_a_latin_square_may_be_written_in_other_forms(form: str) -> None:
    family = INSTRUCTED["latin"]
    problem = family.generate(random.Random(0))
    lines = [form.format(*line.split(",")) for line in problem.answer.splitlines()]
    text = "\n".join(lines)
    assert family.grade(problem, text) and not family.grade_strictly(problem, text)
    assert not family.grade(problem, "\n".join([lines[1], *lines[1:]]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("insert-one", lambda names, spare: names),
        ("insert-one", lambda names, spare: [spare, *names, spare]),
        ("remove-one", lambda names, spare: names[2:]),
        ("remove-one", lambda names, spare: names[:0:-1]),
        ("replace-one", lambda names, spare: [spare, spare, *names[2:]]),
        ("replace-one", lambda names, spare: [*names, spare]),
        ("shuffle", lambda names, spare: names),
        ("shuffle", lambda names, spare: [names[0], *names[:0:-1], spare]),
    ],
)
def test_lists_that_break_a_rule_with_many_answers_are_wrong(name, wrong) -> None:
    family = INSTRUCTED[name]
    for seed in range(5):
        problem = family.generate(random.Random(seed))
        names, spare = list(problem.facts["names"]), problem.facts["spare"]
        assert not family.grade(problem, written(wrong(names, spare)))
    assert not family.determined and INSTRUCTED["sort"].determined


def test_questions_carry_one_worked_example_that_is_right_and_not_the_question() -> None:
    asked = data.bundled("shuffle", 4, style="instruct", variant=Variant(length=15))
    assert {q.shots for q in asked} == {asked[0].shots} and len(asked[0].shots) == 1
    ((prompt, answer),) = asked[0].shots
    assert prompt not in {q.prompt for q in asked} and len(read_list(answer) or []) == 15
    assert asked[0].family == "shuffle-15" and asked[0].max_new_tokens == 128
    assert asked[0].grade(asked[0].label) and asked[0].grade_strictly is not None
    (sentence,) = data.bundled("sentence-hard", 1, style="instruct")
    assert sentence.shots == () and sentence.free
    (plain,) = data.bundled("shuffle", 1)
    assert plain.shots == () and plain.grade_strictly is None


def test_a_list_behind_other_brackets_is_not_in_the_form_that_was_asked_for() -> None:
    family = INSTRUCTED["copy"]
    problem = family.generate(random.Random(7))
    for before in ('["x"] ', "[I think it is]\n"):
        assert not family.grade_strictly(problem, before + problem.answer)


def test_each_style_has_its_families() -> None:
    assert Eval(style="instruct").family_names() == list(INSTRUCTED)
    assert "tally" not in INSTRUCTED and set(FAMILIES) - set(INSTRUCTED)
    with pytest.raises(ConfigError, match=r"names of copy, .*sentence-hard; got 'tally'"):
        Eval(style="instruct", families=["tally"])
    with pytest.raises(ConfigError, match=r"task\.style must be one of shorthand, instruct"):
        Eval(style="chatty")
    with pytest.raises(ConfigError, match=r"task\.problems\.infill is for lists"):
        Eval(style="instruct", families=["copy"], problems=Variant(infill=True))
    longer = Variant(length=[7, 9]).of(INSTRUCTED["copy"])
    assert isinstance(longer, InstructedList) and longer.shortest == 7 and longer.canvas == 128


# Free text.


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The dog ran to the park.", True),
        ("the the the the the the", False),
        ("dog dog park", False),
        ("A dog and a dog and a dog and a dog and a dog.", False),
        ("word " * 41, False),
        ("Run.", False),
    ],
)
def test_sentences_are_graded_by_length_and_variety(text: str, right: bool) -> None:
    assert is_sentence(text) is right


def test_words_may_stand_inside_of_others_unless_the_form_matters() -> None:
    family = INSTRUCTED["sentence-easy"]
    problem = replace(family.generate(random.Random(0)), facts={"words": ("run", "Dog", "park")})
    text = "The dogs kept running in every park."
    assert family.grade(problem, text) and not family.grade_strictly(problem, text)
    assert family.grade_strictly(problem, "The Dog went for a run in a park.")
    assert not family.grade(problem, "The dog went for a walk in every park.")
    assert not family.grade_strictly(problem, "The Dog will run. It likes the park.")


def longest_common(first: list[str], second: list[str]) -> int:
    """By its definition."""
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + longest_common(first[:-1], second[:-1])
    return max(longest_common(first[:-1], second), longest_common(first, second[:-1]))


@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_rouge_counts_the_longest_common_words(first: list[str], second: list[str]) -> None:
    total = len(first) + len(second)
    expected = 2 * longest_common(first, second) / total if first and second else 0.0
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)
    assert words_in(" ".join(first)) == first


def test_summaries_and_paraphrases_come_from_a_file_of_the_user(tmp_path: Path) -> None:
    talk = "Ann: shall we meet at noon? Ben: yes, at the old bridge near the river, I bring bread."
    talk += " Ann: ok, see you"
    told = "Ann and Ben meet at noon at the old bridge."
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"dialogue": talk, "summary": told}))
    (asked,) = data.from_file(path)
    assert asked.family == "dialogue" and talk in asked.prompt and asked.free
    assert asked.grade(told) and not asked.grade(talk) and not asked.grade("It rains all day.")
    assert is_summary(told, talk, told)
    path.write_text(json.dumps({"text": "He likes the sea.", "paraphrase": "The sea pleases him."}))
    (asked,) = data.from_file(path)
    assert asked.family == "paraphrase" and asked.grade("The sea is what he likes.")
    for wrong in ("He likes the sea.", "He likes", "Trains are late on Mondays."):
        assert not is_paraphrase(wrong, "He likes the sea.")


@pytest.fixture
def server() -> Iterator[str]:
    """Finds a fault in texts with "is" twice, and a matter of style in every text."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            kinds = ["style"] + ["grammar"] * body.startswith("text=He+is+is")
            found = {"matches": [{"rule": {"issueType": kind}} for kind in kinds]}
            self.send_response(200 if self.path == "/v2/check" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *args: object) -> None:
            """Nothing is written."""

    answering = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=answering.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{answering.server_port}"
    answering.shutdown()
    thread.join()
    answering.server_close()


@pytest.mark.slow
def test_a_language_tool_server_grades_the_grammar_of_free_text_alone(server: str) -> None:
    sentence, listed = (
        data.Question("a", "sentence-easy", "?", "", 8, lambda text: "sea" in text, free=True),
        data.Question("b", "copy", "?", "", 8, lambda text: True),
    )
    sentence = replace(sentence, grade_strictly=sentence.grade)
    graded, same = data.grammatical([sentence, listed], server)
    assert same is listed
    for grade in (graded.grade, graded.grade_strictly):
        assert grade is not None
        assert grade("He is at sea.") and not grade("He is is at sea.") and not grade("He is.")
    with pytest.raises(ConfigError, match="none of the problems asks for such text"):
        data.grammatical([listed], server)
    with pytest.raises(ConfigError, match="such as http://localhost:8081, got 'localhost'"):
        grammar_faults("Yes.", "localhost")
    with pytest.raises(DllmDecodeError, match=r"task\.language_tool: .*/x does not answer as"):
        grammar_faults("Yes.", f"{server}/x")


# Figures.


def sample(problem: str, correct: bool, forwards: int, strict: bool | None = None) -> Sample:
    return Sample(
        problem=problem, family="copy", prompt="?", text="!", correct=correct, forwards=forwards,
        slots=16, steps=(0,), strict=strict,
    )  # fmt: skip


def test_a_sample_knows_both_scores_and_old_records_have_one() -> None:
    for strict, both in ((None, True), (True, True), (False, False)):
        one = sample("a", True, 2, strict)
        assert one.correct_strictly is both and Sample.from_record(one.to_record()) == one
    record = sample("a", True, 2).to_record()
    del record["strict"]
    assert Sample.from_record(record).correct_strictly
    with pytest.raises(ConfigError, match="strict"):
        Sample.from_record({**record, "strict": "yes"})
    share = metrics.summary([sample("a", True, 1, False), sample("b", True, 1)])
    assert share["accuracy"]["value"] == 1.0 and share["accuracy_strict"] == 0.5


def test_the_oracle_of_single_samples_takes_the_fastest_right_one() -> None:
    fast = [sample("a", False, 1), sample("b", True, 2), sample("c", False, 3)]
    slow = [sample("a", True, 4), sample("b", True, 5), sample("c", False, 2)]
    chosen = {s.problem: s for s in metrics.per_sample_oracle([fast, slow])}
    assert chosen == {"a": slow[0], "b": fast[1], "c": slow[2]}
    with pytest.raises(ConfigError, match="same problems"):
        metrics.per_sample_oracle([fast, slow[:2]])


def test_parallelizability_and_slope_of_points() -> None:
    assert parallelizability([(1, 100.0), (2, 100.0), (4, 50.0)]) == 500 / 250
    assert parallelizability([(1, 0.0)]) != parallelizability([(1, 0.0)])  # NaN
    assert slope([(1, 9.0), (2, 8.0), (3, 7.0)]) == pytest.approx(-1.0)
    assert slope([(2, 1.0), (2, 5.0)]) != slope([(2, 1.0), (2, 5.0)])  # NaN


def top_k(k: int, right: int, length: int = 32) -> EvalRun:
    select = {"_target_": "dllm_decode.strategies.fixed.TopK", "tokens_per_step": k}
    settings = {"strategy": {"select": {**select, "order": "confidence"}},
                "schedule": {"length": length}}  # fmt: skip
    found = tuple(sample(f"{n}", n < right, 16 // k) for n in range(10))
    return EvalRun(Path(), {"name": f"topk {k}", "families": ["copy"], "settings": settings}, found)


def test_a_rule_is_pushed_as_far_as_its_score_holds() -> None:
    (rule,) = parallel.pushed([top_k(1, 10), top_k(2, 9), top_k(4, 7), top_k(8, 1)])
    assert rule.settings == 4 and rule.most == (2.0, 2.0, 4.0)  # measured points, for fixed rules
    assert rule.parallelizability == pytest.approx((1 * 10 + 2 * 9 + 4 * 7 + 8 * 1) / 27)
    assert rule.cells()[2:] == ["2.00", "2.00", "4.00", "2.37"]
    assert parallel.pushed([top_k(1, 10), top_k(2, 9)]) == []


def test_the_order_preference_is_the_slope_over_block_lengths_at_two_tokens_per_step() -> None:
    runs = [top_k(2, 10, 2), top_k(2, 9, 4), top_k(2, 8, 6), top_k(4, 1, 8)]
    (text,) = parallel.order_preferences(runs)
    assert "2: 100.0 %, 4: 90.0 %, 6: 80.0 %: -5.00 points per column" in text
    assert parallel.order_preferences(runs[:2]) == []
