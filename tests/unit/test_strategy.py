import ast
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from views import view_of

import dllm_decode
from dllm_decode.decoding.strategy import (
    Budget,
    EveryStep,
    Filter,
    NeverStop,
    Pipeline,
    StopRule,
    Strategy,
    Transform,
    complete,
)
from dllm_decode.decoding.types import Decision, Memory
from dllm_decode.errors import ConfigError


@dataclass(frozen=True)
class All(Strategy):
    def decide(self, view, memory):
        return Decision(view.open)


@dataclass(frozen=True)
class Revoking(All):
    revocable = True

    @property
    def progress(self):
        return Budget(5)

    def horizon(self, snapshot, view, change, memory):
        return snapshot.horizon - 1


@dataclass(frozen=True)
class Push(Transform):
    token: int
    amount: float

    def adjust(self, view, memory):
        memory.count += 1
        ids = torch.full((*view.open.shape, 1), self.token)
        return view.pred.with_logit_bias(ids, torch.full(ids.shape, self.amount))

    def begin(self, request, snapshot):
        return Counter()


@dataclass
class Counter(Memory):
    count: int = 0


@dataclass(frozen=True)
class Veto(Filter):
    slot: int

    def keep(self, view, decision, memory):
        assert decision.tokens is not None, "filters see a complete decision"
        return torch.arange(view.open.shape[1]).expand(view.open.shape) != self.slot


@dataclass(frozen=True)
class CutTo(StopRule):
    column: int

    def horizon(self, snapshot, view, change, memory):
        return torch.full_like(snapshot.horizon, self.column)


def logits():
    return torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pipeline(NeverStop()), r"strategy\.select must be a Strategy, got NeverStop"),
        (
            lambda: Pipeline(All(), transforms=[Push(0, 1.0)]),
            r"strategy\.transforms is a mapping from names to parts, got a list; write "
            r"\+strategy\.transforms\.<name>=",
        ),
        (
            lambda: Pipeline(All(), stop={"x": All()}),
            r"strategy\.stop\.x must be a StopRule, got All",
        ),
        (
            lambda: Pipeline(All(), filters={"y": NeverStop()}),
            r"strategy\.filters\.y must be a Filter, got NeverStop",
        ),
        (lambda: Budget(0), "steps must be a whole number >= 1, got 0"),
    ],
)
def test_parts_of_the_wrong_role_are_refused_with_their_key(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_parts_are_listed_with_their_keys_in_the_order_they_act():
    pipeline = Pipeline(
        All(), {"a": Push(0, 1.0), "b": Push(1, 1.0)}, {"veto": Veto(0)}, {"never": NeverStop()}
    )
    keys = [key for key, _ in pipeline.parts()]
    assert keys == ["transforms.a", "transforms.b", "select", "filters.veto", "stop.never"]
    assert list(All().parts()) == [("", All())]
    outer = Pipeline(pipeline, {"c": Push(2, 1.0)})
    assert [key for key, _ in outer.parts()] == ["transforms.c", *(f"select.{key}" for key in keys)]


REPLACEMENTS = {
    "transforms.c": Push(7, 7.0),
    "select.transforms.push": Push(8, 8.0),
    "select.select": Revoking(),
    "filters.veto": Veto(7),
    "stop.never": CutTo(7),
}


@pytest.mark.parametrize("place", REPLACEMENTS)
def test_every_part_may_be_replaced_at_its_own_place(place):
    inner = Pipeline(All(), {"push": Push(0, 1.0)})
    whole = Pipeline(inner, {"c": Push(2, 1.0)}, {"veto": Veto(0)}, {"never": NeverStop()})
    before = dict(whole.parts())
    assert before.keys() == REPLACEMENTS.keys()
    assert whole.with_parts(lambda key, part: part) == whole
    other = whole.with_parts(lambda key, part: REPLACEMENTS[key] if key == place else part)
    assert dict(other.parts()) == {**before, place: REPLACEMENTS[place]}
    assert dict(whole.parts()) == before


def test_a_strategy_that_is_not_composed_is_replaced_as_a_whole():
    assert All().with_parts(lambda key, part: {"": Revoking()}[key]) == Revoking()


def test_transforms_act_in_order_then_the_selection_then_the_filters():
    pipeline = Pipeline(All(), {"a": Push(0, 5.0), "b": Push(1, 6.0)}, {"veto": Veto(1)})
    view = view_of(logits())
    memory = pipeline.begin(None, view.snapshot)
    decision = pipeline.decide(view, memory)
    assert decision.tokens.tolist() == [[0, 1, 1]]
    assert decision.commit.tolist() == [[True, False, True]]
    assert [memory.parts[f"transforms.{name}"].count for name in "ab"] == [1, 1]


def test_the_nearest_horizon_of_selection_and_stop_rules_counts():
    view = view_of(logits())
    for stop, expected in (({}, 2), ({"cut": CutTo(1)}, 1), ({"never": NeverStop()}, 2)):
        pipeline = Pipeline(Revoking(), stop=stop)
        memory = pipeline.begin(None, view.snapshot)
        assert pipeline.horizon(view.snapshot, view, None, memory).tolist() == [expected]
    assert (
        Pipeline(All()).horizon(view.snapshot, view, None, Pipeline(All()).begin(None, None)) == 3
    )


def test_progress_and_revocability_are_those_of_the_selection():
    assert Pipeline(All()).progress == EveryStep() and not Pipeline(All()).revocable
    assert Pipeline(Revoking()).progress == Budget(5) and Pipeline(Revoking()).revocable
    assert Revoking().revocable and not All().revocable


def test_a_decision_is_completed_from_the_prediction():
    view = view_of(logits())
    full = complete(Decision(view.open), view)
    assert full.tokens.tolist() == [[0, 1, 2]]
    assert torch.equal(full.confidence, view.pred.confidence)
    assert torch.equal(full.scores, view.pred.certainty)


def test_tokens_of_the_strategys_own_get_their_own_confidence():
    view = view_of(logits())
    own = complete(Decision(view.open, tokens=torch.tensor([[1, 1, -1]])), view)
    assert torch.equal(
        own.confidence[:, :2], view.pred.prob_of(torch.ones(1, 3, 1).long())[:, :2, 0]
    )
    scored = complete(Decision(view.open, scores=torch.zeros(1, 3)), view)
    assert not scored.scores.any() and scored.confidence.all()


def test_the_defaults_of_a_part_need_nothing():
    part = All()
    assert not part.sees_canvas and not part.needs_reference and not part.needs_window
    assert part.window_width is None and part.model_fingerprint is None
    assert part.begin(None, None) is None
    snapshot = view_of(logits()).snapshot
    assert torch.equal(part.horizon(snapshot, None, None, None), snapshot.horizon)
    assert replace(part) == part


def imports(path):
    """Modules that a file imports, at any level."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.slow
def test_the_core_never_imports_strategies():
    root = Path(dllm_decode.__file__).parent
    outside = (root / "strategies", root / "conf")
    files = [
        path
        for path in root.rglob("*.py")
        if not any(path.is_relative_to(folder) for folder in outside)
    ]
    assert root / "decoding" / "loop.py" in files
    guilty = [
        str(path.relative_to(root))
        for path in files
        for module in imports(path)
        if module.split(".")[:2] == ["dllm_decode", "strategies"] or module == "strategies"
    ]
    assert not guilty
