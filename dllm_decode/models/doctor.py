"""What would be loaded from where, whether it fits, and what stands in the way."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dllm_decode.decoding.types import Vocab
from dllm_decode.environment import version_of
from dllm_decode.errors import DllmDecodeError
from dllm_decode.models.blueprint import (
    Blueprint,
    blueprint,
    build_on_meta,
    check_sizes,
    editing_ids,
    end_ids,
    special_ids,
)
from dllm_decode.models.files import fit, memory_of, stored_tensors
from dllm_decode.models.locate import look_for
from dllm_decode.models.lora import read_adapter, wanted
from dllm_decode.models.placement import Placement, pick_device, pick_dtype, slow_on_processor
from dllm_decode.models.quantization import (
    Verdict,
    memory_by_kind,
    require_quantization,
    unpacks,
)

PACKAGES = (
    "dllm_decode",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "hydra-core",
    "omegaconf",
    "antlr4-python3-runtime",
    "accelerate",
    "peft",
    "torchao",
    "bitsandbytes",
    "triton",
    "lm_eval",
)
# Lowest tested version and the first one that is known or expected not to work.
_RANGES = {"torch": ((2, 8), None), "transformers": ((5, 20), (6,)), "hydra-core": ((1, 3), (1, 4))}


@dataclass(frozen=True)
class Finding:
    """Something a person should know.

    Attributes:
        text: What was found.
        fix: What to do about it.
        problem: Whether it stands in the way.

    Examples:
        >>> Finding("no GPU is visible", "install a CUDA build of torch", problem=False).text
        'no GPU is visible'
    """

    text: str
    fix: str
    problem: bool = True


@dataclass
class Examination:
    """The outcome of an examination.

    Attributes:
        facts: Name and value, in words.
        ids: Per special id what tokenizer, config.json and the configuration say, and what is used.
        findings: What a person should know.

    Examples:
        >>> Examination(findings=[Finding("no weights", "load them")]).healthy
        False
    """

    facts: dict[str, str] = field(default_factory=dict)
    ids: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Nothing stands in the way."""
        return not any(finding.problem for finding in self.findings)


def examine(settings: Mapping[str, Any]) -> Examination:
    """Look at this installation, this machine and the checkpoint, without loading its weights.

    Args:
        settings: The arguments of `load_model`; for other models (toy worlds), which have no
            `checkpoint`, only the installation is examined.
    """
    report = Examination()
    _examine_installation(report)
    place = _examine_device(report, settings)
    if "checkpoint" not in settings:
        report.facts["model"] = "computed, not loaded: there is no checkpoint to examine"
        return report
    try:
        asked = wanted(settings["checkpoint"], settings.get("adapters"))
    except DllmDecodeError as error:
        report.findings.append(Finding(str(error), "fetch what is missing, or name another"))
        return report
    folder = _examine_places(report, asked.checkpoint)
    if folder is None:
        return report
    if asked.adapters:
        report.facts["adapters"] = ", ".join(map(str, asked.adapters))
    try:
        plan = blueprint(folder, settings.get("ignore_settings") or (), adapters=asked.adapters)
        for adapter in asked.adapters or ():
            read_adapter(adapter)
        _examine_checkpoint(report, plan, settings, place)
    except DllmDecodeError as error:
        report.findings.append(Finding(str(error), "use a complete copy of a known checkpoint"))
    return report


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _examine_installation(report: Examination) -> None:
    report.facts["python"] = platform.python_version()
    for package in PACKAGES:
        found = version_of(package)
        report.facts[package] = found or "not installed"
        low, high = _RANGES.get(package, ((), None))
        if found and (_numbers(found) < low or (high is not None and _numbers(found) >= high)):
            bound = ".".join(map(str, low)) + (f",<{'.'.join(map(str, high))}" if high else "")
            report.findings.append(
                Finding(
                    f"{package} {found} is outside the tested range >={bound}",
                    f'pip install "{package}>={bound}"',
                )
            )
    report.findings += antlr_findings(version_of("antlr4-python3-runtime"), version_of("lm_eval"))


def antlr_findings(antlr: str | None, lm_eval: str | None) -> list[Finding]:
    """Hydra needs antlr4-python3-runtime 4.9, the math tasks of lm-eval need 4.11: never both.

    Args:
        antlr: Installed version of the runtime, None for none.
        lm_eval: Likewise of lm-eval.
    """
    if antlr is not None and _numbers(antlr)[:2] != (4, 9):
        return [
            Finding(
                f"antlr4-python3-runtime {antlr} is installed, but hydra reads command lines with "
                "4.9 only (the math tasks of lm-eval install 4.11)",
                'pip install "antlr4-python3-runtime==4.9.*", and keep lm-eval[math] in another '
                "environment",
            )
        ]
    if lm_eval is not None:
        return [
            Finding(
                f"lm_eval {lm_eval} is installed; its math tasks pin antlr4-python3-runtime 4.11, "
                "which breaks hydra",
                "install lm-eval without [math] here, or in another environment",
                problem=False,
            )
        ]
    return []


def _examine_device(report: Examination, settings: Mapping[str, Any]) -> torch.device:
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    report.facts["accelerators"] = ", ".join(names) or "none that torch can use"
    if not names and Path("/proc/driver/nvidia/version").exists():
        report.findings.append(
            Finding(
                "this machine has an NVIDIA driver, but the installed torch cannot use it",
                "install a CUDA build of torch, see pytorch.org",
                problem=False,
            )
        )
    try:
        place = pick_device(settings.get("device", "auto"))
    except DllmDecodeError as error:
        report.findings.append(Finding(str(error), "set model.device=auto"))
        place = torch.device("cpu")
    dtype = pick_dtype(settings.get("dtype", "auto"), place)
    report.facts["device and dtype"] = f"{place}, {str(dtype).removeprefix('torch.')}"
    if slow := slow_on_processor(dtype, place):
        remedy = "set model.dtype=auto, which is faster, in twice the memory"
        report.findings.append(Finding(slow, remedy, problem=False))
    return place


def _examine_places(report: Examination, checkpoint: str | Sequence[str] | None) -> Path | None:
    """The folder that would be loaded; notes every place that was looked at."""
    strict = isinstance(checkpoint, str)
    names: Sequence[str] = [checkpoint] if isinstance(checkpoint, str) else list(checkpoint or ())
    found = None
    for name in names:
        try:
            folder, reason = look_for(name)
        except DllmDecodeError as error:
            folder, reason = None, str(error)
        if found is None and folder is not None:
            found = folder
            report.facts[f"checkpoint {name}"] = f"would be loaded from {folder}"
        else:
            report.facts[f"checkpoint {name}"] = reason or f"there as well: {folder}"
    if found is None:
        looks_remote = strict and "/" in names[0] and not names[0].startswith((".", "/", "~"))
        report.findings.append(
            Finding(
                "no checkpoint to load: "
                + ("; ".join(report.facts[f"checkpoint {name}"] for name in names) or "none named"),
                f"with a network connection, loading downloads it; or: hf download {names[0]}"
                if looks_remote
                else "set model.checkpoint to a folder or a Hub id",
            )
        )
    return found


def _examine_checkpoint(
    report: Examination, plan: Blueprint, settings: Mapping[str, Any], place: torch.device
) -> None:
    published, spec = plan.published, plan.spec
    report.facts["architecture"] = f"{published.architecture} ({spec.family})"
    block = settings.get("block_length") or spec.block_length(published)
    whole = "causal in the order of decisions" if spec.reordered else "full"
    report.facts["attention"] = f"block-causal, blocks of {block}" if block else whole
    tensors = stored_tensors(plan.folder)
    check_sizes(plan, tensors)
    model = build_on_meta(plan)
    result = fit(tensors, model)
    share = result.matched / max(result.expected, 1)
    if plan.method is None:
        report.facts["tensors matched"] = f"{result.matched} of {result.expected} ({share:.1%})"
    if not result.complete and plan.method is None:
        report.findings.append(
            Finding(f"tensors do not fit config.json: {result}", "copy the checkpoint again")
        )
    stored = sum(tensor.bytes for tensor in tensors.values())
    count = sum(parameter.numel() for parameter in model.parameters())
    report.facts["parameters"] = f"{count:,}, {_gib(stored)} on disk"
    _examine_ids(report, plan, settings)
    kind = settings.get("quantization")
    needed = memory_of(tensors, _width(settings, place))
    if plan.method is not None:
        needed = count * _width(settings, place) if unpacks(plan.method, place) else stored
        report.facts["quantised by"] = plan.method
    elif kind is not None:
        needed = memory_by_kind(model, _width(settings, place)).get(kind, needed)
    _examine_quantization(report, plan, settings)
    _examine_memory(report, model, needed, settings, place)
    chat = plan.tokenizer.has_chat_template
    report.facts["chat template"] = "yes" if chat else "none: prompts are taken as they are"
    if chat:
        try:
            plan.tokenizer.check_template()
        except DllmDecodeError as error:
            report.findings.append(
                Finding(
                    str(error),
                    "use apply_chat_template=False (task.chat=false), or mend the template",
                )
            )


def _examine_quantization(
    report: Examination, plan: Blueprint, settings: Mapping[str, Any]
) -> None:
    names = ("dtype", "device", "attn_implementation", "device_map", "tensor_parallel")
    usual = ("auto", "auto", "sdpa", None, None)
    try:
        placement = Placement(*(settings.get(n, u) for n, u in zip(names, usual, strict=True)))
        require_quantization(settings.get("quantization"), plan.method, placement)
    except DllmDecodeError as error:
        report.findings.append(Finding(str(error), "set model.quantization=null, or as it says"))


def _width(settings: Mapping[str, Any], place: torch.device) -> int:
    """Bytes per number."""
    return pick_dtype(settings.get("dtype", "auto"), place).itemsize


def _examine_ids(report: Examination, plan: Blueprint, settings: Mapping[str, Any]) -> None:
    published, tokenizer, spec = plan.published, plan.tokenizer, plan.spec
    size = plan.settings["vocab_size"]
    asked = {name: settings.get(name) for name in ("mask_id", "eot_ids", "pad_id")}
    turn = [tokenizer.id_of(word) for word in spec.turn_end]
    told = {
        "mask_id": (_mask_of(plan), published.token("mask_token_id", size)),
        "eot_ids": (
            [token for token in (tokenizer.end_id, *turn) if token is not None] or None,
            published.tokens("eos_token_id", size),
        ),
        "pad_id": (tokenizer.pad_id, published.token("pad_token_id", size)),
    }
    try:
        given = (asked["mask_id"], asked["eot_ids"], asked["pad_id"])
        edits = settings.get("edit_ids")
        vocab = special_ids(plan, *given, settings.get("banned_ids") or (), edits)
        _examine_vocabulary(report, plan, vocab, editing_ids(plan, edits))
        used: Mapping[str, Any] = {
            "mask_id": vocab.mask_id,
            "eot_ids": vocab.eot_ids,
            "pad_id": vocab.pad_id,
        }
    except DllmDecodeError as error:
        report.findings.append(Finding(str(error), "set model.mask_id to an id of this tokenizer"))
        used = {"eot_ids": end_ids(plan)}
    for name, sources in told.items():
        values = (*sources, asked[name], used.get(name))
        report.ids[name] = tuple(map(_word, values))  # type: ignore[assignment]
    by_tokenizer, by_config = told["mask_id"]
    known = {value for value in (by_tokenizer, by_config, asked["mask_id"]) if value is not None}
    if len(known) > 1:
        report.findings.append(
            Finding(
                f"tokenizer, config.json and configuration name different mask ids: "
                f"{sorted(known)}",
                "set model.mask_id to the one the model was trained with",
            )
        )


def _mask_of(plan: Blueprint) -> int | None:
    """The mask as the tokenizer has it."""
    known = plan.tokenizer.id_of(plan.spec.mask_token or "")
    return plan.tokenizer.mask_id if known is None else known


def _examine_vocabulary(
    report: Examination, plan: Blueprint, vocab: Vocab, edits: Sequence[int]
) -> None:
    rows, known = plan.settings["vocab_size"], plan.tokenizer.ids
    named = f"{rows} in the model, " + (
        "no tokenizer" if known is None else f"{len(known)} in the tokenizer"
    )
    gap = rows - vocab.size + len(vocab.banned_ids)
    report.facts["token ids"] = named + (f"; {gap} are never generated" if gap else "")
    if edits:
        report.findings.append(
            Finding(
                f"the checkpoint edits its own text (ids {_word(edits)}), which is not done here",
                "nothing to do: it is decoded without inserting and deleting",
                problem=False,
            )
        )


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _examine_memory(
    report: Examination, model: Any, needed: int, settings: Mapping[str, Any], place: torch.device
) -> None:
    config = model.config
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = _width(settings, place)
    per_token = 2 * config.num_hidden_layers * heads * size * width
    there = free_memory(place)
    report.facts["memory for weights"] = f"{_gib(needed)} needed, {_gib(there)} free on {place}"
    for kind, size in memory_by_kind(model, width).items():
        report.facts[f"memory as {kind}"] = f"{_gib(size)}: {Verdict(size, there)}"
    report.facts["memory per cached token"] = f"{per_token / 2**10:,.0f} KiB"
    report.facts["memory per row of logits"] = f"{config.vocab_size * width / 2**10:,.0f} KiB"
    spread = settings.get("device_map") or settings.get("tensor_parallel")
    if needed > there and not spread:
        report.findings.append(
            Finding(
                f"the weights need {_gib(needed)}, but {place} has only {_gib(there)} free",
                "set model.dtype=bfloat16, model.quantization=int8 or nf4, model.device_map=auto "
                "(several devices, then disk) or model.tensor_parallel under torchrun",
            )
        )


def free_memory(place: torch.device) -> float:
    """Bytes that can still be allocated on a device; infinite where the system does not say."""
    if place.type == "cuda":
        return float(torch.cuda.mem_get_info(place)[0])
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return float(int(line.split()[1]) * 1024)
    return math.inf


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from path.read_text().splitlines()


def _gib(count: float) -> str:
    if math.isinf(count):
        return "an unknown amount"
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"
