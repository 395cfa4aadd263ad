"""What `f2r` minimises: the invertible net between two perceptrons that are dropped afterwards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.looking import looked_at
from heads.parts.vector import perceptron


class Factorization(nn.Module):
    """What is trained: the invertible net and the two perceptrons that are dropped afterwards.

    Parameters
    ----------
    glow
        T.
    channels, places
        Of the feature vectors; number of positions in a map.
    gamma
        Weight of the negative log-likelihood (eq. 6).
    positions
        Positions drawn per image and step; 0 takes all.
    squared
        Squared error for the local perceptron (second term of eq. 5), not cosine similarity.
    """

    def __init__(
        self,
        glow: nn.Module,
        channels: int,
        places: int,
        *,
        gamma: float,
        positions: int,
        squared: bool,
    ) -> None:
        super().__init__()
        self.glow, self.gamma, self.positions, self.squared = glow, gamma, positions, squared
        self.local_half = channels // 2
        self.local_net = perceptron(self.local_half, channels, channels)
        self.global_net = perceptron(channels - self.local_half, channels, places)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        """Return the losses of ``[B, C, H, W]`` maps (eqs. 2, 5 and 6).

        ``nll`` is told per dimension; in the loss it is the paper's, per vector.
        """
        channels = maps.shape[1]
        vectors = maps.flatten(2).transpose(1, 2)
        places = torch.arange(vectors.shape[1], device=maps.device).expand(len(maps), -1)
        seen = looked_at((maps.shape[2], maps.shape[3]))
        seen = None if seen is None else seen.flatten(1)
        if self.training and 0 < self.positions < vectors.shape[1]:
            # drawn on the CPU, whose generator a resumed training restores
            order = torch.rand(places.shape)
            if seen is not None:  # what is not looked at comes last
                order += (~seen).to(order)
            drawn = order.argsort(1)[:, : self.positions].to(maps.device)
            places = drawn
            vectors = vectors.gather(1, drawn[..., None].expand(-1, -1, channels))
            seen = None if seen is None else seen.gather(1, drawn)
        f, label = vectors.reshape(-1, channels), places.reshape(-1)
        if seen is not None:
            f, label = f[seen.flatten()], label[seen.flatten()]
        z, logdet = self.glow(f)
        nll = 0.5 * z.square().sum(1) - logdet
        z_local, z_global = z[:, : self.local_half], z[:, self.local_half :]
        centred_l, centred_g = z_local - z_local.mean(0), z_global - z_global.mean(0)
        with torch.autocast(maps.device.type, enabled=False):
            covariance = (centred_l.T @ centred_g / max(1, len(z) - 1)).abs().mean()
        guess = self.local_net(z_local).float()
        if self.squared:
            local = (guess - f).square().sum(1).mean()
        else:
            local = -F.cosine_similarity(guess, f, dim=1).mean()
        position = F.cross_entropy(self.global_net(z_global).float(), label)
        loss = self.gamma * nll.mean() + covariance + local + position
        return {
            "loss": loss,
            "nll": nll.mean() / channels,
            "covariance": covariance,
            "local": local,
            "position": position,
        }
