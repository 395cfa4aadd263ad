"""What is added to FrEIA: the base of the invertible parts, and a graph that keeps its order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from FrEIA.framework import GraphINN, Node
from FrEIA.modules import InvertibleModule
from torch import Tensor, nn


class Invertible(InvertibleModule):
    """Base of the invertible parts: FrEIA's protocol around one method, `change`.

    ``part(maps, rev=False) -> (maps, logdet)``, of the same shapes.

    Parameters
    ----------
    dims_in
        One shape per map, ``(C,)`` or ``(C, H, W)``.
    """

    def __init__(self, dims_in: Iterable[Sequence[int]]) -> None:
        super().__init__([tuple(d) for d in dims_in])

    def output_dims(self, input_dims: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Return the input's shapes: nothing here changes them."""
        return input_dims

    def forward(
        self,
        x_or_z: Iterable[Tensor],
        c: Iterable[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the changed maps and the log-determinant; the way back where `rev`."""
        maps, logdet = self.change(list(x_or_z), rev)
        return tuple(maps), logdet

    @abstractmethod
    def change(self, maps: list[Tensor], rev: bool) -> tuple[list[Tensor], Tensor]:
        """Return the changed maps and the log-determinant of that; the way back where `rev`."""


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
