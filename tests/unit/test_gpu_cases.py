"""What `pytest -m gpu` does, read without a GPU: what it compiles, what a card must hold."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is published for Linux only")

import kernel_properties as properties

from dllm_decode.kernels import fused

GPU_TESTS = Path(__file__).parents[1] / "gpu" / "test_kernels_on_gpu.py"
GIB = 2**30
# Programs that a property compiles for a new shape and dtype, seconds for each on a slow host.
PROGRAMS = {
    "check_statistics": 2, "check_parts_agree": 4, "check_permutation": 2, "check_draws": 2,
    "check_credit": 3, "check_selection": 1, "check_head": 3, "check_prediction": 4,
}  # fmt: skip
SECONDS = {"check_head": 5.0}
OTHERS = 160.0  # single tests, small models (one is compiled) and both benchmarks


@pytest.fixture(scope="module")
def drawn():
    """Every example that the properties draw there, by the check that it is given to."""
    spec = importlib.util.spec_from_file_location("kernels_on_gpu", GPU_TESTS)
    module = sys.modules["kernels_on_gpu"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {name: [] for name in PROGRAMS}
    patch = pytest.MonkeyPatch()
    for name, calls in found.items():
        patch.setattr(properties, name, lambda *given, calls=calls: calls.append(given))
    for name, test in vars(module).items():
        if name.startswith("test_") and hasattr(test, "hypothesis"):
            test()
    patch.undo()
    del sys.modules["kernels_on_gpu"]
    return found


def test_every_property_is_drawn_and_is_known_here(drawn):
    assert all(len(calls) >= 5 for calls in drawn.values())
    checks = {name for name in vars(properties) if name.startswith("check_")}
    assert checks - set(PROGRAMS) == {"check_frequencies", "check_unusable_rows"}


def variant(name, given):
    """What is the same for two examples for which the same programs are compiled."""
    if name == "check_selection":
        _, columns, strict, *_ = given
        return columns, strict
    case, _, *more = given
    if not case.rows:
        return None  # launches nothing
    if name == "check_head":
        return case.dtype, fused.head_layout(case.rows, case.vocabulary), given[1], case.bans > 0
    more = [value for value in more if not isinstance(value, float)]
    layout = fused.layout(case.rows, case.vocabulary)
    return case.dtype, layout, case.bans > 0, case.spare % 8 == 0, tuple(more)


def test_a_cold_run_compiles_for_less_than_ten_minutes(drawn):
    seconds = OTHERS
    for name, calls in drawn.items():
        different = len({variant(name, given) for given in calls})
        seconds += different * PROGRAMS[name] * SECONDS.get(name, 2.0)
    assert seconds < 600, f"{seconds:.0f} s"


def bytes_of(name, given):
    """The most that a check has on the device at once: the definition works in float64 planes."""
    if name == "check_selection":
        rows, columns, *_ = given
        return 64 * rows * columns
    case, second, *_ = given
    planes = 6 * 8 * case.rows * (case.vocabulary + case.spare)
    if name == "check_head":
        return planes + 3 * 8 * case.vocabulary * (second + case.spare)
    return planes


def test_a_card_of_eight_gigabytes_holds_every_case(drawn):
    largest = max(bytes_of(name, given) for name, calls in drawn.items() for given in calls)
    assert largest < 6 * GIB, f"{largest / GIB:.1f} GiB"
    assert largest > 0.1 * GIB, "a real vocabulary is among them"
