"""From likelihood maps to scores."""

from __future__ import annotations

import torch

from heads.judging.scores import LikelihoodScores, top_k_mean


def test_scores_are_the_papers_formulas():
    scorer = LikelihoodScores("sum", "product", top_k=0.25)
    logs = [-torch.rand(3, 4, 4), -torch.rand(3, 4, 4)]
    scorer.fit([[x[:2] for x in logs]], (4, 4))
    total = logs[0].exp() + logs[1].exp()
    product = logs[0].exp() * logs[1].exp()
    scores = scorer(logs, (4, 4))
    assert torch.allclose(scores.maps, total[:2].max() - total)
    worst = (product[:2].max() - product).flatten(1).sort(1, descending=True).values[:, :4]
    assert torch.allclose(scores.image, worst.mean(1))

    own = LikelihoodScores("sum", "product", top_k=0.25, normaliser="image")(logs, (4, 4))
    assert torch.allclose(own.maps, total.amax((1, 2), keepdim=True) - total)
    assert torch.equal(own.maps.amin((1, 2)), torch.zeros(3))


def test_top_k():
    maps = torch.arange(100.0).view(1, 10, 10)
    assert top_k_mean(maps, 0.03).item() == 98
    assert top_k_mean(maps, 0).item() == 99
    assert top_k_mean(maps, 1).item() == 49.5
