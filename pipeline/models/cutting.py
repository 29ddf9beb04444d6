"""A network cut in two at one of its modules, both parts sharing its parameters (traced by torch.fx)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from torch import fx, nn

from pipeline.errors import TrainingError

_REMEDY = "name the part around it, or write all or head"


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
    try:
        graph = _Tracer(name).trace(net)
    except (fx.proxy.TraceError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"train.model.trainable: {type(net).__name__} cannot be cut at {name!r} ({reason}); write all or head"
        ) from error
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
    behind = _Behind(net, name, after, entry)
    for node in nodes[first:]:
        behind.take(node)
    return fx.GraphModule(net, before), fx.GraphModule(net, after)


def _source(node: fx.Node) -> str:
    """The part or parameter of the network that a value was made of, by a name that its user knows."""
    while node.op not in ("call_module", "get_attr") and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return "the picture" if node.op == "placeholder" else repr(str(node.target))


class _Behind:
    """What follows a cut, copied node by node into a graph of its own."""

    def __init__(self, net: nn.Module, name: str, graph: fx.Graph, entry: fx.Node) -> None:
        self._net, self._name, self._graph = net, name, graph
        self._copies = {entry: graph.placeholder("features")}

    def take(self, node: fx.Node) -> fx.Node:
        """The copy of a node; of what lies before the cut, only what depends on no picture and learns nothing."""
        if node not in self._copies:
            self._copies[node] = self._graph.node_copy(node, self._from_before)
        return self._copies[node]

    def _from_before(self, node: fx.Node) -> fx.Node:
        if node not in self._copies and not self._is_constant(node):
            raise TrainingError(
                f"train.model.trainable: what follows {self._name!r} also needs what {_source(node)} gives before it; "
                f"{_REMEDY}"
            )
        return self.take(node)

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether it is made of fixed numbers alone, as rotary positions are."""
        if node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            return not isinstance(getattr(self._net.get_submodule(owner), attribute), nn.Parameter)
        computes = node.op in ("call_function", "call_method")
        return computes and all(map(self._is_constant, node.all_input_nodes))


class _Tracer(fx.Tracer):
    """Looks into nothing but what holds the module that is asked for; buffers are inputs, not constants."""

    proxy_buffer_attributes = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The pictures alone: what else a forward takes (a mask of attention) keeps its default."""
        return root_fn, [self.root, self.create_proxy("placeholder", "pictures", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._name.startswith(module_qualified_name + ".")
