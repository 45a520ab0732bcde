"""Every strategy, stop rule, transform and filter of the configuration keeps the contract."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import dllm_decode.conf
from dllm_decode.config.compose import compose
from dllm_decode.config.instantiate import build_node
from dllm_decode.decoding.loop import Decoder
from dllm_decode.decoding.schedule import Blocks
from dllm_decode.decoding.types import Request
from dllm_decode.errors import CapabilityError
from dllm_decode.models.acceptance import AcceptanceFilter
from dllm_decode.models.drafting import DraftLayer, LayerDrafter
from dllm_decode.models.frequencies import counted
from dllm_decode.testing import VOCAB, HashDenoiser, StrategyContract

WIDTH = 4
FOLDER = TemporaryDirectory()
CONF = Path(next(iter(dllm_decode.conf.__path__))) / "strategy"


def options(folder):
    return sorted(path.stem for path in folder.glob("*.yaml"))


# The same rule with other numbers.
PRESETS = {"joint_threshold_speed", "joint_threshold_diffusers", "adjust_threshold"}
STRATEGIES = [name for name in options(CONF) if name not in {"pipeline", *PRESETS}]
STOPS = options(CONF / "stop")
TRANSFORMS = options(CONF / "transforms")
FILTERS = options(CONF / "filters")

# From loose to strict: the values of one setting; the strictest accepts no confidence of 1/2.
THRESHOLDS = {
    "credit": ("threshold", (0.3, 0.6, 0.9)),
    "credit_adaptive": ("threshold", (0.3, 0.6, 0.9)),
    "dream_threshold": ("threshold", (0.3, 0.6, 0.9)),
    "entropy": ("threshold", (2.0, 0.6, 0.1)),
    "entropy_bound": ("bound", (2.0, 0.6, 0.1)),
    "factor": ("factor", (1.9, 1.0, 0.7)),
    "hierarchical": ("threshold", (0.6, 0.8, 0.9)),
    "history_stable": ("threshold", (0.3, 0.6, 0.9)),
    "learn2pd": ("tau", (0.3, 0.5, 0.7)),
    "local_leap": ("threshold", (0.3, 0.6, 0.9)),
    "prefix_run": ("threshold", (0.3, 0.6, 0.9)),
    "relaxing": ("threshold", (0.3, 0.6, 0.9)),
    "threshold": ("threshold", (0.3, 0.6, 0.9)),
}
# Settings that make small canvases interesting.
SETTINGS = {
    "core": {"steps_per_block": 3, "every": 1, "spare": 0, "begin_share": 0.0, "end_share": 1.0},
    "credit": {"threshold": 0.6},
    "dream": {"steps": 5},
    "dream_maskgit_plus": {"steps": 5},
    "dream_origin": {"steps": 5},
    "dream_topk_margin": {"steps": 5, "position_temperature": 0.5},
    "hierarchical": {"low_threshold": 0.55},
    "history_stable": {"threshold": 0.6, "low_threshold": 0.55},
    "joint_threshold": {"threshold": 0.4, "edit_threshold": 0.3, "post_steps": 3},
    "klass": {"threshold": 0.3, "kl": 0.3, "history": 1},
    "local_leap": {"threshold": 0.6, "relaxed": 0.4, "radius": 1},
    "low_confidence": {"steps_per_block": 2},
    "prefix_run": {"threshold": 0.4},
    "random": {"steps_per_block": 2},
    "rcr": {"steps_per_block": 2},
    "relaxing": {"threshold": 0.6},
    "remdm": {"steps_per_block": 2, "refine_steps": 2, "reopen": 1},
    "slowfast": {"threshold": 0.5, "slow_steps": 2},
    "t2m": {"threshold": 0.4, "remask_threshold": 0.3, "share": 0.6, "revisions": 2},
    "threshold": {"threshold": 0.6},
    "wino": {"threshold": 0.3, "verify_threshold": 0.6, "groups": 2},
}
# What revises is never final at an end of text, and drafts end a row some steps later.
GOES_ON = {"adjust", "freedave"}
PROBING = ("core", "freedave", "wino")
# Of the rules that revise in the same way, some run with the slow tests.
LONG = ("core", "rcr", "remdm", "saber")


@cache
def small_filter():
    """A filter for small blocks, because the bundled one is made for one block length."""
    draw = torch.Generator().manual_seed(1)
    one, two = (2 * torch.randn(WIDTH, WIDTH, generator=draw) for _ in range(2))
    path = Path(FOLDER.name) / "filter.safetensors"
    AcceptanceFilter(one, torch.zeros(WIDTH), two, torch.zeros(WIDTH)).save(path, {})
    weights = f"strategy.select.weights={path}"
    return built("strategy=learn2pd", weights, "strategy.select.match_model=false")


@cache
def small_table():
    """Frequencies of the small vocabulary, because the bundled ones are those of a model."""
    path = Path(FOLDER.name) / "frequencies.json"
    path.write_text(json.dumps(counted([range(VOCAB.size), [1, 1, 4]], VOCAB.size)))
    return built("strategy=uncode", f"strategy.select.frequencies={path}")


@cache
def small_drafter():
    """A draft layer for the states of the small model, because the bundled one is a model's."""
    torch.manual_seed(0)
    layer = DraftLayer(width=VOCAB.size, embedding=VOCAB.size, heads=2, hidden=8)
    path = Path(FOLDER.name) / "drafter.safetensors"
    LayerDrafter(layer).save(path, {})
    return built("strategy=adjust", f"strategy.select.weights={path}")


MADE = {"adjust": small_drafter, "learn2pd": small_filter, "uncode": small_table}


@cache
def built(*overrides):
    """The strategy of a command line, composed once; tests get copies of it."""
    return build_node(compose(overrides), "strategy")


def new(name, *, stop="never", **settings):
    """A new object of a strategy with another stop rule and other settings of its selection."""
    strategy = MADE[name]() if name in MADE else built(f"strategy={name}")
    select = replace(strategy.select, **{**SETTINGS.get(name, {}), **settings})
    rule = built("strategy=threshold", f"strategy/stop={stop}").stop
    return copy.deepcopy(replace(strategy, select=select, stop=rule))


def with_part(slot, *names, **settings):
    """`strategy=threshold` with further parts, each with other settings."""
    strategy = built("strategy=threshold", f"strategy/{slot}=[{','.join(names)}]")
    parts = {key: replace(part, **settings) for key, part in getattr(strategy, slot).items()}
    return copy.deepcopy(replace(strategy, select=new("threshold").select, **{slot: parts}))


@cache
def fits(name, stop):
    """Whether a stop rule works with a strategy; the loop refuses those that do not."""
    decoder = Decoder(HashDenoiser(), new(name, stop=stop), Blocks(WIDTH))
    try:
        decoder.decode(Request(((),), WIDTH, reference=((0,) * WIDTH,)))
    except CapabilityError:
        return False
    return True


class Made(Sequence):
    """Strategies that are made anew when they are picked, and only then."""

    def __init__(self, makers):
        self.makers = list(makers)

    def __len__(self):
        return len(self.makers)

    def __getitem__(self, place):
        return self.makers[place]()


class ConfigContract(StrategyContract):
    name: str

    def strategies(self):
        return Made(partial(new, self.name, stop=s) for s in STOPS if fits(self.name, s))

    def ending_at_eot(self):
        return [] if self.name in GOES_ON else [new(self.name, stop="eot")]


class ProbingContract(ConfigContract):
    def probing(self):
        return [new(self.name)]


class ThresholdContract(ConfigContract):
    def loose_to_strict(self):
        key, values = THRESHOLDS[self.name]
        return [new(self.name, **{key: value}) for value in values]


for option in STRATEGIES:
    suite = "Test" + "".join(word.capitalize() for word in option.split("_"))
    kind = ThresholdContract if option in THRESHOLDS else ConfigContract
    kind = ProbingContract if option in PROBING else kind
    rarely = pytest.mark.slow if option in LONG else pytest.mark.one_in(2, across_classes=True)
    own = {"name": option, "__module__": __name__, "pytestmark": rarely}
    globals()[suite] = type(suite, (kind,), own)


class TestTransformsAndFilters(StrategyContract):
    def strategies(self):
        def credit():
            return with_part("transforms", "credit", scope="request")

        return Made([
            *(partial(with_part, "transforms", name) for name in TRANSFORMS),
            *(partial(with_part, "filters", name) for name in FILTERS),
            partial(with_part, "filters", "at_most", tokens=1),
            partial(with_part, "transforms", "ban_eot", "defer_eot"),
            partial(with_part, "transforms", "copy_prior", span=1, ahead=2),
            credit,
            lambda: replace(new("entropy_bound", bound=1.0), transforms=credit().transforms),
        ])  # fmt: skip

    def with_weight_zero(self):
        off = {"credit": "alpha", "credit_dinfer": "alpha", "copy_prior": "alpha"}
        off["left_repeat"] = "penalty"
        absent = new("threshold", stop="eot")
        return [(with_part("transforms", name, **{key: 0.0}), absent) for name, key in off.items()]


def test_stop_rules_that_need_a_filter_fit_only_strategies_that_have_one():
    assert {name for name in STRATEGIES if fits(name, "eot_accepted")} == {"learn2pd"}
    assert all(fits(name, stop) for name in STRATEGIES for stop in ("eot", "never"))
