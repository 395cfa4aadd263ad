"""A `GraphINN` whose modules keep the order in which its nodes were given."""

from __future__ import annotations

from collections.abc import Sequence

from FrEIA.framework import GraphINN, Node
from torch import nn


class OrderedGraphINN(GraphINN):
    """`GraphINN` with a stable order of modules, so that a saved state fits the next instance.

    FrEIA sorts the nodes through sets, whose order differs from one instance to the next where
    nodes are parallel (one per scale): weights would be loaded into another scale's module.

    Parameters
    ----------
    nodes
        All nodes, each after those it reads from.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__(list(nodes), force_tuple_output=True)
        self.node_list = list(nodes)
        self.module_list = nn.ModuleList(n.module for n in nodes if n.module is not None)
