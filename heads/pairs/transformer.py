"""A pre-norm transformer over the positions of a feature map (AnoDFDNet, eq. 3-5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.errors import ConfigError


class TransformerLayer(nn.Module):
    """``z' = MSA(LN(z)) + z; z = MLP(LN(z')) + z'`` (AnoDFDNet, eq. 4 and 5).

    Parameters
    ----------
    width
        Channels of a token, a multiple of `heads`.
    heads
        Heads of the self-attention.
    mlp
        Hidden units of the two-layer perceptron (GELU).
    dropout
        Of the perceptron's layers, in training.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(
                f"{heads} attention heads over tokens of {width} channels",
                expected="a number of heads that divides the channels",
            )
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, width),
            nn.Dropout(dropout),
        )

    def attend(self, z: Tensor) -> Tensor:
        """Return multi-head self-attention over tokens ``[B, L, width]``."""
        count, length, width = z.shape
        three = self.query_key_value(z).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        return self.project(seen.transpose(1, 2).reshape(count, length, width))

    def forward(self, z: Tensor) -> Tensor:
        """Transform tokens ``[B, L, width]``."""
        z = z + self.attend(self.norm1(z))
        return z + self.mlp(self.norm2(z))


class MapTransformer(nn.Module):
    """Tokens of a map, linearly embedded, with a learnt position code, through L layers.

    Parameters
    ----------
    channels, height, width
        Shape of the map: its positions are the tokens.
    layers
        L, 0 to 8 in the paper's ablation. With 0 the map is passed on as it is: no embedding and
        no code.
    embedding
        Channels of a token; those of the result, but with no layers.
    heads, mlp, dropout
        See `TransformerLayer`; `dropout` is applied to the embedded tokens as well.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        layers: int,
        embedding: int,
        heads: int,
        mlp: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if layers < 0:
            raise ConfigError(f"{layers} transformer layers", expected="0 or more")
        self.channels = embedding if layers else channels
        self.layers = nn.ModuleList(
            TransformerLayer(embedding, heads, mlp, dropout) for _ in range(layers)
        )
        if layers:
            self.embed = nn.Linear(channels, embedding)
            self.position = nn.Parameter(0.02 * torch.randn(1, height * width, embedding))
            self.drop = nn.Dropout(dropout)
            self.norm = nn.LayerNorm(embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[B, C, H, W]`` to ``[B, self.channels, H, W]``."""
        if not self.layers:
            return x
        z = self.drop(self.embed(x.flatten(2).transpose(1, 2)) + self.position)
        for layer in self.layers:
            z = layer(z)
        return self.norm(z).transpose(1, 2).reshape(len(x), self.channels, *x.shape[2:])
