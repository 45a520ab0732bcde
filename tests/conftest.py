"""Settings of every test run: threads, and how many examples Hypothesis draws.

Profiles: `default` draws few, `thorough` ten times as many; chosen by HYPOTHESIS_PROFILE=thorough
or `--hypothesis-profile=thorough`. Both draw the same examples in every run, so that a failure is
there for everybody.
"""

import os
import random
import sys

# One thread per process, processes of the tests included, unless the user says otherwise: workers
# share the cores already, and on small tensors threads cost more than they bring. Read once, when
# torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from drawing import load_profiles

load_profiles(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_setup() -> None:
    """Numbers drawn without a seed are the same whichever tests ran before, in whatever worker."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
