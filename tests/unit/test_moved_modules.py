"""What other people's plugins imported from the first edition still works, with a message."""

import importlib
import subprocess
import sys

import pytest

import dllm_decode


@pytest.mark.parametrize("name", sorted(dllm_decode._MOVED))
def test_a_module_answers_under_its_old_name_and_says_where_it_is(name):
    sys.modules.pop(f"dllm_decode.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"dllm_decode.{name} is now dllm_decode."):
        old = importlib.import_module(f"dllm_decode.{name}")
    for public in old.__all__:
        since = dllm_decode._MOVED_NAMES.get(name, {}).get(public)
        home = f"decoding.{since}" if since else dllm_decode._MOVED[name]
        new = importlib.import_module(f"dllm_decode.{home}")
        assert getattr(old, public) is getattr(new, public)


def test_an_old_import_line_gives_the_same_objects():
    sys.modules.pop("dllm_decode.selection", None)
    with pytest.warns(DeprecationWarning, match="selection"):
        from dllm_decode.selection import best
    from dllm_decode.decoding import selection

    assert best is selection.best


def test_a_module_that_never_existed_is_still_missing():
    with pytest.raises(ModuleNotFoundError, match="seletcion"):
        importlib.import_module("dllm_decode.seletcion")


def test_importing_the_package_imports_no_torch():
    code = "import sys, dllm_decode; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
