"""On a CPU a network sees few pictures at a time, and makes the same of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.device import ExecutionConfig
from pipeline.models.scoring import Scorer
from pipeline.models.slices import PICTURES_PER_THREAD, in_slices
from pipeline.spec.model_names import IMAGENET


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        self.seen.append(len(inputs_BCHW))
        made: Tensor = self.layers(inputs_BCHW)
        return made


@torch.inference_mode()
def test_slices_make_what_the_whole_makes_in_the_order_of_the_pictures() -> None:
    net = _Counting().eval()
    most = PICTURES_PER_THREAD * torch.get_num_threads()
    inputs = torch.randn(2 * most + 3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(in_slices(net, inputs), net.layers(inputs))
    assert net.seen == [most, most, 3]


@torch.inference_mode()
def test_a_scorer_gives_its_network_slices_of_both_views() -> None:
    net = _Counting().eval()
    most = PICTURES_PER_THREAD * torch.get_num_threads()
    scorer = Scorer(net, 12, ExecutionConfig("cpu", "fp32", threads=1), IMAGENET, flips=True)
    assert scorer.logits(torch.zeros(most + 1, 3, 12, 12)).shape == (most + 1, 4)
    assert net.seen == [most, 1, most, 1]
