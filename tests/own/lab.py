"""A package of a user's own: written into a project, and what is wrong with it in other versions."""

NETS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_labels, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_labels)

    def forward(self, images):
        return self.head(self.body(images).mean(dim=(2, 3)))


def build(num_labels, image_px, width=8):
    return Small(num_labels, width)
"""

# its head is given maps and pools them itself
POOLING = """
from torch import nn


class Mean(nn.Module):
    def forward(self, tokens):
        return tokens.mean(dim=1)


class Small(nn.Module):
    def __init__(self, num_labels, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_labels))

    def forward(self, images):
        return self.head(self.body(images))


def build(num_labels, image_px, width=12):
    return Small(num_labels, width)
"""

LOSSES = """
from torch.nn import functional


def bce(logits, targets, *, factor=1.0):
    return factor * functional.binary_cross_entropy_with_logits(logits, targets)
"""

CHANGES = """
import torch


def noise(images, generator, strength=0.1):
    drawn = torch.rand(images.shape, generator=generator, device=images.device)
    return images + strength * (drawn - 0.5)
"""

FILES = {"mylab/nets.py": NETS, "mylab/losses.py": LOSSES, "mylab/changes.py": CHANGES}
MODEL = {"name": "mylab.nets:build"}
LOSS = {"name": "mylab.losses:bce"}
AUGMENT = {"own": {"name": "mylab.changes:noise"}}


def write(root, **changed):
    """The package in a project; `nets="..."` has another text in place of that module's."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(path.stem, text))
