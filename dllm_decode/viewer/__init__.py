"""The page that plays a trace; see `dllm_decode.trace.player`."""
