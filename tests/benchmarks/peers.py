"""Whole decodes here and in the loops of others: the same weights, prompts and rule, in turns.

    python tests/benchmarks/peers.py [--fast-dllm CHECKOUT] [--dinfer CHECKOUT]

Loops of Fast-dLLM (`llada/generate.py`) and dInfer (`python/dinfer`) run unchanged, from checkouts
of one's own; nothing of them is in this repository. Where no checkout is given, short loops of our
own that follow the published rules stand in: `float64` weighs candidates as Fast-dLLM's paper
says (in double precision, one after the other), `float32` as dInfer's (one comparison). A last line
says what the operators of our step cost without the Python around them.

Every loop calls the same weights through the calls that these projects make of a LLaDA model.
`--body` says which class their loops run: `lean`, the body that this project's own decodes have on
a processor, so that the loops alone are compared; or `stock`, the class of transformers, as those
who use them would (without a cache only). What is quoted is processor time of one thread:
per prompt, and per pass outside the forward pass (medians over rounds in turns). Tokens have to be
the same; where they are not, the table says in how many prompts. A cached loop of Fast-dLLM never
ends in one pass per block, which is why it needs more passes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # eager loops on both sides

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from dllm_decode import Request, load
from dllm_decode.decoding.loop import Run
from dllm_decode.models.lean import LeanModel
from dllm_decode.problems import TRAINED, problems

BLOCK, THRESHOLD = 32, 0.9


@dataclass
class Spent:
    """Seconds of processor time inside forward passes, and how many there were."""

    seconds: float = 0.0
    passes: int = 0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, with a look at the clock on both sides."""

        def inside(*given: Any, **named: Any) -> Any:
            begun = time.thread_time()
            result = call(*given, **named)
            self.seconds += time.thread_time() - begun
            self.passes += 1
            return result

        return inside


@dataclass
class Keys:
    """Stands in for the key/value store of a pass: keeps what it sees, or puts it among the rest.

    Attributes:
        past: what an earlier pass kept: a pair per layer, or an object that updates itself.
        place: the columns (B, L) bool or (begin, end) that are written over; None to append.
    """

    past: Any = None
    place: Any = None
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values that the layer attends to."""
        if self.past is None:
            self.seen.append((key, value))
            return key, value
        if hasattr(self.past, "update"):
            found: tuple[Tensor, Tensor] = self.past.update(key, value, layer, self.place)
            return found
        old_key, old_value = self.past[layer]
        if self.place is None:
            return torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
        begin, end = self.place
        return tuple(  # type: ignore[return-value]
            torch.cat([old[:, :, :begin], new, old[:, :, end:]], 2)
            for old, new in ((old_key, key), (old_value, value))
        )


class AsPeersCallIt:
    """The bundled model behind the calls that LLaDA's samplers make.

    Args:
        net: of transformers' interface.
        spent: where the time goes.
        flat: keys and values in one list, as dInfer keeps them, not in pairs.
    """

    def __init__(self, net: Any, spent: Spent, flat: bool) -> None:
        self.net, self.flat, self.device = net, flat, torch.device("cpu")
        self.answer = spent.timed(self._answer)

    def __call__(self, tokens: Tensor, **named: Any) -> Any:
        return self.answer(tokens, **named)

    def _answer(
        self,
        tokens: Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
        replace_position: Any = None,
    ) -> Any:
        begin, place = 0, replace_position
        if isinstance(place, Tensor):
            columns = place[0].nonzero()[:, 0]
            place = (int(columns[0]), int(columns[-1]) + 1)
        if place is not None:
            begin = place[0]
        elif past_key_values is not None:
            begin = past_key_values[0][0].shape[2]
        prefix = place is not None and place[1] - place[0] != tokens.shape[1]
        if prefix or (place is not None and hasattr(past_key_values, "seq_len")):
            # dInfer's prefix cache writes over everything from the block on
            place = (begin, begin + tokens.shape[1])
        keys = Keys(past_key_values, place) if use_cache or past_key_values is not None else None
        positions = torch.arange(begin, begin + tokens.shape[1])[None]
        hidden = self.net.model(
            input_ids=tokens,
            attention_mask=None,
            position_ids=positions,
            past_key_values=keys,
            **({} if isinstance(self.net, LeanModel) else {"use_cache": keys is not None}),
        ).last_hidden_state
        logits = self.net.lm_head(hidden)
        kept: Any = keys.seen if keys is not None else None
        if self.flat and kept:
            kept = [plane for pair in kept for plane in pair]
        return types.SimpleNamespace(logits=logits, past_key_values=kept)


# Loops of our own that follow the published rules.


def one_by_one(logits: Tensor, open_slots: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and commits: double precision, candidates in falling order until one falls short."""
    share, token = logits.double().softmax(-1).max(-1)
    share = share.masked_fill(~open_slots, float("-inf"))
    commit = torch.zeros_like(open_slots)
    for number, slot in enumerate(share[0].argsort(descending=True)[: int(open_slots.sum())]):
        if number and share[0, slot] < THRESHOLD:
            break
        commit[0, slot] = True
    return token, commit


def all_at_once(logits: Tensor, open_slots: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and commits: single precision, one comparison, which the best always passes."""
    share, token = logits.softmax(-1).max(-1)
    share = share.masked_fill(~open_slots, float("-inf"))
    level = share.amax(1, keepdim=True).clamp(max=THRESHOLD)
    return token, open_slots & (share >= level)


def restated(rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], cache: str) -> Any:
    """A block-by-block loop with a rule; cache: none, dual or prefix."""

    def decode(model: AsPeersCallIt, prompt: Tensor, length: int, mask: int) -> Tensor:
        x = torch.cat([prompt, torch.full((1, length), mask)], 1)
        for begin in range(prompt.shape[1], x.shape[1], BLOCK):
            block, past = slice(begin, begin + BLOCK), None
            while bool((open_slots := x[:, block] == mask).any()):
                if cache == "none":
                    logits = model(x).logits[:, block]
                elif past is None:
                    made = model(x, use_cache=True)
                    logits, past = made.logits[:, block], made.past_key_values
                    if cache == "prefix":
                        past = [(key[:, :, :begin], value[:, :, :begin]) for key, value in past]
                elif cache == "prefix":
                    logits = model(x[:, begin:], past_key_values=past).logits[:, :BLOCK]
                else:
                    place = (begin, begin + BLOCK)
                    logits = model(x[:, block], past_key_values=past, replace_position=place).logits
                token, commit = rule(logits, open_slots)
                x[:, block] = torch.where(commit, token, x[:, block])
        return x[:, prompt.shape[1] :]

    return decode


# The loops of others, from checkouts.


def fast_dllm(checkout: Path) -> dict[tuple[str, str], Any]:
    """Fast-dLLM's loops by cache."""
    stub = types.ModuleType("model.modeling_llada")
    stub.LLaDAModelLM = None  # type: ignore[attr-defined]
    sys.modules |= {"model": types.ModuleType("model"), "model.modeling_llada": stub}
    sys.path.insert(0, str(checkout / "llada"))
    import generate  # type: ignore[import-not-found]

    def loop(run: Any) -> Any:
        def decode(model: AsPeersCallIt, prompt: Tensor, length: int, mask: int) -> Tensor:
            made, _ = run(
                model, prompt, steps=length, gen_length=length, block_length=BLOCK,
                mask_id=mask, threshold=THRESHOLD,
            )  # fmt: skip
            found: Tensor = made[:, prompt.shape[1] :]
            return found

        return decode

    return {
        ("none", "Fast-dLLM"): loop(generate.generate),
        ("dual", "Fast-dLLM"): loop(generate.generate_with_dual_cache),
        ("prefix", "Fast-dLLM"): loop(generate.generate_with_prefix_cache),
    }


def dinfer(checkout: Path) -> dict[tuple[str, str], Any]:
    """dInfer's loops by cache, one iteration per look (`maximum_unroll=1`)."""
    for name in ("dinfer", "dinfer.decoding"):  # their own initialisation needs a GPU server
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / "python" / name.replace(".", "/"))]
        sys.modules[name] = package
    from dinfer.decoding import (  # type: ignore[import-not-found]
        generate_uniform,
        parallel_strategy,
        utils,
    )

    def loop(cache: str | None, rule: str) -> Any:
        def decode(model: AsPeersCallIt, prompt: Tensor, length: int, mask: int) -> Tensor:
            settings = {"temperature": 0, "threshold": THRESHOLD, "mask_id": mask, "eos_id": -1}
            rules = {
                "threshold": parallel_strategy.ThresholdParallelDecoder,
                "credit": parallel_strategy.CreditThresholdParallelDecoder,
            }
            store = cache and utils.KVCacheFactory(cache)
            runner = generate_uniform.BlockWiseDiffusionLLM(
                model, rules[rule](**settings), utils.BlockIteratorFactory(),
                early_stop=False, cache_factory=store or None, maximum_unroll=1,
            )  # fmt: skip
            found: Tensor = runner.generate(prompt, length, BLOCK)[:, prompt.shape[1] :]
            return found

        return decode

    return {
        ("none", "dInfer"): loop(None, "threshold"),
        ("dual", "dInfer"): loop("dual", "threshold"),
        ("prefix", "dInfer"): loop("prefix", "threshold"),
        ("credit", "dInfer"): loop(None, "credit"),
    }


# The comparison.


@dataclass
class Contender:
    """A loop and what it has cost."""

    group: str
    name: str
    decode: Callable[[Tensor], Sequence[int]]
    spent: Spent
    rounds: list[tuple[float, float, int]] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, prompts: Sequence[Tensor]) -> None:
        """One round over all prompts."""
        self.spent.seconds, self.spent.passes = 0.0, 0
        begun = time.thread_time()
        self.tokens = [tuple(self.decode(prompt)) for prompt in prompts]
        whole = time.thread_time() - begun
        self.rounds.append((whole, whole - self.spent.seconds, self.spent.passes))


def ours(group: str, length: int) -> Contender:
    """This project's decode with a cache, or with credit as dInfer sets it."""
    credit = [f"strategy.transforms.credit.{key}" for key in ("alpha=0.7", "beta=0.8", "gamma=0.2")]
    rule, cache = ("credit", "none") if group == "credit" else ("threshold", group)
    decoder = load(
        "llada",
        rule,
        cache=cache,
        overrides=["strategy/stop=never", *(credit if rule == "credit" else [])],
    ).decoder
    spent = Spent()

    def decode(prompt: Tensor) -> Sequence[int]:
        run = Run(decoder, Request((tuple(prompt[0].tolist()),), length))
        run.passes._run = spent.timed(run.passes._run)
        run.admit([0])
        while run.live:
            run.advance()
        return run.outcomes[0].tokens

    return Contender(group, "dllm_decode", decode, spent)


def operators_alone(prompt: Tensor, length: int, times: int) -> str:
    """What the operators of a step without a cache cost behind a forward pass, in words."""
    decoder = load("llada", "threshold", overrides=["strategy/stop=never"]).decoder
    run = Run(decoder, Request((tuple(prompt[0].tolist()),), length))
    run.admit([0])

    def step(values: Tensor) -> Tensor:
        check = run.follow(values)
        run.monitor.check(check)
        return check.counts

    spent = []
    with torch.inference_mode():
        plan = run.batch.plan()
        program = make_fx(step)(run.passes.ask(plan))  # a call per line, and nothing around them
        for _ in range(times):
            values = run.passes.ask(plan)
            begun = time.thread_time()
            program(values)
            spent.append(time.thread_time() - begun)
    count = sum(isinstance(node.target, torch._ops.OpOverload) for node in program.graph.nodes)
    return f"the {count} operators of our step alone: {1e3 * statistics.median(spent):.2f} ms"


def theirs(group: str, name: str, loop: Any, length: int, denoiser: Any) -> Contender:
    """Another loop over the same model."""
    spent = Spent()
    model = AsPeersCallIt(denoiser.model, spent, flat=name == "dInfer")
    mask = denoiser.vocab.mask_id

    @torch.no_grad()
    def decode(prompt: Tensor) -> Sequence[int]:
        found: list[int] = loop(model, prompt, length, mask)[0].tolist()
        return found

    return Contender(group, name, decode, spent)


def compared(group: Sequence[Contender], prompts: int) -> list[str]:
    """Lines of a Markdown table; the first contender is this project."""

    def median(one: Contender, place: int) -> float:
        return statistics.median(spent[place] for spent in one.rounds)

    base = group[0]
    lines = []
    for one in group:
        # of rounds next to each other, so that a machine that grows slower tells nothing
        turns = zip(one.rounds, base.rounds, strict=True)
        ratio = statistics.median(spent[0] / own[0] for spent, own in turns)
        same = sum(a == b for a, b in zip(one.tokens, base.tokens, strict=True))
        passes = one.rounds[0][2]
        lines.append(
            f"| {one.group} | {one.name} | {ratio:.2f} "
            f"| {1e3 * median(one, 1) / passes:.2f} ms | {median(one, 1) / median(one, 0):.1%} "
            f"| {passes / prompts:.2f} | {same} of {prompts} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Run the comparison; returns the lines of the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fast-dllm", type=Path, help="a checkout of NVlabs/Fast-dLLM")
    parser.add_argument("--dinfer", type=Path, help="a checkout of inclusionAI/dInfer")
    parser.add_argument("--body", choices=("lean", "stock"), default="lean")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=64, help="generated columns")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    loops: dict[tuple[str, str], Any] = {
        (cache, name): restated(rule, cache)
        for cache in ("none", "dual", "prefix")
        for name, rule in (("restated float64", one_by_one), ("restated float32", all_at_once))
    }
    loops |= fast_dllm(given.fast_dllm) if given.fast_dllm else {}
    loops |= dinfer(given.dinfer) if given.dinfer else {}
    decoder = load("llada", "threshold")
    families = list(TRAINED)
    texts = [
        problems(families[number % len(families)], "held_out", 1, seed=number)[0].prompt
        for number in range(given.prompts)
    ]
    prompts = [torch.tensor([decoder.encode(text)]) for text in texts]
    lines = [
        "| cache | loop | time per prompt | outside, per pass | share outside | passes | same |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    cached = ["dual", "prefix"] if given.body == "lean" else []
    body = load("llada", "threshold", overrides=[f"model.body={given.body}"]).decoder.denoiser
    for group in ("none", *cached, *(["credit"] if given.dinfer else [])):
        contenders = [ours(group, given.length)]
        contenders += [
            theirs(group, name, loop, given.length, body)
            for (cache, name), loop in loops.items()
            if cache == group
        ]
        for number in range(given.rounds + 1):
            for one in contenders:
                one.run(prompts)
                if number == 0:  # the first round warms up
                    one.rounds.clear()
        lines += compared(contenders, given.prompts)
    lines += ["", operators_alone(prompts[0], given.length, 40 * given.rounds)]
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
