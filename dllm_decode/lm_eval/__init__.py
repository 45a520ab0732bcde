"""lm-evaluation-harness as a client: `python -m dllm_decode.lm_eval run --model dllm_decode ...`.

Needs the extra `lm-eval`. Importing this package registers the model `dllm_decode`; harness
versions that scan the entry point group `lm_eval.models` find it by themselves.
"""

from dllm_decode.lm_eval.answers import Answer, Cost
from dllm_decode.lm_eval.command import main, simple_evaluate
from dllm_decode.lm_eval.likelihood import log_likelihood
from dllm_decode.lm_eval.model import HarnessModel

__all__ = ["Answer", "Cost", "HarnessModel", "log_likelihood", "main", "simple_evaluate"]
