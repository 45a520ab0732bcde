"""What `--help` says: every group with its options, and every setting with its meaning."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from importlib.resources import files

CONF = "dllm_decode.conf"
# A setting of a configuration file, with the comment behind it.
_SETTING = re.compile(r"^( *)(\w+): ([^#$\n]*?) *# (.+)$", re.MULTILINE)
# Files whose settings are shown: those of the parts that run without further words.
_PARTS = {
    "strategy.select": "strategy/select/threshold",
    "strategy.transforms.credit": "strategy/transforms/credit",
    "schedule": "schedule/blocks",
    "sampler": "sampler/categorical",
    "model": "model/checkpoint",
    "task": "task/generate",
}
_EXAMPLES = """
  python -m dllm_decode strategy=credit model=llada
  python -m dllm_decode strategy=threshold threshold=0.8 prompt="Sort: 1 Eva 2 Ben 3 Cleo"
  python -m dllm_decode strategy=entropy_bound 'strategy/transforms=[credit]' prompts=questions.txt
  python -m dllm_decode model=GSAI-ML/LLaDA-8B-Instruct temperature=0.7     (a Hub id or a folder)
  python -m dllm_decode model=toy_shuffle sampler=categorical schedule=whole display=plain
  python -m dllm_decode -m strategy=threshold,credit threshold=0.7,0.9     (a sweep)
"""
_FLAGS = """
  --version            the version of this package
  --cfg job            show the composed configuration, every setting of it, and stop
  --config-dir FOLDER  look for options there, too
  -m                   a sweep: every combination of values separated by commas
  --hydra-help         the flags of Hydra, which composes all this
  debug=true           errors with their traceback
"""


def help_text(groups: Sequence[str], options: Callable[[str], Sequence[str]]) -> str:
    """The text of `--help`, as wide as the terminal.

    Args:
        groups: Every group, inner ones included.
        options: Gives the options of a group, those of other packages included.
    """
    width = min(120, shutil.get_terminal_size((100, 0)).columns)
    lines = ["dllm_decode: decoding strategies for diffusion language models", ""]
    lines += ["usage: python -m dllm_decode [group=option ...] [key=value ...]", ""]
    lines += ["Examples", _EXAMPLES, "Groups and their options (group=option)", ""]
    for group in groups:
        lines += _wrapped(f"{group}: ", ", ".join(options(group)), width)
    lines += ["", "Settings (key=value)", ""]
    lines += _settings("", "config", width)
    lines += ["", "Settings of parts (key=value), here those of some; each option has its own", ""]
    for place, name in _PARTS.items():
        lines += _settings(f"{place}.", name, width)
    return "\n".join([*lines, "", "Flags", _FLAGS])


def _settings(prefix: str, name: str, width: int) -> list[str]:
    """The settings of one configuration file that say what they mean."""
    text = (files(CONF) / f"{name}.yaml").read_text(encoding="utf-8")
    found = [
        (f"{prefix}{key}={value}", about)
        for indent, key, value, about in _SETTING.findall(text)
        if prefix or not indent  # what is deeper at the top belongs to Hydra
    ]
    return [line for key, about in found for line in _wrapped(f"{key}  ", about, width)]


def _wrapped(head: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        f"{head.ljust(36) if head.endswith('  ') else head}{text}",
        max(width, 40),
        initial_indent="  ",
        subsequent_indent=" " * (38 if head.endswith("  ") else 6),
        break_on_hyphens=False,
    )
