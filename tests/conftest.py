"""Settings of every test run: threads, and how many examples Hypothesis draws.

Profiles: `default` draws few, `thorough` many; chosen by HYPOTHESIS_PROFILE=thorough
or `--hypothesis-profile=thorough`. Both draw the same examples in every run, so that a failure is
there for everybody.
"""

import gc
import os
import random
import sys

import pytest

# One thread per process, processes of the tests included, unless the user says otherwise: workers
# share the cores already, and on small tensors threads cost more than they bring. Read once, when
# torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from drawing import load_profiles, profile

load_profiles(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Importing and collecting make millions of objects that stay: to look through them again and again
# for garbage took a good part of a run.
gc.disable()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All but every n-th case of a test marked `one_in(n)` are slow, in a thorough run none.

    With `across_classes` cases are those of all classes that inherit the test, and one test begins
    with another class than the next, so that each class keeps some of its tests.
    """
    if profile() == "thorough":
        return
    # files whose cases a thorough run beside this one takes, all of them; .ci/run names them
    thoroughly = set(os.environ.get("RUN_THOROUGHLY", "").split())
    seen: dict[str, int] = {}
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is None:
            continue
        across = mark.kwargs.get("across_classes", False)
        function = item.name if across else item.nodeid.partition("[")[0]
        place = seen[function] = seen.get(function, len(seen) if across else -1) + 1
        if place % mark.args[0] and item.nodeid.partition("::")[0] not in thoroughly:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """From here on garbage is collected, among what the tests make."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    """Otherwise libraries would report the frozen objects as leaks when the process ends."""
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    """Numbers drawn without a seed are the same whichever tests ran before, in whatever worker."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
