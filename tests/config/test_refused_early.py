"""Values that a part refuses are told from its source, before torch is imported."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import run

import pytest
from omegaconf import OmegaConf

from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.config.early import check_values, fault_of
from dllm_decode.config.instantiate import build_node
from dllm_decode.config.rehearsal import Missing, MissingValue, Unanswered, refusal
from dllm_decode.decoding.types import Request
from dllm_decode.errors import ConfigError

REFUSED = [
    "strategy.select.threshold=7",
    "strategy=credit strategy.transforms.credit.alpha=-1",
    "strategy=factor strategy.select.factor=-1",
    "schedule.length=0",
    "cache=vicinity cache.before=-1",
    "sampler=categorical sampler.temperature=-1",
    "model=toy_copy model.n=-1",
    "prompt=a prompts=b",
]


def part_of(words):
    """The group whose part a setting belongs to."""
    last = words.split()[-1].partition("=")[0].partition(".")[0]
    return last if last in ("strategy", "schedule", "cache", "sampler", "model") else "task"


@pytest.mark.one_in(8)
@pytest.mark.parametrize("words", REFUSED)
def test_the_message_is_the_one_that_building_gives(words):
    cfg = compose_checked(words.split())
    with pytest.raises(ConfigError) as early:
        check_values(cfg)
    with pytest.raises(ConfigError) as built:
        build_node(cfg, part_of(words))
    assert str(early.value) == str(built.value)


@pytest.mark.slow
def test_no_option_of_any_group_is_refused():
    import dllm_decode.conf as package

    (folder,) = package.__path__
    for group in ("strategy", "schedule", "cache", "sampler", "model", "task"):
        for file in sorted((Path(folder) / group).glob("*.yaml")):
            if file.stem == "new":  # asks for a name, and has none
                continue
            node = OmegaConf.create({group: OmegaConf.load(file)})
            node[group].pop("defaults", None)
            check_values(node)


SOURCE = """
from __future__ import annotations
import math
from dataclasses import dataclass
import torch
from dllm_decode.errors import ConfigError, require_count
MOST = 5
@dataclass
class Base:
    a: int = 1
    def __post_init__(self) -> None:
        require_count("a", self.a)
        if self.a > MOST or math.isinf(self.a):
            raise ConfigError(f"a must be at most {MOST}")
@dataclass
class Heir(Base):
    b: object = None
@dataclass
class Busy(Base):
    def __post_init__(self) -> None:
        torch.empty(self.a)
        super().__post_init__()
"""


def test_what_the_source_does_not_tell_is_left_to_building(tmp_path, monkeypatch):
    (tmp_path / "their_early.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    assert str(fault_of("their_early.Heir", {"a": 0})) == "a must be a whole number >= 1, got 0"
    assert str(fault_of("their_early.Heir", {"a": 6})) == "a must be at most 5"
    for target, values in (
        ("their_early.Heir", {}),  # the default is fine
        ("their_early.Heir", {"a": 0, "b": {"_target_": "x.Y"}}),  # a part, and no value yet
        ("their_early.Busy", {"a": 0}),  # needs torch
        ("their_early.Missing", {"a": 0}),
        ("no_such_module.Thing", {"a": 0}),
    ):
        assert fault_of(target, values) is None
    assert "their_early" not in sys.modules


@pytest.mark.slow
def test_a_refused_value_is_told_without_torch(tmp_path):
    script = (
        "import sys, dllm_decode.cli as c\n"
        "codes = [c.main(w.split()) for w in ('strategy.select.threshold=7', 'length=0')]\n"
        "assert codes == [2, 2], codes\n"
        "print('torch' in sys.modules)"
    )
    done = run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "False", done.stderr
    assert "strategy.select.threshold must lie in" in done.stderr and not list(tmp_path.iterdir())


# Kinds of configuration errors, each of which only building, composing or loading could tell.
WHOLE = {
    "model.dtype=5": "must be a text",
    "model.dtype=int8": "model.dtype must be one of",
    "model.quantization=int3": "model.quantization must be one of",
    "model.attn_implementation=flash": "must be one of sdpa",
    "model.device_map=auto model.tensor_parallel=2": "exclude each other",
    "model.tensor_parallel=2": "start with torchrun",
    "model.compile=fast": "model.compile must be one of",
    "model.body=fat": "model.body must be one of",
    "model.body=lean model.attn_implementation=eager": "model.body=lean cannot be used",
    "model.threads=0": "model.threads must be",
    "model.device=gpu": "model.device must be",
    "model.mask_id=99999": "model.mask_id must lie in [0, 675]",
    "model.banned_ids=[-1]": "model.banned_ids must be ids",
    "model.block_length=32": "model.block_length is for block-causal models",
    "model.max_length=99999": "must not exceed the model's 256 positions",
    "model.checkpoint=nowhere": "model.checkpoint nowhere is not available",
    "model.checkpoint=bundled:no": "not in this installation",
    "model.checkpoint=[]": "is an empty list",
    "model=checkpoint": "model.checkpoint is not set",
    "model.adapters=[nowhere]": "adapter nowhere is not available",
    "cache=block_exact": "model (LLaDA) attends to the whole canvas",
    "model=toy_copy cache=dual": "model (Copy) has none",
    "model=llada_8b_base strategy=core cache=delayed": "strategy (Pipeline) revises",
    "strategy.transforms.credit.scope=request cache=dual": "reads predictions outside",
    "schedule=adablock cache=dual": "schedule (AdaptiveBlocks) reads",
    "strategy=adjust cache=dual": "has a drafter",
    "strategy=adjust model=toy_copy": "was trained for the model",
    "strategy=learn2pd length=16": "was made for blocks of 32",
    "strategy=learn2pd strategy.select.weights=no": "filter no was not found",
    "sync_every=0": "sync_every must be",
    "kernels=no": "kernels must be one of",
    "guidance=-1": "guidance must lie in",
    "prompt=a max_new_tokens=1000": "more than the 256 positions",
    "task=eval task.data=nofile.jsonl": "nofile.jsonl cannot be read",
    "task=eval task.families=[no]": "task.families must be",
    "task=eval task.devices=[x]": "task.devices must name cpu or a device",
    "task=chat cache=block_exact": "attends to the whole canvas",
    "task=bench bench=decoding cache=block_exact": "attends to the whole canvas",
    "task=train_filter schedule=whole": "needs a block grid",
    "task=train_drafter cache=block_exact": "attends to the whole canvas",
    "task=distill schedule=whole": "needs a block grid",
    "task=compare task.against=cache=block_exact": "attends to the whole canvas",
    "task=compare task.against=batch_size=0": "batch_size must be",
    "task=compare task.against=seed=-1": "seed must be",
    "task=compare task.against=batching=no": "batching must be",
    "task=compare task.against=seed=1 prompts=nowhere": "cannot read the prompts file nowhere",
    "task=compare task.against=seed=1 max_new_tokens=999 prompt=a": "more than the 256 positions",
    "task=compare task.against=batch_size=16": "task.against must change something",
    "task=compare runs=[nowhere,there]": "cannot read the trace nowhere: there is no such file",
    "task=export runs=nowhere": "cannot read the trace nowhere: there is no such file",
    "task=report task.runs=nowhere": "must be a folder of evaluation runs",
}


def without_torch(lines, folder):
    """What the command line says of each of some lines, in one process that never had torch."""
    script = (
        "import contextlib, io, json, sys, dllm_decode.cli as c\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        code = c.main(words.split())\n"
        "    assert code in (1, 2), (code, words)\n"
        "    print(json.dumps([said.getvalue(), 'torch' in sys.modules]))"
    )
    words = [sys.executable, "-c", script, json.dumps(list(lines))]
    done = run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_what_parts_and_models_refuse_together_is_told_without_torch(tmp_path):
    some = (
        "model.dtype=5",
        "model.mask_id=99999",
        "strategy=adjust cache=dual",
        "model.device=gpu",
    )
    for words, (said, has_torch) in zip(some, without_torch(some, tmp_path), strict=True):
        assert (WHOLE[words] in said, has_torch) == (True, False), (words, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_kind_of_configuration_error_is_told_without_torch(tmp_path):
    for words, (said, has_torch) in zip(WHOLE, without_torch(WHOLE, tmp_path), strict=True):
        assert (WHOLE[words] in said, has_torch) == (True, False), (words, said)


def options(group):
    import dllm_decode.conf as package

    return sorted(file.stem for file in (Path(package.__path__[0]) / group).glob("*.yaml"))


COMPOSE = """
import json, sys
from dllm_decode.cli import main
from dllm_decode.config.compose import compose_checked
from dllm_decode.errors import DllmDecodeError
from dllm_decode.config.rehearsal import StandIns, Unanswered
from dllm_decode.tasks import rehearsed
cfgs = [compose_checked(words.split()) for words in json.loads(sys.argv[1])]
if sys.argv[2] == "stand-ins":
    sys.meta_path.insert(0, StandIns())
    rehearsed.refusal = lambda *steps: steps[-1]()
    def asked(cfg):
        rehearsed.refuse_early(cfg)
else:
    from dllm_decode.api import build, check_before_loading
    from dllm_decode.config.instantiate import build_node
    models = {}
    def asked(cfg):
        check_before_loading(cfg)
        name = cfg.model._target_
        models.setdefault(name, build_node(cfg, "model"))
        build(cfg, model=lambda: models[name])
for cfg in cfgs:
    try:
        asked(cfg)
        print(json.dumps(None))
    except DllmDecodeError as error:
        print(json.dumps(str(error)))
    except Unanswered:
        print(json.dumps("?"))
"""


@pytest.mark.slow
def test_a_rehearsal_refuses_what_composing_refuses_and_nothing_else(tmp_path):
    lines = [
        f"strategy={strategy} cache={cache} {rest}"
        for n, strategy in enumerate(options("strategy"))
        for cache in ("none", *options("cache")[n % 4 :: 4])
        for rest in (
            (
                "sampler=categorical",
                "model=toy_copy",
                "schedule=sliding",
                "schedule=whole guidance=1",
            )[n % 4],
        )
    ]
    told = []
    for how in ("stand-ins", "really"):
        words = [sys.executable, "-c", COMPOSE, json.dumps(lines), how]
        done = run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told.append([json.loads(line) for line in done.stdout.splitlines()])
    early, really = told
    wrong = [
        (line, one, two)
        for line, one, two in zip(lines, early, really, strict=True)
        if one not in (two, "?")
    ]
    assert not wrong and early.count("?") <= 0.1 * len(lines)
    assert any(really) and None in really


def test_a_stand_in_answers_no_question():
    torch = Missing()
    assert torch.no_grad()(torch) is not None and torch.Tensor | None is not None
    value = torch.zeros(3)
    for question in (
        lambda: bool(value), lambda: value > 0, lambda: value == 0, lambda: list(value),
        lambda: value[0], lambda: value + 1, lambda: 2 * value, lambda: isinstance(value, int),
        lambda: float(value.mean()), lambda: len(value.shape), lambda: f"{value}",
        lambda: isinstance(value, torch.Tensor), lambda: value in (1, 2), lambda: -value,
        lambda: {**value}, lambda: value.__enter__(), lambda: torch.cuda.is_available() and 1,
    ):  # fmt: skip
        with pytest.raises((Unanswered, AttributeError)):
            question()
    assert not isinstance(5, torch.Tensor)  # whatever is not missing is of another kind
    assert isinstance(torch, Missing) and issubclass(MissingValue, Missing)


@pytest.mark.slow
def test_parts_of_other_packages_are_imported_once(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from dllm_decode.strategies.threshold import ConfidenceThreshold\n"
        "with Path('imports').open('a') as file: file.write('once ')\n"
        "class Mine(ConfidenceThreshold): pass\n"
    )
    words = "strategy.select._target_=mine.Mine model=toy_copy prompt=abc display=plain runs=runs"
    script = "import sys; from dllm_decode.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", script, *words.split()]
    done = run(
        line, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imports").read_text() == "once "


def test_nothing_is_rehearsed_where_torch_is_there_already():
    import torch  # noqa: F401

    def refuse():
        raise ConfigError("no")

    assert refusal(refuse) is None


REHEARSE = """
import os, sys, time
from dllm_decode.config import rehearsal
from dllm_decode.errors import CapabilityError
rehearsal._SECONDS = 0.3
def refuse(): raise CapabilityError("these do not fit")
def stumble(): import torch; torch.ones(1).item() == 1
def fail(): raise RuntimeError("another fault")
def hang(): time.sleep(60)
def die(): os._exit(3)
told = [rehearsal.refusal(*steps) for steps in
        ((refuse,), (stumble, fail, refuse), (stumble,), (fail,), (die, refuse), (hang, refuse))]
print(told, "torch" in sys.modules)
"""


@pytest.mark.slow
def test_a_rehearsal_that_fails_dies_or_hangs_says_nothing():
    done = run([sys.executable, "-c", REHEARSE], capture_output=True, text=True, timeout=30)
    no = "CapabilityError('these do not fit')"
    assert done.stdout.strip() == f"[{no}, {no}, None, None, None, None] False", done.stderr


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("display=null", "display must be one of its options, got null; display has auto, "),
        ("task=[generate]", r"task must be one of its options, got \[generate\]; task has "),
        ("strategy=[]", r"strategy must be one of its options, got \[\]; strategy has "),
        ("strategy/transforms=null", "strategy/transforms must be one or a list of its options"),
        ("strategy/stop={a: 1}", "strategy/stop must be one or a list of its options, got {a: 1}"),
        (
            "strategy/transforms=[defer_eot,credit,credit_dinfer]",
            "strategy/transforms has credit and credit_dinfer, which both are "
            r"strategy\.transforms\.credit; give one of them",
        ),
    ],
)
def test_a_group_takes_the_names_of_its_options(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_checked([word])


def test_a_run_folder_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=toy_copy", "hydra.run.dir="]) == 2
    assert "hydra.run.dir must name a folder, got an empty text" in capsys.readouterr().err


def test_a_row_has_no_more_columns_than_any_canvas() -> None:
    with pytest.raises(ConfigError, match="max_new_tokens must be at most 1048576, got 1048577"):
        Request(((1,),), 2**20 + 1)
