"""What a plugin returns is checked where it is returned, in the name of the very part."""

from dataclasses import dataclass

import pytest
import torch

from dllm_decode.decoding import calls
from dllm_decode.decoding.cache import CachePolicy
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.prediction import Prediction
from dllm_decode.decoding.sampling import Categorical, Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.strategy import Filter, Pipeline, StopRule, Strategy, Transform
from dllm_decode.decoding.types import Decision, Memory, Request
from dllm_decode.errors import CapabilityError, DecisionError, PluginError
from dllm_decode.strategies.adjust import Adjust
from dllm_decode.strategies.freedave import FreeDave
from dllm_decode.testing import HashDenoiser, StoringHashDenoiser

REQUEST = Request(((1, 2, 3), (4,), (5, 6)), (9, 6, 8))
PLANE = r"\(3, 4\)"


@dataclass(frozen=True)
class MyRule(Strategy):
    """Answers what a test says."""

    answer: object = None
    cut: object = None
    remember: object = None
    revocable = True

    def decide(self, view, memory):
        return self.answer(view) if self.answer else Decision(view.open)

    def horizon(self, snapshot, view, change, memory):
        return self.cut(snapshot.horizon) if self.cut else snapshot.horizon

    def begin(self, request, snapshot):
        return self.remember(request.rows) if self.remember else None


@dataclass(frozen=True)
class MyTransform(Transform):
    answer: object = None
    remember: object = None

    def adjust(self, view, memory):
        return self.answer(view) if self.answer else view.pred

    def begin(self, request, snapshot):
        return self.remember(request.rows) if self.remember else None


@dataclass(frozen=True)
class MyFilter(Filter):
    answer: object

    def keep(self, view, decision, memory):
        return self.answer(view)


@dataclass(frozen=True)
class MyStop(StopRule):
    answer: object

    def horizon(self, snapshot, view, change, memory):
        return self.answer(snapshot.horizon)


def refused(strategy, message, *, sampler=None):
    with pytest.raises(DecisionError, match=message) as caught:
        Decoder(HashDenoiser(), strategy, Blocks(4), sampler=sampler or Greedy()).decode(REQUEST)
    assert "Pipeline" not in str(caught.value)


# Wrong planes, whatever they are for; W = 4 slots, B = 3 rows.
SHAPES = {
    "None": (lambda plane: None, "None"),
    "list": (lambda plane: plane.tolist(), "a list"),
    "numpy": (lambda plane: plane.numpy(), "a ndarray"),
    "one row": (lambda plane: plane[:1], r"of shape \(1, 4\)"),
    "one column": (lambda plane: plane[:, :1], r"of shape \(3, 1\)"),
    "rows only": (lambda plane: plane[:, 0], r"of shape \(3,\)"),
    "turned": (lambda plane: plane.T, r"of shape \(4, 3\)"),
    "empty": (lambda plane: plane[:0], r"of shape \(0, 4\)"),
    "scalar": (lambda plane: plane[0, 0], r"of shape \(\)"),
    "elsewhere": (lambda plane: plane.to("meta"), "on meta"),
    "complex": (lambda plane: plane.to(torch.complex64), "of type torch.complex64"),
    "sparse": (lambda plane: plane.to_sparse(), "torch.sparse_coo"),
}
PLANES = {
    "commit": lambda view: view.open,
    "remask": lambda view: view.settled,
    "tokens": lambda view: view.pred.token,
    "scores": lambda view: view.pred.confidence,
    "confidence": lambda view: view.pred.confidence,
}
TYPES = {
    "commit": ("int64", "float32", "uint8", "int8"),
    "remask": ("int64", "float32", "uint8"),
    "tokens": ("float32", "bool", "uint8", "int16", "int8"),
    "scores": ("bool", "uint8", "float8_e4m3fn"),
    "confidence": ("bool", "int64", "float8_e4m3fn"),
}


def with_plane(name, make):
    def answer(view):
        planes = {"commit": view.open, name: make(PLANES[name](view))}
        return Decision(**planes)

    return answer


def everywhere(part):
    """A selection bare, in a pipeline, and in a pipeline inside one; with its place."""
    return (
        (part, r"strategy"),
        (Pipeline(part), r"strategy\.select"),
        (Pipeline(Pipeline(part)), r"strategy\.select\.select"),
    )


WRONG = [
    (name, make, message)
    for name in PLANES
    for kind, (make, message) in SHAPES.items()
    if (name, kind) == ("commit", "None") or kind != "None"
] + [
    (name, lambda plane, dtype=dtype: plane.to(getattr(torch, dtype)), f"of type torch.{dtype}")
    for name, dtypes in TYPES.items()
    for dtype in dtypes
]


@pytest.mark.parametrize(("name", "make", "message"), WRONG)
def test_a_wrong_plane_of_a_decision_is_refused_with_the_place_of_the_strategy(name, make, message):
    for strategy, place in everywhere(MyRule(with_plane(name, make))):
        refused(strategy, rf"^{place} \(MyRule\) returned {name},? .*{message}.*\(step 0\)$")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda view: None, "decide returned None; it must return a Decision"),
        (lambda view: view.open, f"decide returned a tensor of shape {PLANE}; it must return"),
        (lambda view: (view.open,), "decide returned a tuple"),
        (lambda view: Decision(view.open, notes=None), "returned notes, None; they must be a map"),
        (lambda view: Decision(view.open, notes={"x": "y"}), "the note 'x', a str; it must be"),
        (
            lambda view: Decision(view.open, notes={"x": torch.zeros(2)}),
            r"the note 'x', a tensor of shape \(2,\); it must be a tensor with the 3 rows",
        ),
    ],
)
def test_what_is_no_decision_is_refused_with_the_place_of_the_strategy(answer, message):
    for strategy, place in everywhere(MyRule(answer)):
        refused(strategy, rf"^{place} \(MyRule\):? .*{message}")


class Careless(Pipeline):
    """A pipeline that says something else than its parts."""

    def decide(self, view, memory):
        return Decision(super().decide(view, memory).commit[:, :2])


def test_what_a_pipeline_makes_of_checked_answers_is_checked_again_only_where_it_is_rewritten(
    monkeypatch,
):
    checks = []
    check = calls.check_decision
    monkeypatch.setattr(calls, "check_decision", lambda *given: checks.append(1) or check(*given))
    Decoder(HashDenoiser(), Pipeline(MyRule()), Blocks(4)).decode(Request(((1,),), 4))
    assert checks == [1]
    refused(Careless(MyRule()), rf"^strategy \(Careless\) returned commit, .*{PLANE}")


HORIZONS = {
    "None": (lambda horizon: None, "horizon, None"),
    "number": (lambda horizon: 5, "horizon, a int"),
    "list": (lambda horizon: horizon.tolist(), "horizon, a list"),
    "one for all rows": (lambda horizon: horizon[:1], r"horizon, a tensor of shape \(1,\)"),
    "scalar": (lambda horizon: horizon.min(), r"horizon, a tensor of shape \(\)"),
    "column": (lambda horizon: horizon[:, None], r"horizon, a tensor of shape \(3, 1\)"),
    "too many rows": (
        lambda horizon: torch.cat([horizon] * 2),
        r"horizon, a tensor of shape \(6,\)",
    ),
    "fractions": (lambda horizon: horizon - 0.5, "horizon, a tensor of type torch.float32"),
    "NaN": (lambda horizon: horizon * float("nan"), "horizon, a tensor of type torch.float32"),
    "bool": (lambda horizon: horizon > 0, "horizon, a tensor of type torch.bool"),
    "elsewhere": (lambda horizon: horizon.to("meta"), "horizon, a torch.strided tensor on meta"),
}


@pytest.mark.parametrize("kind", HORIZONS)
def test_a_wrong_horizon_is_refused_with_the_place_of_who_gave_it(kind):
    make, message = HORIZONS[kind]
    for strategy, place in everywhere(MyRule(cut=make)):
        refused(strategy, rf"^{place} \(MyRule\) returned {message}.*\(step 0\)")
    stopping = Pipeline(MyRule(), stop={"mine": MyStop(make)})
    refused(stopping, rf"^strategy\.stop\.mine \(MyStop\) returned {message}")


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "None"] + ["int64", "float32"])
def test_a_wrong_veto_is_refused_with_the_place_of_the_filter(kind):
    make, message = SHAPES.get(
        kind, (lambda plane: plane.to(getattr(torch, kind)), f"of type torch.{kind}")
    )
    pipeline = Pipeline(MyRule(), filters={"mine": MyFilter(lambda view: make(view.open))})
    refused(pipeline, rf"^strategy\.filters\.mine \(MyFilter\) returned keep,? .*{message}")


def ids_of(view, token):
    return torch.full((*view.open.shape, 1), token)


def ones(view):
    return torch.ones(*view.open.shape, 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda view: None, "adjust returned None; it must return a Prediction"),
        (lambda view: view.pred.logits, "adjust returned a tensor of shape"),
        (
            lambda view: Prediction.of(view.pred.logits[:, :1]),
            r"adjust returned a prediction of shape \(3, 1, 12\); it must have .*\(3, 4, 12\)",
        ),
        (lambda view: Prediction.of(view.pred.logits[..., :5]), r"of shape \(3, 4, 5\)"),
        (lambda view: Prediction.of(view.pred.logits[0]), r"logits must have shape \(B, W, V\)"),
        (lambda view: Prediction.of(view.open), r"logits must have shape"),
        (lambda view: Prediction.of(view.pred.logits.long()), "logits must be floating-point"),
        (lambda view: Prediction.of(None), "logits must be a tensor .* got NoneType"),
        (lambda view: view.pred.suppress([1]), r"suppress needs token ids of shape \(M,\)"),
        (lambda view: view.pred.suppress(torch.tensor([12])), r"must lie in \[0, 11\], got 12"),
        (lambda view: view.pred.topk(0), "topk needs a whole number >= 1, got 0"),
        (
            lambda view: view.pred.prob_of(ids_of(view, 12)),
            r"ids must lie in \[-1, 11\], got 12; -1 is an empty slot",
        ),
        (lambda view: view.pred.logit_of(ids_of(view, 99)), r"ids must lie in \[-1, 11\], got 99"),
        (lambda view: view.pred.prob_of(view.index), r"ids must have shape \(3, 4, ...\)"),
        (
            lambda view: view.pred.with_logit_bias(ids_of(view, 500), ones(view)),
            r"ids must lie in \[-1, 11\], got 500",
        ),
        (
            lambda view: view.pred.with_logit_bias(ids_of(view, 1.0), ones(view)),
            "ids must be int64 or int32, got torch.float32",
        ),
        (
            lambda view: view.pred.with_logit_bias(ids_of(view, 1), ones(view)[:1]),
            r"delta must have shape \(3, 4, 1, ...\), got \(1, 4, 1\)",
        ),
        (
            lambda view: view.pred.with_logit_bias(ids_of(view, 1), ids_of(view, 1)),
            "delta must be floating-point numbers, got torch.int64",
        ),
    ],
)
def test_a_wrong_prediction_is_refused_with_the_place_of_the_transform(answer, message):
    pipeline = Pipeline(MyRule(), {"mine": MyTransform(answer)})
    refused(pipeline, rf"^strategy\.transforms\.mine \(MyTransform\): .*{message}.*\(step 0\)")


@dataclass
class Remembers(Memory):
    value: object


@dataclass
class Nested(Memory):
    inner: Memory


class NoDataclass(Memory):
    def __init__(self, rows):
        self.counts = torch.zeros(rows)


MEMORIES = {
    "too few rows": (lambda rows: Remembers(torch.zeros(1)), r"value has shape \(1,\); the 3 rows"),
    "scalar": (lambda rows: Remembers(torch.zeros(())), r"value has shape \(\)"),
    "in a memory": (lambda rows: Nested(Remembers(torch.zeros(9))), r"inner: value has shape"),
    "in a dict": (lambda rows: Remembers({"x": torch.zeros(2)}), r"value\['x'\] has shape"),
    "list": (lambda rows: Remembers([torch.zeros(rows)]), "value is a list of tensors"),
    "dict": (lambda rows: {"x": torch.zeros(rows)}, "begin returned a dict; it must return"),
    "text": (lambda rows: "memory", "begin returned a str"),
    "no dataclass": (NoDataclass, "class NoDataclass must be a dataclass.*stay in counts"),
}


@pytest.mark.parametrize("kind", MEMORIES)
def test_a_memory_whose_rows_cannot_follow_the_batch_is_refused(kind):
    make, message = MEMORIES[kind]
    refused(MyRule(remember=make), rf"^strategy \(MyRule\): .*{message}")
    refused(Pipeline(MyRule(remember=make)), rf"^strategy\.select \(MyRule\): .*{message}")
    transforms = {"mine": MyTransform(remember=make)}
    refused(
        Pipeline(MyRule(), transforms), rf"^strategy\.transforms\.mine \(MyTransform\): .*{message}"
    )


def test_a_memory_may_hold_anything_that_has_no_rows():
    memory = Remembers({"a": [1, 2], "b": "text", "c": torch.zeros(3, 2), "d": None})
    Decoder(HashDenoiser(), MyRule(remember=lambda rows: memory), Blocks(4)).decode(REQUEST)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_smaller_integers_do_as_tokens_and_horizons(dtype):
    rule = MyRule(
        lambda view: Decision(view.open, tokens=view.pred.token.to(dtype)),
        lambda horizon: horizon.to(dtype),
    )
    plain = Decoder(HashDenoiser(), MyRule(), Blocks(4)).decode(REQUEST)
    for strategy, _ in everywhere(rule):
        assert Decoder(HashDenoiser(), strategy, Blocks(4)).decode(REQUEST) == plain


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda view: None, "got None"),
        (lambda view: view.tokens.tolist(), r"got \[\["),
        (lambda view: view.tokens[:1], r"got torch.int64 of shape \(1, 4\) on cpu"),
        (lambda view: view.tokens.float(), "got torch.float32 of shape"),
        (lambda view: view.open, "got torch.bool of shape"),
        (lambda view: view.tokens.to("meta"), "on meta"),
        (lambda view: view.tokens * 0 + 12, r"ids must lie in \[0, 11\], got 12"),
        (lambda view: view.tokens * 0 - 1, r"ids must lie in \[0, 11\], got -1"),
    ],
)
def test_wrong_tokens_for_a_probe_are_refused_with_the_place_of_who_probes(tokens, message):
    def answer(view):
        view.probe(tokens(view))
        return Decision(view.open)

    for strategy, place in everywhere(MyRule(answer)):
        refused(strategy, rf"^{place} \(MyRule\): .*{message}.*\(step 0\)$")


@pytest.mark.parametrize("progress", [None, "never", 0, 5])
def test_a_progress_rule_that_is_none_is_refused_when_the_parts_are_composed(progress):
    kind = type("Endless", (MyRule,), {"progress": progress})
    with pytest.raises(CapabilityError, match=r"^strategy \(Endless\): progress must be EveryStep"):
        Decoder(HashDenoiser(), kind(), Blocks(4))


# Faults of values, which the host learns of with the next sync.


def removes(view, ids):
    return view.pred.suppress(torch.tensor(ids))


@dataclass(frozen=True)
class Draws(Sampler):
    token: int

    def predict(self, logits, banned, noise):
        return Prediction.of(logits, banned, lambda p: torch.full(p.shape[:2], self.token))


NAN = float("nan")
KEEPS = {"keeps": MyTransform()}
VALUES = {
    "score of the selection": (
        {},
        lambda view: Decision(view.open, scores=view.pred.confidence * NAN),
        r"strategy\.select \(MyRule\) gave a score that is NaN",
    ),
    "token of the selection": (
        {},
        lambda view: Decision(view.open, tokens=torch.full_like(view.tokens, 12)),
        r"strategy\.select \(MyRule\) committed token 12, which lies outside the vocabulary of 12",
    ),
    "mask of the selection": (
        {},
        lambda view: Decision(view.open, tokens=torch.full_like(view.tokens, 11)),
        r"strategy\.select \(MyRule\) committed token 11, a mask or control token",
    ),
    "logits of a transform": (
        {"mine": MyTransform(lambda view: Prediction.of(view.pred.logits * NAN))},
        None,
        r"strategy\.transforms\.mine \(MyTransform\) gave a score that is NaN",
    ),
    "bias of a transform": (
        {
            "mine": MyTransform(
                lambda view: view.pred.with_logit_bias(ids_of(view, 1), ones(view) * NAN)
            )
        },
        None,
        r"strategy\.transforms\.mine \(MyTransform\) gave a score that is NaN",
    ),
    "infinite bias": (
        {
            "mine": MyTransform(
                lambda view: view.pred.with_logit_bias(ids_of(view, 1), ones(view) * float("inf"))
            )
        },
        None,
        r"strategy\.transforms\.mine \(MyTransform\) gave a score that is NaN",
    ),
    "everything removed": (
        {"mine": MyTransform(lambda view: removes(view, list(range(12))))},
        None,
        r"strategy\.transforms\.mine \(MyTransform\) committed token -1, .*every token has been "
        "removed",
    ),
    "the mask unbanned": (
        {
            "mine": MyTransform(
                lambda view: Prediction.of(view.pred.logits.index_fill(-1, torch.tensor([11]), 9e9))
            )
        },
        None,
        r"strategy\.transforms\.mine \(MyTransform\) committed token 11, a mask or control token",
    ),
}


@pytest.mark.parametrize("fault", VALUES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_wrong_value_is_laid_on_the_part_it_comes_from(fault, inside):
    transforms, answer, message = VALUES[fault]
    where = r": row 0, generated column 0, step 0$"
    pipeline = Pipeline(MyRule(answer), {**KEEPS, **transforms, "also keeps": MyTransform()})
    if inside:
        pipeline = Pipeline(pipeline, KEEPS)
        message = message.replace(r"strategy\.", r"strategy\.select\.")
    refused(pipeline, f"^{message}.*{where}")


@pytest.mark.parametrize("token", [12, -1, 11])
def test_a_wrong_token_of_the_sampler_is_laid_on_the_sampler(token):
    for strategy in (MyRule(), Pipeline(MyRule(), KEEPS)):
        refused(
            strategy,
            rf"^sampler \(Draws\) committed token {token}, .*step 0$",
            sampler=Draws(token),
        )


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda pred: None, "got None"),
        (lambda pred: pred.top_token.float(), "got .* torch.float32"),
        (lambda pred: pred.top_token[:, :1], r"got \(3, 1\) torch.int64"),
        (lambda pred: pred.top_token.bool(), "torch.bool"),
        (lambda pred: pred.top_token.tolist(), r"got \[\["),
    ],
)
def test_a_draw_that_gives_no_token_ids_is_the_samplers_fault_whoever_reads_it_first(draw, message):
    class Mine(Sampler):
        def predict(self, logits, banned, noise):
            return Prediction.of(logits, banned, draw)

    class MineToo(Categorical):
        def predict(self, logits, banned, noise):
            return Prediction.of(logits, banned, draw)

    for sampler in (Mine(), MineToo()):
        for strategy, _ in everywhere(MyRule()):
            with pytest.raises(PluginError, match=f"^sampler.* the draw must return .*{message}"):
                Decoder(HashDenoiser(), strategy, Blocks(4), sampler=sampler).decode(REQUEST)


# What a plugin's own code raises stays what it is, and says whose it was.


@dataclass(frozen=True)
class Sure(MyRule):
    revocable = False


def broken(*given, **more):
    raise ZeroDivisionError("a bug of mine")


class MySchedule(Blocks):
    window = broken


class MyCache(CachePolicy):
    plan = broken


class MySampler(Greedy):
    predict = broken


WHOSE = {
    "strategy.select (MyRule)": {"strategy": Pipeline(MyRule(broken))},
    "strategy (MyRule)": {"strategy": MyRule(broken)},
    "strategy.transforms.mine (MyTransform)": {
        "strategy": Pipeline(MyRule(), {"mine": MyTransform(broken)})
    },
    "strategy.filters.mine (MyFilter)": {
        "strategy": Pipeline(MyRule(), filters={"mine": MyFilter(broken)})
    },
    "strategy.stop.mine (MyStop)": {"strategy": Pipeline(MyRule(), stop={"mine": MyStop(broken)})},
    "strategy.rule (Sure)": {"strategy": FreeDave(Sure(broken))},
    "schedule (MySchedule)": {"schedule": MySchedule(4)},
    "cache (MyCache)": {"cache": MyCache()},
    "sampler (MySampler)": {"sampler": MySampler()},
}


@pytest.mark.parametrize("who", WHOSE)
def test_an_exception_of_a_plugin_has_a_note_that_says_whose(who):
    parts = {"strategy": MyRule(), "schedule": Blocks(4), **WHOSE[who]}
    with pytest.raises(ZeroDivisionError, match="a bug of mine") as caught:
        Decoder(StoringHashDenoiser(), **parts).decode(REQUEST)
    assert caught.value.__notes__ == [f"raised by {who}"]


# A strategy that carries out steps of another one refuses what the loop would refuse of it alone.

INSIDE = {
    "closed": (lambda view: Decision(~view.open), "committed a position that is not open"),
    "token": (
        lambda view: Decision(view.open, tokens=torch.full_like(view.tokens, 99)),
        "committed token 99, which lies outside the vocabulary",
    ),
    "remask": (
        lambda view: Decision(view.open, remask=view.open),
        "re-masked a position, but does not declare",
    ),
    "score": (
        lambda view: Decision(view.open, scores=view.pred.confidence * NAN),
        "gave a score that is NaN",
    ),
    "confidence": (
        lambda view: Decision(
            view.open, scores=view.pred.certainty, confidence=view.pred.confidence * NAN
        ),
        "recorded a confidence that is not finite",
    ),
    "infinite": (
        lambda view: Decision(view.open, confidence=view.pred.confidence + float("inf")),
        "recorded a confidence that is not finite",
    ),
}


@pytest.mark.parametrize("fault", INSIDE)
@pytest.mark.parametrize("sync_every", [1, 3])
def test_a_rule_inside_another_is_refused_as_it_is_alone(fault, sync_every):
    answer, message = INSIDE[fault]
    rule = Sure(answer)
    drafting = Adjust(rule, 1, lambda own, states, canvas, live: states)
    for strategy, who in (
        (rule, r"strategy \(Sure\)"),
        (FreeDave(rule), r"strategy\.rule \(Sure\)"),
        (drafting, r"strategy\.rule \(Sure\)"),
    ):
        with pytest.raises(DecisionError, match=f"^{who} {message}"):
            Decoder(HashDenoiser(), strategy, Blocks(4), sync_every=sync_every).decode(REQUEST)


def test_a_rule_inside_another_keeps_its_horizon():
    rule = Sure(cut=lambda horizon: horizon.clamp(max=5))
    alone = Decoder(HashDenoiser(), rule, Blocks(4)).decode(REQUEST)
    inside = Decoder(HashDenoiser(), FreeDave(rule), Blocks(4)).decode(REQUEST)
    assert inside.sequences == alone.sequences
    assert max(map(len, alone.sequences)) < max(REQUEST.lengths)


# Rows that join have a memory of the kind that those before them have.


@dataclass
class Notes(Memory):
    entries: dict


@dataclass
class OtherNotes(Memory):
    entries: dict


JOINING = {
    "none": (lambda: Notes({}), lambda: None, "the memory is a Notes .* and None for rows"),
    "class": (lambda: Notes({}), lambda: OtherNotes({}), "and a OtherNotes for rows that join"),
    "entry": (
        lambda: Notes({"a": Notes({})}),
        lambda: Notes({"a": None}),
        r"the memory\.entries\['a'\] is a Notes .* and None for rows that join",
    ),
    "key": (
        lambda: Notes({}),
        lambda: Notes({"a": torch.zeros(1)}),
        r"the memory\.entries\['a'\] is None .* and a tensor of shape \(1,\) for rows",
    ),
}


@pytest.mark.parametrize("kinds", JOINING)
def test_rows_that_join_have_a_memory_of_the_same_kind(kinds):
    before, joining, message = JOINING[kinds]
    made = iter([before, joining])
    run = Decoder(HashDenoiser(), MyRule(remember=lambda rows: next(made)())).begin(REQUEST)
    run.admit([0])
    with pytest.raises(DecisionError, match=rf"^strategy \(MyRule\): .*{message}"):
        run.admit([1])
    assert run.live == (0,) and run.canvas.tokens.shape[0] == 1
