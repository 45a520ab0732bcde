"""Whole decodes of published reference code, reproduced forward by forward.

Every run must commit the same tokens at the same positions in the same forwards, see the same
canvases and take the same number of forwards; probabilities and scores agree within the stated
tolerance. What is not reproduced stands in `NOT_HERE`, and what is reproduced only in part in
the `Recipe` of the case, each with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache as remember
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import Replayed, ReplayedSampler, by_step, marks_of
from safetensors.torch import load_file
from torch import Tensor

from dllm_decode.decoding.cache import CachePolicy, DualCache, NoCache, PrefixCache
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.outcome import Result
from dllm_decode.decoding.sampling import Categorical, Greedy, Sampler
from dllm_decode.decoding.schedule import Blocks, Schedule, WholeCanvas
from dllm_decode.decoding.strategy import Pipeline, StopRule, Strategy
from dllm_decode.decoding.types import Change, Decision, Request, Snapshot, StepView
from dllm_decode.models import load_model
from dllm_decode.strategies.ccd import ReleasedCCD
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.dream import DreamOrigin, DreamSchedule
from dllm_decode.strategies.dream_threshold import ScheduledThreshold
from dllm_decode.strategies.entropy import EntropyThreshold
from dllm_decode.strategies.entropy_bound import EntropyBound
from dllm_decode.strategies.eot import PredictedEot
from dllm_decode.strategies.factor import Factor
from dllm_decode.strategies.fixed import FixedSchedule
from dllm_decode.strategies.hierarchical import Hierarchical
from dllm_decode.strategies.learn2pd import Learn2PD
from dllm_decode.strategies.suppress import BanTokens, DeferTokens
from dllm_decode.strategies.threshold import ConfidenceThreshold

FOLDER = Path(__file__).parent
DECODE = FOLDER / "decode"

NOT_HERE = {
    "dinfer_credit_stale_reuse": "a defect that must not be matched; has a test of its own below",
    "fastdllm_earlystop_fill": "overwrites committed tokens; has a test of its own below",
    "fastdllm_dream_threshold_dual": "commits the first position of every block from a logit that "
    "the shifted window does not have",
    "fastdllm_dream_threshold_prefix": "as fastdllm_dream_threshold_dual",
    "fastdllm_fixed_*": "test_decode_cached.py",
    "fastdllm_threshold_dual_*": "test_decode_cached.py",
    "fastdllm_threshold_prefix_*": "test_decode_cached.py",
    "dparallel_entropy_dual_*": "test_decode_cached.py",
    "dparallel_entropy_prefix_*": "test_decode_cached.py",
    "factor_copied_dual_*": "test_decode_cached.py",
}


@dataclass(frozen=True)
class Run:
    """One stored run: parameters of the case, lengths, tensors without their prefix."""

    case: str
    number: int
    family: str
    parameters: dict[str, Any]
    files: list[str]
    gen_length: int
    block_length: int
    steps: int
    pads: list[int]
    nfe: int

    def __str__(self) -> str:
        return f"{self.case}-r{self.number}"

    @property
    def steps_per_block(self) -> int:
        return self.steps // (self.gen_length // self.block_length)

    @property
    def eot(self) -> int:
        return int(self.parameters["eos_token_id"])

    def tensors(self) -> dict[str, Tensor]:
        prefix = f"r{self.number}."
        stored = load_file(DECODE / f"{self.case}.safetensors")
        return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def runs_of(path: Path) -> list[Run]:
    case = json.loads(path.read_text())
    return [
        Run(
            case=path.stem,
            number=number,
            family=case["family"],
            parameters=case["parameters"],
            files=case.get("files", []),
            gen_length=run["gen_length"],
            block_length=run["block_length"],
            steps=run.get("steps", run["gen_length"]),
            pads=run.get("pads", [0] * run["rows"]),
            nfe=run["nfe"],
        )
        for number, run in enumerate(case["runs"])
    ]


def from_confidence(change: Change) -> Tensor:
    return change.confidence


def from_probability(change: Change) -> Tensor:
    return change.probability


def from_scores(change: Change) -> Tensor:
    return change.scores


def from_odds(change: Change) -> Tensor:
    """The probability or margin whose odds the scores are."""
    return 1.0 / (1.0 - change.scores)


def from_negative_scores(change: Change) -> Tensor:
    return -change.scores


@dataclass(frozen=True)
class Recipe:
    """How to run a case here, and how much of it is compared.

    score: what the stored commit_score is in a step; without_idle: stored forwards that commit
    nothing are left out before comparing, because they are superfluous and not run here;
    until_cut: only the forwards up to the first cut of the canvas are compared, because the
    released code goes on attending to what it has cut off.
    """

    strategy: Strategy
    schedule: Schedule
    sampler: Sampler = field(default_factory=Greedy)
    cache: CachePolicy = field(default_factory=NoCache)
    score: Callable[[Change], Tensor] | None = from_probability
    without_idle: bool = False
    until_cut: bool = False


def blocks(run: Run, select: Strategy, **parts: Any) -> Recipe:
    slots = {name: parts.pop(name) for name in ("transforms", "stop") if name in parts}
    return Recipe(Pipeline(select, **slots), Blocks(run.block_length), **parts)


def whole(run: Run, select: Strategy, **options: Any) -> Recipe:
    return Recipe(Pipeline(select), WholeCanvas(), **options)


def positions(run: Run) -> Tensor:
    """The recorded numbers of the generated columns, (S, G)."""
    return run.tensors()["noise"][:, -run.gen_length :]


def llada(run: Run) -> Recipe:
    parameters = run.parameters
    if parameters.get("remasking") == "random":
        random = FixedSchedule(run.steps_per_block, "random")
        return blocks(run, Replayed(random, positions(run)), score=from_scores)
    select = FixedSchedule(run.steps_per_block)
    if parameters.get("logits_eos_inf"):
        ban = {"ban_eot": BanTokens([run.eot])}
        return blocks(run, select, transforms=ban, score=from_confidence)
    if parameters.get("confidence_eos_eot_inf"):
        defer = {"defer_eot": DeferTokens([run.eot, parameters["eot_token_id"]])}
        return blocks(run, select, transforms=defer, score=from_confidence)
    if parameters.get("temperature"):
        stored = run.tensors()
        columns = stored["noise_pos"] - stored["prompt"].shape[1]
        table = by_step(stored["noise_step"], columns, stored["noise_u"], run.gen_length)
        sampler = ReplayedSampler(Categorical(parameters["temperature"]), table)
        return blocks(run, select, sampler=sampler)
    return blocks(run, select)


def threshold(run: Run) -> Recipe:
    return blocks(run, ConfidenceThreshold(run.parameters["threshold"]))


def dream_threshold(run: Run) -> Recipe:
    per_step = run.gen_length // run.steps
    return whole(run, ScheduledThreshold(run.parameters["threshold"], per_step))


def dinfer_threshold(run: Run) -> Recipe:
    select = ConfidenceThreshold(run.parameters["threshold"], tie_slack=1e-5)
    stop = {"block": EotInFinishedBlock(run.eot)} if run.parameters.get("early_stop") else {}
    return blocks(run, select, stop=stop, without_idle="maximum_unroll" in run.parameters)


def hierarchy(run: Run) -> Recipe:
    low, high = run.parameters["low_threshold"], run.parameters["threshold"]
    return blocks(run, Hierarchical(high, low))


def credit(run: Run) -> Recipe:
    names = ("alpha", "beta", "gamma")
    scope = run.parameters["credit_scope"]
    constants = {name: run.parameters[name] for name in names}
    part = TraceCredit(**constants, scope=scope, slots=run.gen_length)
    slack = 1e-5 if run.case.startswith("dinfer") else None
    select = ConfidenceThreshold(run.parameters["threshold"], tie_slack=slack)
    return blocks(run, select, transforms={"credit": part}, score=from_confidence)


def entropy(run: Run) -> Recipe:
    strict = run.family == "dream"
    select = EntropyThreshold(run.parameters["entropy_threshold"], strict=strict)
    return blocks(run, select, score=from_negative_scores)


def factor(run: Run) -> Recipe:
    variant = "copied" if run.case.startswith("factor_copied") else "published"
    return blocks(run, Factor(run.parameters["factor"], variant))


def entropy_bound(run: Run) -> Recipe:
    order = run.parameters["order"].split()[0]
    select = EntropyBound(run.parameters["gamma"], run.parameters["unit"], order)
    # in confidence order the stored entropy is not what ranks the positions here
    score = from_negative_scores if order == "entropy" else None
    return blocks(run, select, score=score)


def dream(run: Run) -> Recipe:
    orders = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}
    alg, eps = run.parameters["alg"], run.parameters["eps"]
    if alg == "origin":
        return whole(run, Replayed(DreamOrigin(run.steps, eps), positions(run)))
    score = from_scores if alg == "entropy" else from_odds
    return whole(run, DreamSchedule(run.steps, eps, orders[alg]), score=score)


def learn2pd(run: Run) -> Recipe:
    select = Learn2PD(
        weights=str(FOLDER / run.files[0]),
        tau=run.parameters["tau"],
        steps_per_block=run.steps_per_block,
        match_model=False,
    )
    if "eotp" not in run.case:
        return blocks(run, select)
    cache = {"prefix": PrefixCache(), "dual": DualCache()}.get(run.case.split("_")[2], NoCache())
    stop = PredictedEot(
        scope="canvas" if isinstance(cache, NoCache) else "block",
        trigger="most_confident",
        threshold=0.0,
        accepted_first=True,
        ids=(run.eot,),
    )
    until_cut = isinstance(cache, DualCache)
    return blocks(run, select, stop={"eot": stop}, cache=cache, until_cut=until_cut)


def ccd(run: Run) -> Recipe:
    names = {"expand_ratio": "expand_ratio", "warm_up_steps": "warm_up_steps", "seek": "seek_mode"}
    select = ReleasedCCD(**{name: run.parameters[stored] for name, stored in names.items()})
    return whole(run, select, score=from_scores)


RECIPES = {
    "llada_*": llada,
    "fastdllm_threshold_nocache_*": threshold,
    "fastdllm_dream_threshold_nocache*": dream_threshold,
    "dinfer_threshold_*": dinfer_threshold,
    "dinfer_hierarchy_*": hierarchy,
    "dinfer_credit_*": credit,
    "credit_*": credit,
    "dparallel_entropy_nocache_*": entropy,
    "dparallel_dream_entropy*": entropy,
    "factor_copied_nocache_*": factor,
    "factor_published_*": factor,
    "eb_*": entropy_bound,
    "dream_*": dream,
    "l2p_*": learn2pd,
    "ccd_*": ccd,
}


def recipe_of(run: Run) -> Recipe:
    return next(make(run) for pattern, make in RECIPES.items() if fnmatch(run.case, pattern))


def is_elsewhere(case: str) -> bool:
    return any(fnmatch(case, pattern) for pattern in NOT_HERE)


CASES = sorted(path for path in DECODE.glob("*.json"))
RUNS = [run for path in CASES if not is_elsewhere(path.stem) for run in runs_of(path)]


@dataclass(frozen=True)
class EotInFinishedBlock(StopRule):
    """dInfer's early stop: an end of text anywhere in a finished block ends the row behind it."""

    eot: int

    def horizon(self, snapshot: Snapshot, view: StepView, change: Change, memory: None) -> Tensor:
        inside = view.index >= 0
        unfinished = (view.gather(snapshot.undecided) & inside).any(1)
        found = (view.gather(snapshot.tokens == self.eot) & inside).any(1)
        end = view.index.amax(1) + 1
        return torch.where(found & ~unfinished, end, snapshot.horizon)


@remember
def model(family: str):
    folder = str(FOLDER / "checkpoints" / family)
    return load_model(folder, dtype="float32", device="cpu").denoiser


def prompts_of(run: Run, prompt: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[pad:].tolist()) for row, pad in zip(prompt, run.pads, strict=True))


def decode(run: Run, recipe: Recipe, prompt: Tensor) -> Result:
    decoder = Decoder(
        model(run.family),
        recipe.strategy,
        recipe.schedule,
        recipe.cache,
        recipe.sampler,
        record=True,
    )
    return decoder.decode(Request(prompts_of(run, prompt), run.gen_length))


@dataclass
class Trace:
    """A decode as the stored cases describe it; positions count from the padded prompt on.

    commits: (forward, row, position, token); canvases (S + 1, B, L): -1 behind the horizon.
    """

    commits: list[tuple[int, int, int, int]]
    probabilities: list[float]
    scores: list[float]
    canvases: list[Tensor]


def traced(result: Result, recipe: Recipe, prompt: Tensor, length: int, mask: int) -> Trace:
    start = prompt.shape[1]
    masks = torch.full((prompt.shape[0], length), mask)
    canvas = torch.cat([prompt.long(), masks], 1)
    trace = Trace([], [], [], [canvas.clone()])
    for change in result.trace:
        score = (recipe.score or from_probability)(change)
        for at, slot in change.commit.nonzero().tolist():
            row, column = int(change.rows[at]), int(change.index[at, slot])
            token = int(change.tokens[at, slot])
            canvas[row, start + column] = token
            if column < change.horizon[at]:
                trace.commits.append((int(change.step[at]), row, start + column, token))
                trace.probabilities.append(float(change.probability[at, slot]))
                trace.scores.append(float(score[at, slot]))
        for row, horizon in zip(change.rows.tolist(), change.horizon.tolist(), strict=True):
            canvas[row, start + horizon :] = -1
        trace.canvases.append(canvas.clone())
    return trace


def without_idle(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored run without the forwards that commit nothing."""
    busy = stored["commit_step"].unique()
    canvas = torch.cat([stored["canvas"][busy.long()], stored["canvas"][-1:]])
    return {
        **stored,
        "canvas": canvas,
        "commit_step": torch.searchsorted(busy, stored["commit_step"]),
    }


COMMIT = ("commit_step", "commit_row", "commit_pos", "commit_token")


def compare(run: Run, recipe: Recipe) -> None:
    stored = run.tensors()
    result = decode(run, recipe, stored["prompt"])
    if recipe.without_idle:
        stored = without_idle(stored)
    last = len(stored["canvas"]) - 1
    if recipe.until_cut:
        cuts = stored["canvas_len"].diff().nonzero()
        last = int(cuts[0]) + 1 if len(cuts) else last
    if last == len(stored["canvas"]) - 1:
        assert set(result.forwards) == {last}
    mask = model(run.family).vocab.mask_id
    trace = traced(result, recipe, stored["prompt"], run.gen_length, mask)
    ours = in_order(trace.commits, last)
    expected = list(zip(*(stored[name].tolist() for name in COMMIT), strict=True))
    order = in_order(expected, last)
    assert [trace.commits[place] for place in ours] == [expected[place] for place in order]
    close(trace.probabilities, ours, stored["commit_prob"], order)
    if recipe.score is not None:
        close(trace.scores, ours, stored["commit_score"], order)
    for canvas, other in zip(trace.canvases[: last + 1], stored["canvas"].long(), strict=False):
        # behind the end of a text the released code writes end-of-text ids, here nothing is there
        present = canvas >= 0
        assert torch.equal(canvas[present], other[present])
        assert other[~present].unique().tolist() in ([], [-1], [run.parameters.get("eos_token_id")])


def in_order(commits: list[tuple[int, int, int, int]], last: int) -> list[int]:
    """Indices of the commits before forward `last`, by forward, row and position."""
    inside = [place for place, commit in enumerate(commits) if commit[0] < last]
    return sorted(inside, key=lambda place: commits[place][:3])


def close(ours: list[float], our_order: list[int], stored: Tensor, order: list[int]) -> None:
    got = torch.tensor(ours, dtype=torch.float64)[our_order]
    torch.testing.assert_close(got, stored.double()[order], atol=2e-4, rtol=0)


@pytest.mark.one_in(24)
@pytest.mark.parametrize(
    "run", [pytest.param(run, id=str(run), marks=marks_of(run.number)) for run in RUNS]
)
def test_a_published_decode_is_reproduced_forward_by_forward(run: Run) -> None:
    compare(run, recipe_of(run))


def test_every_stored_case_is_run_or_its_absence_is_explained() -> None:
    known = [*RECIPES, *NOT_HERE]
    assert [p.stem for p in CASES if not any(fnmatch(p.stem, pattern) for pattern in known)] == []
    assert all(reason for reason in NOT_HERE.values())


STALE = runs_of(DECODE / "dinfer_credit_stale_reuse.json")


@pytest.mark.parametrize("run", STALE, ids=str)
def test_credit_of_an_earlier_request_does_not_leak_into_the_next(run: Run) -> None:
    run = replace(run, parameters={**run.parameters, "credit_scope": "block"})
    stored = run.tensors()
    recipe = credit(run)
    decoder = Decoder(model(run.family), recipe.strategy, recipe.schedule, record=True)
    first, second = (
        Request(prompts_of(run, stored[name]), run.gen_length)
        for name in ("first_request_prompt", "prompt")
    )
    alone = decoder.decode(second)
    stopping = replace(recipe.strategy, stop={"block": EotInFinishedBlock(run.eot)})
    early = Decoder(model(run.family), stopping, recipe.schedule)
    early.decode(first)
    after = early.decode(second)
    again = replace(decoder, strategy=stopping).decode(second)
    assert (after.sequences, after.step_of) == (again.sequences, again.step_of)
    decoder.decode(first)
    assert decoder.decode(second).step_of == alone.step_of
    trace = traced(alone, recipe, stored["prompt"], run.gen_length, model(run.family).vocab.mask_id)
    leaked = sorted(zip(*(stored[name].tolist() for name in COMMIT), strict=True))
    assert sorted(trace.commits) != leaked


@dataclass(frozen=True)
class FillBehindEot(Strategy):
    """A threshold in blocks that also fills everything behind the first end of text with it."""

    threshold: float
    block_length: int
    eot: int

    def decide(self, view: StepView, memory: None) -> Decision:
        masked = torch.where(view.open, view.index, view.snapshot.tokens.shape[1])
        block = (masked.amin(1) - view.snapshot.start) // self.block_length
        inside = (view.index - view.snapshot.start) // self.block_length == block[:, None]
        chosen = ConfidenceThreshold(self.threshold).decide(
            replace(view, open=view.open & inside), None
        )
        tokens = torch.where(view.open, view.pred.token, view.tokens)
        ends = (tokens == self.eot) & (chosen.commit | view.settled)
        end = torch.where(ends, view.index, view.snapshot.tokens.shape[1]).amin(1, keepdim=True)
        behind = view.open & (view.index > end)
        return Decision(chosen.commit | behind, torch.where(behind, self.eot, tokens))


FILL = runs_of(DECODE / "fastdllm_earlystop_fill.json")


@pytest.mark.parametrize("run", FILL, ids=str)
def test_filling_behind_the_end_of_text_is_reproduced_until_it_overwrites_tokens(run: Run) -> None:
    """A committed token stands here; the released code replaces those behind an end of text.

    Runs in which that happens part ways with it there, so they are compared up to that forward.
    """
    stored = run.tensors()
    select = FillBehindEot(run.parameters["threshold"], run.block_length, run.eot)
    recipe = whole(run, select)
    result = decode(run, recipe, stored["prompt"])
    mask = model(run.family).vocab.mask_id
    trace = traced(result, recipe, stored["prompt"], run.gen_length, mask)
    canvases = stored["canvas"].long()
    revised = ((canvases[:-1] != mask) & (canvases[:-1] != canvases[1:])).flatten(1).any(1)
    last = int(revised.int().argmax()) if bool(revised.any()) else run.nfe
    for step in range(last + 1):
        assert torch.equal(trace.canvases[step], canvases[step])
    assert last > 0
    if last == run.nfe:
        assert result.forwards == (run.nfe,)
