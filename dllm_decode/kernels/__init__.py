"""Row statistics of logits: the plain-torch definition, fused kernels, and the choice of one.

`reference` defines, `fused` holds the Triton twins, `dispatch` picks per call.
"""
