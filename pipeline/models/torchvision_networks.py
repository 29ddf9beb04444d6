"""Networks of torchvision, their head replaced."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.models.heads import Features
from pipeline.models.kind import replace_module
from pipeline.models.unpooled import take_unpooled
from pipeline.spec import ModelSpec
from pipeline.spec.model_names import HEAD_OF, LAST_STAGE_OF

_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


class TorchvisionNetworks:
    """The names of `FAMILIES` in `pipeline/spec/model_names.py`."""

    def build(self, model: ModelSpec, num_labels: int, image_px: int) -> nn.Module:
        """As torchvision builds it; tried at its size."""
        from torchvision.models import get_model

        name = model.name
        options = {"image_size": image_px} if name.startswith("vit_") else {}
        try:
            net: nn.Module = get_model(name, weights=None, **options)
            head = net.get_submodule(self.head_path(net, name))
            assert isinstance(head, nn.Linear)
            replace_module(net, head, nn.Linear(head.in_features, num_labels))
            with torch.inference_mode():
                net.eval()(torch.zeros(1, 3, image_px, image_px))
        except (RuntimeError, ValueError, AssertionError) as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            remedy = "use another train.image_px (224 suits all, a vit needs a multiple of its patch)"
            raise TrainingError(
                f"{name} does not work at train.image_px {image_px}: {text}; {remedy}"
            ) from error
        return net

    def head_path(self, net: nn.Module, name: str) -> str:
        """From the table; -1 is the last of a sequence."""
        parent, _, last = HEAD_OF[name].rpartition(".")
        if last == "-1":
            last = [key for key, _ in net.get_submodule(parent).named_children()][-1]
        return f"{parent}.{last}".lstrip(".")

    def last_stage(self, net: nn.Module, name: str) -> str:
        """From the table."""
        return LAST_STAGE_OF[name]

    def own_names(
        self, net: nn.Module, model: ModelSpec, state: dict[str, Tensor], image_px: int
    ) -> dict[str, Tensor]:
        """Old names of densenets; positions of a vit at its size."""
        if model.name.startswith("densenet"):
            # published densenet files have dots that no module's name may have (torchvision renames them too)
            return {_DENSE_LAYER.sub(r"\1\2", key): value for key, value in state.items()}
        if model.name.startswith("vit_") and "encoder.pos_embedding" in state:
            from torchvision.models.vision_transformer import interpolate_embeddings

            vit: Any = net
            resized: dict[str, Tensor] = interpolate_embeddings(image_px, vit.patch_size, dict(state))
            return resized
        return state

    def take_unpooled(self, net: nn.Module, model: ModelSpec, image_px: int) -> Features:
        """By a forward of the family without its pooling."""
        head: Any = net.get_submodule(self.head_path(net, model.name))
        return take_unpooled(net, model.name, head.in_features)
