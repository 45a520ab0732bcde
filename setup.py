"""Refuses to build half a package; everything else about packaging is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

package = Path(__file__).resolve().parent / "dllm_decode"
missing = [name for name in ("conf", "strategies") if not (package / name).is_dir()]
if missing:
    raise SystemExit(
        f"dllm_decode/{' and dllm_decode/'.join(missing)} must be links to folders, but this copy "
        "of the project was made without symbolic links. Clone it again with\n\n"
        "    git clone -c core.symlinks=true <repository>\n\n"
        "(on Windows with the developer mode switched on, which allows links), or install a "
        "wheel that was built elsewhere."
    )
setup()
