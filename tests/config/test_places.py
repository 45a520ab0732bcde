"""Parts name their fields; where a part stands, under which name, the configuration says."""

import ast
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

import dllm_decode
from dllm_decode.config.instantiate import build_node
from dllm_decode.errors import ConfigError

ROOT = Path(dllm_decode.__file__).parent
AT_MOST = "{_target_:dllm_decode.strategies.at_most.AtMost,tokens:0}"
BANS = "{_target_:dllm_decode.strategies.suppress.BanTokens,ids:[]}"
EARLY = "{_target_:dllm_decode.strategies.eot.PredictedEot,threshold:2}"


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.select.threshold=2"], r"strategy.select.threshold must lie in [0.0, 1.0]"),
        ([f"+strategy.filters.mine={AT_MOST}"], "strategy.filters.mine.tokens must be a whole"),
        ([f"+strategy.transforms.quiet={BANS}"], "strategy.transforms.quiet.ids must be null"),
        ([f"+strategy.stop.early={EARLY}"], "strategy.stop.early.threshold must lie in"),
        (["strategy=dream", "strategy.select.eps=1"], "strategy.select.eps must lie in (0.0, 1.0)"),
        (["sampler=categorical", "sampler.top_p=0"], "sampler.top_p must lie in (0.0, 1.0]"),
        (["schedule.length=0"], "schedule.length must be a whole number >= 1, got 0"),
        (["cache=vicinity", "cache.before=-1"], "cache.before must be a whole number >= 0"),
    ],
)
def test_a_refused_value_is_named_by_the_key_under_which_it_stands(overrides, message):
    with initialize_config_module("dllm_decode.conf", version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    with pytest.raises(ConfigError) as refused:
        for node in ("strategy", "sampler", "schedule", "cache"):
            build_node(cfg, node)
    assert str(refused.value).startswith(message)


def words_of(path):
    """Texts of a module other than docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in documents:
            yield node.value


@pytest.mark.parametrize("path", sorted((ROOT / "strategies").glob("*.py")), ids=lambda p: p.stem)
def test_no_strategy_says_where_it_stands(path):
    assert not [text for text in words_of(path) if "strategy." in text]
