"""What is added to FrEIA."""

import torch
from FrEIA.framework import InputNode, Node, OutputNode

from heads.parts.elementary import Permute
from heads.parts.invertible import OrderedGraphINN
from tests.heads.parts.kit import sample


def test_graph_order_is_the_given_one() -> None:
    def build() -> OrderedGraphINN:
        inputs = [InputNode(4, name=f"in {k}") for k in range(6)]
        parts = [Node(i, Permute, {"seed": k}) for k, i in enumerate(inputs)]
        return OrderedGraphINN([*inputs, *parts, *(OutputNode(p) for p in parts)])

    orders = [[m.order.tolist() for m in build().module_list] for _ in range(5)]
    assert orders == [[Permute([(4,)], seed=k).order.tolist() for k in range(6)]] * 5
    xs = [sample((4,), seed=k) for k in range(6)]
    graph = build()
    back, _ = graph(graph(xs)[0], rev=True)
    assert all(torch.equal(a, b) for a, b in zip(back, xs, strict=True))
