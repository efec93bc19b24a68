"""Numbers that the reference of colours, the loops for CPUs and the kernels for GPUs have in common.

The cache of compiled loops knows the text of `photometric_cpu.py` alone: after a change here, remove `__pycache__`.
"""

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R 601, as torchvision rounds them."""
BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)
"""Parts of the jitter, and what stands in the order of parts for one that is left out."""
PARTS = 4
REACH = 5.5
"""Number of standard deviations at which a Gaussian is cut off: the rest is below the resolution of float32."""
