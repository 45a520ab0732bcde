"""Settings of every test run; choose a Hypothesis profile with HYPOTHESIS_PROFILE=ci."""

import os

import torch
from hypothesis import settings

# on few cores many small tensor operations are slower with threads than without
torch.set_num_threads(1)

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
