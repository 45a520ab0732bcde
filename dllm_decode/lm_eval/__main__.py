"""`python -m dllm_decode.lm_eval`: the harness's command line; importing the package registers."""

from __future__ import annotations

from dllm_decode.lm_eval import main

if __name__ == "__main__":
    raise SystemExit(main())
