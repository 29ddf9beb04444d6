"""A section added to the spec needs its branch: where types do not demand it, these tables are compared."""

import types
from typing import Annotated, get_args, get_origin

import pytest

from pipeline.models.heads import ON_MAPS
from pipeline.models.own_networks import OWN_NETWORKS
from pipeline.spec import HeadSpec, LabelsSpec, LossSpec, OptimizerSpec, ScheduleSpec, SplitSpec
from pipeline.spec.model_names import CNNS, HEAD_OF, LAST_STAGE_OF, MODEL_NAMES
from pipeline.training.optim import _OPTIMIZERS
from tests.conftest import ROOT


def tags(union):
    """The names, methods or formats of a discriminated union of the spec."""
    members, discriminator = get_args(union)
    assert isinstance(members, types.UnionType) or get_origin(members)
    return [tag for member in get_args(members) for tag in tags_of(member, discriminator)]


def tags_of(member, discriminator):
    if get_origin(member) is Annotated:  # a function chooses
        return [get_args(member)[1].tag]
    return get_args(member.model_fields[discriminator.discriminator].annotation)


def test_every_optimizer_of_the_spec_can_be_built():
    assert set(tags(OptimizerSpec)) == set(_OPTIMIZERS)


def test_every_head_of_the_spec_can_be_built():
    assert set(tags(HeadSpec)) == {"linear", *ON_MAPS}


def test_every_network_of_the_spec_can_be_built():
    assert set(CNNS) == set(OWN_NETWORKS)
    assert set(MODEL_NAMES) == {*OWN_NETWORKS, *HEAD_OF}
    assert set(HEAD_OF) == set(LAST_STAGE_OF)


@pytest.mark.parametrize(
    ("union", "branches"),
    [
        (LossSpec, "pipeline/training/losses.py"),
        (ScheduleSpec, "pipeline/training/schedules.py"),
        (SplitSpec, "pipeline/data/split_methods.py"),
        (LabelsSpec, "pipeline/data/labels/__init__.py"),
    ],
)
def test_the_branches_of_a_union_end_in_assert_never(union, branches):
    """mypy strict, which runs in `make check`, then refuses a member without its branch."""
    assert len(tags(union)) == len(set(tags(union))) > 1
    assert "assert_never(" in (ROOT / branches).read_text()
