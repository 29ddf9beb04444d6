"""A network cut in two at one of its modules, both parts sharing its parameters (traced by torch.fx)."""

from __future__ import annotations

from difflib import get_close_matches

from torch import fx, nn

from pipeline.errors import TrainingError

_REMEDY = "name the part around it, or write last_stage, all or head"


def cut_at(net: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """(what comes before the module `name`, it and all that follows): the second of the first is `net`.

    Raises TrainingError where there is no such module, or what follows needs more than the module's input.
    """
    parts = [key for key, _ in net.named_modules() if key]
    if name not in parts:
        close = get_close_matches(name, parts, n=1)
        large = ", ".join(part for part in parts if part.count(".") < 2)
        hint = f"did you mean `{close[0]}`?" if close else f"it has {large}"
        raise TrainingError(f"train.model.trainable: the network has no part {name!r}; {hint}")
    graph = _Tracer(name).trace(net)
    nodes = list(graph.nodes)
    first = next((i for i, node in enumerate(nodes) if node.target == name), None)
    entry = None if first is None else nodes[first].args[0]
    if first is None or not isinstance(entry, fx.Node):
        raise TrainingError(
            f"train.model.trainable: the network is not run part by part at {name!r}; {_REMEDY}"
        )
    before, after = fx.Graph(), fx.Graph()
    ahead: dict[fx.Node, fx.Node] = {}
    for node in nodes[:first]:
        ahead[node] = before.node_copy(node, ahead.__getitem__)
    before.output(ahead[entry])
    behind = {entry: after.placeholder("features")}
    try:
        for node in nodes[first:]:
            behind[node] = after.node_copy(node, behind.__getitem__)
    except KeyError as error:
        raise TrainingError(
            f"train.model.trainable: what follows {name!r} also needs {error.args[0]} from before it; {_REMEDY}"
        ) from error
    return fx.GraphModule(net, before), fx.GraphModule(net, after)


class _Tracer(fx.Tracer):
    """Looks into nothing but what holds the module that is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._name.startswith(module_qualified_name + ".")
