"""The colour changes of MoCo v2's views, at the strengths of its authors; tests add what else they need."""

from dist_ssl.data.images.views import Augmentation

MOCO = Augmentation(
    crop_min=0.2,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=0.8,
    gray_p=0.2,
    blur_p=0.5,
    solarize_p=0.2,
)
