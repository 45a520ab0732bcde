"""Row statistics of logits: the plain-torch definition and, beside it, fused kernels."""
