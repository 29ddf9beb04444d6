"""What every kind of network answers, so that nothing else knows the names of networks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from pipeline.models.heads import Features
from pipeline.spec import ModelSpec

# B batch, K labels


class Kind(Protocol):
    """A source of networks: our own, torchvision, timm, users' code. A function of the name and the network."""

    def build(self, model: ModelSpec, num_labels: int, image_px: int) -> nn.Module:
        """A network (B, 3, image_px, image_px) -> logits (B, num_labels), drawn from torch's global seed.

        Raises TrainingError where it cannot work at `image_px`.
        """
        ...

    def head_path(self, net: nn.Module, name: str) -> str:
        """Where the one layer lies that makes logits of features, a dotted path; what replaced it lies there too."""
        ...

    def last_stage(self, net: nn.Module, name: str) -> str:
        """The first part after the last loss of resolution, or of the last quarter of equal layers."""
        ...

    def own_names(
        self, net: nn.Module, model: ModelSpec, state: dict[str, Tensor], image_px: int
    ) -> dict[str, Tensor]:
        """The state of a published file with the names and shapes of `net`, which was built for `image_px`.

        What cannot be brought to them is left as it is.
        """
        ...

    def take_unpooled(self, net: nn.Module, model: ModelSpec, image_px: int) -> Features:
        """Let the head take the features before the pooling, maps or tokens, and say what they are like.

        Parts keep their names and weights. Raises TrainingError for a network that has none such.
        """
        ...


def replace_module(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old`, wherever that lies."""
    for parent in net.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
