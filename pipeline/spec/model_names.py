"""Which networks a spec may name, without importing torch.

`pipeline/models/build.py` builds exactly these; tests hold the tables against torchvision.
"""

from __future__ import annotations

from typing import NamedTuple

CNNS = ("cnn2", "cnn3")

# family -> the attribute path of its classification layer, and torchvision's names for it
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "resnet": (
        "fc",
        ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    ),
    "resnext": ("fc", ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")),
    "regnet": (
        "fc",
        (
            *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_x_3_2gf", "regnet_x_8gf"),
            *("regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf", "regnet_y_3_2gf", "regnet_y_8gf"),
            *("regnet_x_16gf", "regnet_y_16gf"),
        ),
    ),
    "mobilenet": ("classifier.-1", ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large")),
    "efficientnet": (
        "classifier.-1",
        (
            *(f"efficientnet_b{i}" for i in range(8)),
            *("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
        ),
    ),
    "convnext": (
        "classifier.-1",
        ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
    ),
    "densenet": ("classifier", ("densenet121", "densenet161", "densenet169", "densenet201")),
    "vit": ("heads.-1", ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")),
    "swin": ("head", ("swin_t", "swin_s", "swin_b", "swin_v2_t", "swin_v2_s", "swin_v2_b")),
}

HEAD_OF: dict[str, str] = {name: head for head, names in FAMILIES.values() for name in names}

# where the resolution falls for the last time; of a vit, which keeps one, the last quarter of its layers
_LAST_STAGES: dict[str, str] = {
    "resnet": "layer4", "resnext": "layer4", "regnet": "trunk_output.block4", "efficientnet": "features.6",
    "mobilenet_v2": "features.14", "mobilenet_v3_small": "features.9", "mobilenet_v3_large": "features.13",
    "convnext": "features.6", "densenet": "features.transition3", "swin": "features.6",
    "vit_b": "encoder.layers.encoder_layer_9", "vit_l": "encoder.layers.encoder_layer_18",
}  # fmt: skip
LAST_STAGE_OF: dict[str, str] = {
    name: next(part for key, part in _LAST_STAGES.items() if key == family or name.startswith(key))
    for family, (_, names) in FAMILIES.items()
    for name in names
}

MODEL_NAMES: tuple[str, ...] = (*CNNS, *HEAD_OF)


class Preprocessing(NamedTuple):
    """What a network's input is: (value - mean) / std of RGB in [0, 1], channel by channel, and how it is resized."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    """`bilinear` or `bicubic`, antialiased: from the stored size to the network's."""


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# the networks whose published weights were trained on another input
OTHER_NORMALISATIONS = {"efficientnet_v2_l": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


def is_bicubic(name: str, weights: str) -> bool:
    """Whether torchvision resized the pictures of these weights (a name of its, or a file's path) bicubically."""
    by_name = name.startswith(("efficientnet_b", "efficientnet_v2_l", "swin"))
    return "SWAG" in weights or (by_name and (name, weights) != ("efficientnet_b1", "IMAGENET1K_V2"))
