"""How ranks share the pictures that are scored, without processes: each in turn, the first one last."""

import numpy as np
import pytest
import torch

from pipeline.data.packed import PackedSet
from pipeline.distributed.group import Group
from pipeline.models.build import build_model
from pipeline.models.device import ExecutionConfig
from pipeline.models.scoring import Scorer, compute_logits, compute_logits_by_ranks
from pipeline.spec import ModelSpec


class OneByOne(Group):
    """A rank whose exchange is a table: those after the first one leave their parts there."""

    def __init__(self, rank, size, table):
        super().__init__(rank, size, connected=False)
        self.table, self.rounds = table, 0

    def each(self, mine, lengths):
        self.table[self.rounds, self.rank] = mine
        for rank, length in enumerate(lengths):
            part = self.table.get((self.rounds, rank))
            assert self.rank or (0 if part is None else len(part)) == length
            yield torch.empty(0, *mine.shape[1:]) if part is None and not self.rank else part
        self.rounds += 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_make_the_batches_of_one_process(drawn, monkeypatch, told, size):
    """29 pictures in batches of 4: eight in all, in rounds of one a rank, of which the last may lack ranks."""
    monkeypatch.setattr("pipeline.models.scoring._ROUND", 1)
    packed, rows = PackedSet.open(drawn[1]), np.arange(100, 129)[::-1].copy()
    execution = ExecutionConfig.choose("cpu", "fp32", 1)
    model = ModelSpec(name="cnn3")
    scorers = [
        Scorer(build_model(model, len(packed.labels), 32), 32, execution, model.preprocessing, flips=flips)
        for flips in (False, True)
    ]
    alone = compute_logits(scorers, packed, rows, batch_size=4)
    table = {}
    for rank in reversed(range(size)):
        group = OneByOne(rank, size, table)
        found = compute_logits_by_ranks(group, scorers, packed, rows, batch_size=4)
        assert group.rounds == -(-8 // size)
        assert (found is None) == (rank > 0)
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    assert [state.total for state in told if state.doing == "scoring image"].count(29) > 1
