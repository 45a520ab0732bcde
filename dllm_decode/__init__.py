"""A pluggable decoding-strategy framework for diffusion language models."""
