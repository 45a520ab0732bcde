"""Wrong lines of the loop, the caches, schedules, stop rules and the engine are caught.

A second table beside that of `test_the_contract_bites`. A defect is one line of the source,
replaced; what catches it is a check that says in plain Python what the core must do.
"""

from __future__ import annotations

import inspect
import math
import random
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from drawing import profile

from dllm_decode.decoding import batch, cache, canvas, engine, monitor, schedule, settle
from dllm_decode.decoding.cache import CertaintyCache
from dllm_decode.decoding.engine import Engine
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks, SlidingWindow, WholeCanvas
from dllm_decode.decoding.selection import best
from dllm_decode.decoding.strategy import Budget, Pipeline, StopRule, Strategy
from dllm_decode.decoding.types import Decision, Request
from dllm_decode.strategies import eot
from dllm_decode.strategies.credit import TraceCredit
from dllm_decode.strategies.left_repeat import LeftRepeat
from dllm_decode.strategies.threshold import ConfidenceThreshold
from dllm_decode.testing import (
    CACHES,
    VOCAB,
    HashDenoiser,
    Recorder,
    StoringHashDenoiser,
    row_of,
)

EOT = VOCAB.eot_ids[0]
POLICIES = {**CACHES, "certainty": CertaintyCache(top=1, sigma=2.0, every=3)}
QUIET = dict.fromkeys(VOCAB.never_generated, -1e6)


# What is decoded.


@dataclass(frozen=True)
class Busy(Strategy):
    """Commits some, opens two again now and then, probes now and then; keeps its views."""

    revocable = True
    views: list = field(default_factory=list)

    def decide(self, view, memory):
        self.views.append(view)
        if int(view.step.max()) % 3 == 1:  # a row that is done counts no further
            view.probe(torch.full_like(view.tokens, 5))
        third = view.step % 3 == 0
        commit = best(view.pred.confidence, view.open, torch.where(third, 3, 1))
        two = view.settled & (view.settled.cumsum(1) <= 2)
        remask = two & (view.step[:, None] % 2 == 1)
        accepted = view.index % 2 == 0
        return Decision(commit, remask=remask, notes={"accepted": accepted})


@dataclass(frozen=True)
class Patient(Strategy):
    """Commits in its first step, then waits until its budget ends."""

    progress = Budget(3)
    views: list = field(default_factory=list)

    def decide(self, view, memory):
        self.views.append(view)
        return Decision(best(view.pred.confidence, view.open) & (view.step[:, None] == 0))


@dataclass(frozen=True)
class Heard(StopRule):
    """Asks to end at the first end of text, and keeps what it was given."""

    heard: list = field(default_factory=list)

    def horizon(self, snapshot, view, change, memory):
        self.heard.append((snapshot, view, change))
        ends = snapshot.decided & (snapshot.tokens == EOT) & (snapshot.columns >= snapshot.start)
        return torch.where(ends, snapshot.columns, snapshot.tokens.shape[1]).amin(1) + 1


@dataclass
class Run:
    """One decode: its parts drawn from a number, and everything that was seen of it."""

    seed: int
    cached: bool = True
    patient: bool = False
    sync_every: int = 1

    def __post_init__(self):
        draw = random.Random(self.seed)
        rows = draw.randint(1, 3)
        lengths = tuple(draw.randint(3, 11) for _ in range(rows))
        prompts = tuple(tuple(draw.choices(range(9), k=draw.randint(0, 5))) for _ in range(rows))
        fixed = tuple(
            {draw.randrange(length): draw.randrange(9)} if draw.random() < 0.3 else None
            for length in lengths
        )
        self.request = Request(prompts, lengths, fixed=fixed)
        width = draw.randint(2, 4)
        self.schedule = draw.choice(
            [Blocks(width), Blocks(width, "absolute"), WholeCanvas(), SlidingWindow(width)]
        )
        names = sorted(set(POLICIES) - {"none"})
        self.policy = names[self.seed % len(names)] if self.cached else "none"
        kind = StoringHashDenoiser if self.cached else HashDenoiser
        added = {**QUIET, EOT: draw.choice([-2.0, 1.0, 2.0])}
        self.model = kind(seed=self.seed, added=added, shifted=draw.random() < 0.5)
        self.rule = Patient() if self.patient else Busy()
        self.stop = Heard()
        self.watch = Recorder()
        self.decoder = Decoder(
            self.model, Pipeline(self.rule, stop={"heard": self.stop}), self.schedule,
            POLICIES[self.policy], observers=(self.watch,), sync_every=self.sync_every,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.result = self.decoder.decode(self.request)

    def steps(self):
        """Each step: view, change, the canvas afterwards."""
        return zip(self.rule.views, self.watch.changes, self.watch.snapshots[1:], strict=True)


def columns_where(flags):
    return {column for column, flag in enumerate(flags.tolist()) if flag}


def in_slots(view, flags, place):
    """Columns of the slots of a row at which a plane is set."""
    return {
        column
        for column, flag in zip(view.index[place].tolist(), flags[place].tolist(), strict=True)
        if flag and column >= 0
    }


def window_of(schedule, snapshot, place):
    """Columns and key of a row's window, in plain Python."""
    undecided = columns_where(snapshot.undecided[place])
    horizon, first = int(snapshot.horizon[place]), min(undecided)
    if isinstance(schedule, WholeCanvas):
        return set(range(snapshot.start, horizon)), 0
    if isinstance(schedule, SlidingWindow):
        return set(range(first, min(first + schedule.width, horizon))), 0
    absolute = schedule.origin == "absolute"
    zero = int(snapshot.first[place]) if absolute else snapshot.start
    block = (first - zero) // schedule.length
    begin = zero + block * schedule.length
    return set(range(max(begin, snapshot.start), min(begin + schedule.length, horizon))), block


# The checks.


@dataclass
class Stored:
    """What a cache policy has to remember of a row."""

    valid: set = field(default_factory=set)
    stale: set = field(default_factory=set)
    certainty: dict = field(default_factory=lambda: defaultdict(float))
    age: int = 0
    passes: int = 0
    key: int | None = None


def wanted(policy, row, snapshot, place, window, fresh):
    """Columns that a policy recomputes, in plain Python."""
    live = columns_where(snapshot.live[place])
    undecided = columns_where(snapshot.undecided[place])
    now = POLICIES[policy]
    if policy == "prefix":
        return live if fresh else {c for c in live if c >= min(window)}
    if policy == "dual":
        return live if fresh else window
    if policy == "vicinity":
        near = range(min(window) - now.before, max(window) + now.after + 1)
        return live if row.passes < now.warmup else set(near)
    if policy == "periodic":
        return live if fresh or row.age + 1 >= now.every else window
    due = not row.valid or row.age + 1 >= now.every
    if policy == "delayed":
        return live if due else undecided
    decided = columns_where(snapshot.decided[place]) & live

    def score(column):
        density = sum(math.exp(-((column - d) ** 2) / (2 * now.sigma**2)) for d in decided)
        return row.certainty[column] * density / max(1, len(decided))

    order = sorted(window & undecided, key=lambda c: (-round(score(c), 6), c))
    return live if due else set(order[: now.top])


def check_plans(seed):
    """Every pass computes and attends to exactly what its cache policy says."""
    run = Run(seed)
    passes = iter(run.model.passes)
    rows = defaultdict(Stored)
    for view, change, _ in run.steps():
        done = next(passes)
        asked = 0 if change.probes is None else int(change.probes.max())
        probes = [next(passes) for _ in range(asked)]
        snapshot = view.snapshot
        for place, name in enumerate(snapshot.rows.tolist()):
            row = rows[name]
            live = columns_where(snapshot.live[place])
            window, key = window_of(run.schedule, snapshot, place)
            fresh, row.key = key != row.key, key
            row.passes = 0 if fresh else row.passes
            mask = wanted(run.policy, row, snapshot, place, window, fresh)
            mask = (mask | (row.stale & row.valid)) & live
            sources = set()
            if run.model.shifted:
                first = int(snapshot.first[place])
                sources = {max(c - 1, first) for c in window & mask}
            row.age = 0 if live <= mask else row.age + 1
            row.passes += 1
            row.valid |= mask
            row.stale -= mask
            assert columns_where(done.computed[place]) == mask | sources
            assert columns_where(done.attended[place]) == (row.valid & live) | sources
            for probe in probes:
                assert columns_where(probe.computed[place]) == mask | sources
                row.stale |= mask | sources
            row.stale |= in_slots(view, change.commit | change.remask, place)
            shown = zip(view.index[place].tolist(), change.confidence[place].tolist(), strict=True)
            row.certainty.update({c: value for c, value in shown if c >= 0})


def check_views(seed):
    """Every view says where each row is."""
    run = Run(seed, cached=seed % 2 == 0)
    begun: dict[int, tuple[int, int, int]] = {}
    taken: dict[int, int] = defaultdict(int)
    for step, (view, _, after) in enumerate(run.steps()):
        snapshot = view.snapshot
        for place, row in enumerate(snapshot.rows.tolist()):
            window, key = window_of(run.schedule, snapshot, place)
            undecided = columns_where(snapshot.undecided[place])
            fresh = row not in begun or begun[row][0] != key
            if fresh:
                begun[row] = key, taken[row], len(window & undecided)
            shown = {c for c in view.index[place].tolist() if c >= 0}
            assert shown <= window and in_slots(view, view.active, place) == shown
            assert in_slots(view, view.open, place) == shown & undecided
            settled = columns_where((snapshot.editable & snapshot.decided)[place])
            assert in_slots(view, view.settled, place) == shown & settled
            assert bool(view.fresh[place]) == fresh and int(view.step[place]) == taken[row] == step
            assert int(view.window_step[place]) == taken[row] - begun[row][1]
            assert int(view.window_open[place]) == begun[row][2]
            assert int(view.steps_left[place]) == len(undecided)
            assert int(after.undecided[place].sum()) < len(undecided) or not shown & undecided
            if run.policy == "none":
                assert shown == window
            taken[row] += 1
        assert bool((after.horizon <= snapshot.horizon).all())
        fixed = snapshot.decided & ~snapshot.editable
        assert bool((after.tokens == snapshot.tokens)[fixed].all())


def check_counts(seed):
    """Passes, steps and finish reasons are those that the changes add up to."""
    run = Run(seed, cached=False, patient=seed % 2 == 0, sync_every=1 + seed % 4)
    forwards, surplus = defaultdict(int), defaultdict(int)
    forced: dict[int, bool] = defaultdict(bool)
    horizon: dict[int, int] = {}
    for view, change, after in run.steps():
        for place, row in enumerate(change.rows.tolist()):
            took_part = bool(view.open[place].any())
            asked = 0 if change.probes is None else int(change.probes[place])
            forwards[row] += took_part * (1 + asked)
            surplus[row] += not took_part
            forced[row] |= bool(change.forced[place])
            horizon[row] = int(after.horizon[place]) - after.start
            assert int(change.horizon[place]) == horizon[row]
    for row, outcome in enumerate(run.result.rows):
        cut = horizon.get(row, run.request.lengths[row])
        ended = "eot" if cut < run.request.lengths[row] else "length"
        over = run.patient and forced[row]
        assert outcome.finish_reason == ("budget" if over else ended)
        assert (outcome.forwards, outcome.surplus_forwards) == (forwards[row], surplus[row])
        assert len(outcome.tokens) == cut and outcome.undecided == 0
        assert VOCAB.mask_id not in outcome.tokens


def check_syncs(seed):
    """The time between two syncs changes nothing, and no wait is longer than a row can be."""
    often = Run(seed, cached=False, patient=seed % 2 == 0)
    for every in (3, 10**9):
        seldom = Run(seed, cached=False, patient=seed % 2 == 0, sync_every=every)
        for row in range(often.request.rows):
            assert row_of(seldom.result, row) == row_of(often.result, row)
            same = seldom.result.confidence_of[row], often.result.confidence_of[row]
            assert torch.equal(*(torch.tensor(x).nan_to_num(-1.0) for x in same))
        most = max(often.request.lengths) + max(often.result.forwards)
        assert len(seldom.rule.views) <= most


def first_end(candidates, snapshot, place):
    """One past the leftmost column that may end a row, else the horizon."""
    horizon = int(snapshot.horizon[place])
    generated = range(snapshot.start, horizon)
    fixed = [c for c in generated if not snapshot.editable[place, c]]
    column = min((c for c in candidates if c >= max(fixed, default=snapshot.start)), default=None)
    return horizon if column is None or column not in generated else column + 1


def check_stops(seed):
    """Stop rules end a row where their sentence says, and never in front of a fixed column."""
    run = Run(seed, cached=False)
    for snapshot, view, change in run.stop.heard:
        # other tokens than those proposed, as transforms commit them
        moved = torch.where(change.tokens == EOT, 1, torch.where(change.tokens == 1, EOT, 1))
        change = replace(change, tokens=torch.where(view.index % 3 == 0, moved, change.tokens))
        confidences = view.pred.confidence[view.open].tolist()
        threshold = max(confidences, default=0.5)
        rules = (eot.CommittedEot(), eot.AcceptedEot(), eot.PredictedEot(threshold=threshold))
        asked = [rule.horizon(snapshot, view, change, None).tolist() for rule in rules]
        for place in range(snapshot.rows.numel()):
            tokens, decided = snapshot.tokens[place].tolist(), snapshot.decided[place].tolist()
            prefix = next((c for c in range(snapshot.start, len(tokens)) if not decided[c]), 10**6)
            committed = [c for c, t in enumerate(tokens) if t == EOT and c < prefix]
            committed = [c for c in committed if c >= snapshot.start]
            says_end = change.tokens == EOT
            accepted = in_slots(view, change.commit & change.notes["accepted"] & says_end, place)
            sure = (view.pred.confidence >= threshold) & (view.pred.token == EOT)
            predicted = in_slots(view, sure & view.open, place)
            expected = [first_end(c, snapshot, place) for c in (committed, accepted, predicted)]
            assert [values[place] for values in asked] == expected
    for row, outcome in enumerate(run.result.rows):
        for at, token in ((run.request.fixed or ())[row] or {}).items():
            assert len(outcome.tokens) > at and outcome.tokens[at] == token


@dataclass
class Moody(HashDenoiser):
    """Fails for rows whose prompt starts with 7, and with more rows than there is room for."""

    room: int = 99
    shapes: list = field(default_factory=list)

    def __call__(self, tokens, live, index, plan):
        opening = tokens.gather(1, live.int().argmax(1, keepdim=True))
        if bool((opening == 7).any()):
            raise RuntimeError("seven")
        if tokens.shape[0] > self.room:
            raise torch.OutOfMemoryError("simulated")
        self.shapes.append(tuple(tokens.shape))
        return super().__call__(tokens, live, index, plan)


@dataclass(frozen=True)
class Picky(Busy):
    """Refuses rows whose prompt starts with 6 when they join."""

    def begin(self, request, snapshot):
        if any(prompt[:1] == (6,) for prompt in request.prompts):
            raise RuntimeError("six")


def check_rows(seed):
    """Every row comes out of an engine once; only those that fail are errors."""
    draw = random.Random(seed)
    prompts = tuple((draw.choice([1, 2, 6, 7]), 3) for _ in range(draw.randint(1, 5)))
    request = Request(prompts, tuple(draw.randint(2, 7) for _ in prompts))
    model, most = Moody(added=QUIET), draw.randint(1, 4)
    how = draw.choice(["continuous", "static"])
    decoder = Decoder(model, Picky(), Blocks(3))
    arrived = list(Engine(decoder, most, batching=how).stream(request))
    assert sorted(row for row, _ in arrived) == list(range(len(prompts)))
    for row, outcome in arrived:
        failed = prompts[row][0] in (6, 7)
        assert (outcome.finish_reason == "error") == failed == bool(outcome.error)


def check_widths(seed):
    """Wide rows come first, so that passes get narrower."""
    draw = random.Random(seed)
    lengths = tuple(draw.sample(range(1, 12), k=5))
    model = Moody(added=QUIET)
    Engine(Decoder(model, Busy(), Blocks(3)), 1).decode(Request(((1,),) * 5, lengths))
    widths = [columns for _, columns in model.shapes]
    assert widths == sorted(widths, reverse=True)


def check_memory(seed):
    """A batch that does not fit is tried again with half of its rows."""
    rows = 2 + seed % 5
    model = Moody(added=QUIET, room=rows - 1)
    request = Request(tuple((i,) for i in range(rows)), 4)
    result = Engine(Decoder(model, Busy(), Blocks(3)), 64).decode(request)
    assert not any(result.errors) and model.shapes[0][0] == max(1, rows // 2)


CHECKS: dict[str, Callable[[int], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


# The defects: where, which line, what it becomes, which checks notice.


@dataclass(frozen=True)
class Defect:
    owner: object
    name: str
    line: str
    becomes: str
    caught_by: set[str]

    def function(self):
        """The function with the line replaced."""
        whole = getattr(self.owner, self.name)
        source = textwrap.dedent(inspect.getsource(whole))
        assert source.count(self.line) == 1, f"{self.line!r} stands {source.count(self.line)} times"
        names: dict = {}
        exec(source.replace(self.line, self.becomes), whole.__globals__, names)
        return names[self.name]


of_policy = partial(Defect, cache.CachePolicy)
of_batch = partial(Defect, batch.Batch)
of_store = partial(Defect, cache.StoreMemory)
of_work = partial(Defect, engine._Work)

DEFECTS = {
    "a full pass comes a step late": Defect(
        cache.DelayedCache, "recompute", "self.every - 1", "self.every", {"plans"}
    ),
    "padding keeps the age of a row": of_store(
        "plan", "(mask == live).all(1)", "mask.all(1)", {"plans"}
    ),
    "a changed token is attended to as it was": of_policy(
        "plan", "(wanted | (memory.stale & memory.valid))", "wanted", {"plans"}
    ),
    "a column opened again is not stale": of_store(
        "note", "change.touched", "change.written", {"plans"}
    ),
    "confidences are not remembered": of_store(
        "note", "self.seen = ", "_ = ", {"plans"}
    ),
    "the vicinity is a column short": Defect(
        cache.VicinityCache, "recompute", "<= last + self.after", "< last + self.after", {"plans"}
    ),
    "the warm-up is a pass short": Defect(
        cache.VicinityCache, "recompute", "passes < self.warmup", "passes + 1 < self.warmup",
        {"plans"},
    ),
    "one column too many by certainty": Defect(
        cache.CertaintyCache, "recompute", ": self.top]", ": self.top + 1]", {"plans"}
    ),
    "a new block is not computed in full": Defect(
        cache.DualCache, "recompute", "_all_if(step.fresh, step, step.window)", "step.window",
        {"plans"},
    ),
    "the suffix is kept as well": Defect(
        cache.PrefixCache, "recompute", "step.snapshot.columns >= step.first", "step.window",
        {"plans"},
    ),
    "a gap is taken for a run": Defect(
        batch, "_runs", "last - first != count - 1", "last < first", {"plans"}
    ),
    "a probe is trusted": of_store(
        "distrust", "self.changed | functional.pad(columns, (0, 1))",
        "self.changed", {"plans"},
    ),
    "sources of a shifted model are not computed": of_batch(
        "_look_ahead", "sources is not index", "False", {"plans"}
    ),
    "columns without logits are open": of_batch(
        "_look_ahead", "masked = torch.where(computed, index, -1), masked & computed",
        "masked = torch.where(computed, index, -1), masked", {"views", "plans"},
    ),
    "columns cut since the last sync are attended to": of_batch(
        "plan", "self._complete and not self._unseen", "self._complete", {"syncs"}
    ),
    "steps of a window go on counting in the next": Defect(
        batch.Counters, "enter", "torch.where(fresh, self.step, self.window_entered)",
        "self.window_entered",
        {"views"},
    ),
    "open slots are counted once": Defect(
        batch.Counters, "enter", "torch.where(fresh, opened, self.window_open)",
        "torch.where(self.window_open > 0, self.window_open, opened)", {"views"},
    ),
    "closing commits are forgotten": of_batch(
        "_count", "counters.over_budget | change.forced", "change.forced", {"counts", "syncs"}
    ),
    "probes are free": of_batch(
        "_count", "**vars(extra)", "**{**vars(extra), 'probes': None}", {"counts"}
    ),
    "passes behind the end are counted": of_batch(
        "_count", "counters.step + took_part", "counters.step + 1", {"counts", "syncs"}
    ),
    "surplus passes are not counted": of_batch(
        "count_step", "self._steps += 1", "pass", {"counts"}
    ),
    "the host waits as long as it was told": Defect(
        monitor.Monitor, "check", "min(self._every, self._longest)", "self._every", {"syncs"}
    ),
    "a budget closes in one step only": Defect(
        settle, "_with_progress", "view.step >= progress.steps - 1",
        "view.step == progress.steps - 1", {"counts", "syncs"},
    ),
    "a re-mask may undo the gain of a step": Defect(
        settle, "_with_progress", "(asked.commit.sum(1) > remask.sum(1))",
        "asked.commit.any(1)", {"views"},
    ),
    "a cut goes through fixed text": Defect(
        canvas.Canvas, "narrow", "self.kept is not None", "False", {"stops"}
    ),
    "an absolute block begins in the prompt": Defect(
        schedule.Blocks, "window", "begin.clamp(min=snapshot.start)", "begin", {"views"}
    ),
    "a block goes on behind the horizon": Defect(
        schedule.Blocks, "window", "torch.minimum(begin + self.length, snapshot.horizon)",
        "begin + self.length", {"views", "plans", "counts", "stops", "syncs"},
    ),
    "a sliding window starts behind the first open column": Defect(
        schedule.SlidingWindow, "window", "begin = snapshot.first_undecided",
        "begin = snapshot.first_undecided + 1", set(),
    ),
    "a predicted end needs more than the threshold": Defect(
        eot.PredictedEot, "horizon", "(confidence >= self.threshold)",
        "(confidence > self.threshold)", {"stops"},
    ),
    "an accepted end is read from the proposal": Defect(
        eot.AcceptedEot, "_accepted", "self._is_end(change.tokens, snapshot)",
        "self._is_end(view.pred.token, snapshot)", {"stops"},
    ),
    "an accepted end need not be committed": Defect(
        eot.AcceptedEot, "_accepted", 'change.commit & change.notes["accepted"]',
        'change.notes["accepted"]', {"stops"},
    ),
    "an end counts in front of fixed text": Defect(
        eot._EotRule, "_may_end", "snapshot.behind_fixed",
        "(snapshot.columns >= snapshot.start)", {"stops"},
    ),
    "an end counts in front of open columns": Defect(
        eot.CommittedEot, "horizon", "if self.whole_prefix else", "if False else", {"stops"}
    ),
    "rows that were about to join are lost": of_work(
        "_at_risk", "(*self.run.live, *joining)", "self.run.live", {"rows"}
    ),
    "two rows that fail together are both out": of_work(
        "_isolate", "len(rows) > 1", "len(rows) > 2", {"rows"}
    ),
    "rows are told of twice": of_work(
        "_news", "self.run.outcomes.keys() - self.reported", "self.run.outcomes.keys()", {"rows"}
    ),
    "rows come in the order of the request": of_work(
        "__init__", "sorted(range(request.rows), key=self._width, reverse=True)",
        "range(request.rows)", {"widths"},
    ),
    "the limit is halved, not the batch": of_work(
        "_shrink", "min(self.limit, len(rows)) // 2", "self.limit // 2", {"memory"}
    ),
}  # fmt: skip


def fails(check, seeds):
    """Whether a check fails for one of some seeds."""
    for seed in seeds:
        try:
            check(seed)
        except Exception:
            return True
    return False


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", CHECKS)
def test_the_core_does_what_the_check_says(name):
    for seed in range(60 if profile() == "thorough" else 8):
        CHECKS[name](seed)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_wrong_line_is_caught_by_the_intended_checks(name, monkeypatch):
    defect = DEFECTS[name]
    monkeypatch.setattr(defect.owner, defect.name, defect.function())
    missed = {c for c in defect.caught_by if not fails(CHECKS[c], range(100))}
    assert not missed
    if profile() == "thorough":
        others = {c for c in CHECKS if c not in defect.caught_by and fails(CHECKS[c], range(4))}
        assert not others


def test_every_check_catches_some_defect():
    assert set().union(*(defect.caught_by for defect in DEFECTS.values())) == set(CHECKS)


@pytest.mark.parametrize("seed", range(3))
def test_the_additions_of_a_row_do_not_decide_how_its_neighbour_is_computed(seed: int) -> None:
    repeat = "transforms.left_repeat.penalty"
    rule = Pipeline(
        ConfidenceThreshold(0.9), {"credit": TraceCredit(), "left_repeat": LeftRepeat(1.0)}
    )
    own = ({f"strategy.{repeat}": 0.0}, {f"strategy.{repeat}": 1.0})
    request = Request(((1, 2), (4, 4)), (10, 10), parameters=own)
    model = HashDenoiser(seed=seed, dtype=torch.float32, scale=1e-6)  # where the last digits tell
    alone = Decoder(model, rule).decode(request.take([0])).rows[0]
    beside = Decoder(model, rule).decode(request).rows[0]
    assert alone.confidence_of == beside.confidence_of and alone.tokens == beside.tokens
