"""`task=new`: a plugin package of one's own, whose tests pass at once."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

from dllm_decode.errors import ConfigError, require_choice
from dllm_decode.tasks import Context, Task

HERE = Path(__file__).parent / "new_package"

# Where an option of each kind stands, and how a person chooses it.
KINDS = {
    "select": ("strategy/select", "strategy={name}"),
    "transform": ("strategy/transforms", "strategy=threshold 'strategy/transforms=[{name}]'"),
    "filter": ("strategy/filters", "strategy=threshold 'strategy/filters=[{name}]'"),
    "stop": ("strategy/stop", "strategy=threshold 'strategy/stop=[eot,{name}]'"),
    "schedule": ("schedule", "strategy=threshold schedule={name}"),
    "cache": ("cache", "strategy=threshold cache={name}"),
}
# Two values of the field that each kind has, for a sweep over it.
SWEPT = {
    "select": "strategy.select.threshold=0.7,0.9",
    "transform": "strategy.transforms.{name}.weight=0.5,1.0",
    "filter": "strategy.filters.{name}.margin=0.1,0.2",
    "stop": "strategy.stop.{name}.limit=32,64",
    "schedule": "schedule.width=16,32",
    "cache": "cache.around=8,16",
}


@dataclass(frozen=True)
class New(Task):
    """Writes a plugin package: the class, its YAML file, a test, a project file and a README.

    Attributes:
        name: What the option will be called, in words of small letters joined by `_`; the class is
            called alike, `my_rule` gives `MyRule`.
        kind: `select`, `transform`, `filter`, `stop`, `schedule` or `cache`.
        output: The folder to write, which must not exist; null takes the name.

    Examples:
        >>> sorted(New(name="my_rule", kind="cache").files)[1:3]
        ['my_rule/__init__.py', 'my_rule/conf/__init__.py']
    """

    name: str | None = None
    kind: str = "select"
    output: str | None = None

    def __post_init__(self) -> None:
        if self.name is None:
            raise ConfigError("task.name is missing; say what the option will be called: my_rule")
        plain = isinstance(self.name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", self.name)
        if not plain or keyword.iskeyword(self.name):
            raise ConfigError(
                "task.name must be small letters, digits and _, begin with a letter, and be no "
                f"word of Python, got {self.name!r}"
            )
        require_choice("task.kind", self.kind, tuple(KINDS))

    @property
    def files(self) -> dict[str, str]:
        """The text of each file, by its place in the folder."""
        name, (group, choice) = str(self.name), KINDS[self.kind]
        title = "".join(word.capitalize() for word in name.split("_"))
        words = {
            "name": name,
            "title": title,
            "kind": self.kind,
            "group": group,
            "choice": choice.format(name=name),
            "swept": SWEPT[self.kind].format(name=name),
            "project": name.replace("_", "-").strip("-"),
        }
        places = {
            "pyproject.toml": "pyproject.toml.txt",
            "README.md": "README.md.txt",
            f"{name}/__init__.py": f"kinds/{self.kind}.py.txt",
            f"{name}/conf/__init__.py": None,
            f"{name}/conf/{group}/{name}.yaml": f"kinds/{self.kind}.yaml.txt",
            f"tests/test_{name}.py": f"kinds/{self.kind}_test.py.txt",
        }
        return {place: _filled(source, words) for place, source in places.items()}

    def run(self, context: Context) -> int:
        """Write the package; raises `ConfigError` where name or folder is taken."""
        taken = _taken(KINDS[self.kind][0], str(self.name))
        if taken:
            raise ConfigError(f"task.name={self.name} is the name of {taken}; take another one")
        folder = Path(self.output or str(self.name))
        _write(folder, self.files)
        context.display.say(f"written: {folder}/")
        for place in self.files:
            context.display.say(f"  {place}")
        context.display.say(
            f"its tests pass as they are:  cd {folder} && python -m pytest\n"
            f"the rule itself:             {folder}/{self.name}/__init__.py\n"
            f"what to type, and what next: {folder}/README.md"
        )
        return 0


def _filled(source: str | None, words: dict[str, str]) -> str:
    """A template with its words in place; the empty text without one."""
    if source is None:
        return ""
    return Template((HERE / source).read_text(encoding="utf-8")).substitute(words)


def _taken(group: str, name: str) -> str:
    """What is called like this already, in words; empty if nothing is."""
    from importlib.util import find_spec

    from dllm_decode.config.compose import hydra_application

    app = hydra_application()
    for taken in (group, "strategy"):  # strategy=NAME is one of select only where none is here
        if name in app.options(taken):
            return f"an option of the group {taken}"
    if find_spec(name) is not None:
        return f"a module that can be imported ({name})"
    return ""


def _write(folder: Path, files: dict[str, str]) -> None:
    """All files or none; raises `ConfigError` where the folder is there or cannot be written."""
    import shutil
    import tempfile

    if folder.exists():
        raise ConfigError(f"task.output: {folder} exists already; say another folder or name")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"task.output: {folder} cannot be written: {error.strerror}") from None
    try:
        for place, text in files.items():
            target = draft / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        draft.chmod(0o755)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ConfigError(f"task.output: {folder} cannot be written: {error.strerror}") from None
