"""The two small CNNs of the original work."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.heads import Features, without_maps
from pipeline.spec import ModelSpec


def _cnn2(num_labels: int, image_px: int) -> nn.Module:
    """The original work's smaller network: 3x3 convolutions with padding 1, one pooling, one linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (image_px // 2) ** 2, num_labels),
    )  # fmt: skip


def _cnn3(num_labels: int, image_px: int) -> nn.Module:
    """The original work's larger network, with a third convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Conv2d(20, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (image_px // 2) ** 2, num_labels),
    )  # fmt: skip


OWN_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"cnn2": _cnn2, "cnn3": _cnn3}


class OwnNetworks:
    """`cnn2` and `cnn3`: a sequence of layers, the last of them linear."""

    def build(self, model: ModelSpec, num_labels: int, image_px: int) -> nn.Module:
        """Of any size."""
        return OWN_NETWORKS[model.name](num_labels, image_px)

    def head_path(self, net: nn.Module, name: str) -> str:
        """The last layer."""
        return [key for key, _ in net.named_children()][-1]

    def last_stage(self, net: nn.Module, name: str) -> str:
        """There is none, as the spec says too."""
        raise TrainingError(f"{name} has no stages; write trainable: all or head")

    def own_names(
        self, net: nn.Module, model: ModelSpec, state: dict[str, Tensor], image_px: int
    ) -> dict[str, Tensor]:
        """As they are."""
        return state

    def take_unpooled(self, net: nn.Module, model: ModelSpec, image_px: int) -> Features:
        """There are none, as the spec says too."""
        raise without_maps(model.name, model.head.name)
