"""VDRME's networks on latents of ImageNet-256 (papers/vdrme, section 4.3): DiT-XL/2 as generator and as energy.

The blocks are diffusers'. Its own `DiTTransformer2DModel` gives every block an embedding of time and label of its own,
78M parameters more than the published DiT-XL/2, where there is one for all; here there is one.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import CombinedTimestepLabelEmbeddings, PatchEmbed
from torch import Tensor, nn
from torch.nn import functional


class Backbone(nn.Module):
    """DiT up to its last layer (Peebles and Xie 2023): patches, transformer blocks with adaptive norms (adaLN-Zero).

    The output is normalised and modulated by time and label, as before DiT's last linear layer.

    channels, size: of the latent image. patch: side of a patch. heads, head: attention heads and their width.
    layers: blocks. labels: classes; index `labels` is "no label".
    """

    def __init__(self, channels: int, size: int, patch: int, heads: int, head: int, layers: int, labels: int) -> None:
        super().__init__()
        width = heads * head
        self.patches = PatchEmbed(size, size, patch, channels, width)
        self.embedding = CombinedTimestepLabelEmbeddings(labels, width)
        self.blocks: Any = nn.ModuleList()  # of a class without types
        for _ in range(layers):
            block: Any = BasicTransformerBlock(
                width,
                heads,
                head,
                activation_fn="gelu-approximate",
                attention_bias=True,
                norm_type="ada_norm_zero",
                num_embeds_ada_norm=1,
                norm_elementwise_affine=False,
            )
            block.norm1.emb = None  # it is given the common one
            self.blocks.append(block)
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Tokens (B, patches, width) of latent images (B, channels, size, size) at times (B,) with labels (B,)."""
        hidden = self.patches(sample)
        condition = self.embedding(time, label, hidden_dtype=hidden.dtype)
        for block in self.blocks:
            normal, gate, shift, scale, last_gate = block.norm1(hidden, emb=condition)
            hidden = hidden + gate[:, None] * block.attn1(normal)
            normal = block.norm3(hidden) * (1.0 + scale[:, None]) + shift[:, None]
            hidden = hidden + last_gate[:, None] * block.ff(normal)
        shift, scale = self.modulation_out(functional.silu(condition)).chunk(2, dim=1)
        modulated: Tensor = self.norm_out(hidden) * (1.0 + scale[:, None]) + shift[:, None]
        return modulated


class Generator(nn.Module):
    """eps of eq. 15: DiT behind "initial layers" that make one image of x_{i+1} and the noise z (section 4.3).

    The paper does not say which layers: here two convolutions, added to x_{i+1}, the second starting at zero so that
    the start is the DiT itself. DiT's learned variances, the second half of its output, are dropped.

    noise_width: channels between the two convolutions. The rest is `Backbone`'s.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        patch: int,
        heads: int,
        head: int,
        layers: int,
        labels: int,
        noise_width: int = 64,
    ) -> None:
        super().__init__()
        self.channels, self.side, self.patch = channels, size // patch, patch
        self.noise_in = nn.Conv2d(2 * channels, noise_width, 3, padding=1)
        self.noise_out = nn.Conv2d(noise_width, channels, 3, padding=1)
        for parameter in self.noise_out.parameters():
            nn.init.zeros_(parameter)
        self.backbone = Backbone(channels, size, patch, heads, head, layers, labels)
        self.head = nn.Linear(heads * head, patch * patch * 2 * channels)

    def forward(self, sample: Tensor, time: Tensor, label: Tensor, latent: Tensor) -> Tensor:
        """Predict eps.

        sample, latent: (B, channels, size, size) float32. time: (B,) float32. label: (B,) int64.
        Returns: shaped like `sample`.
        """
        mixed = sample + self.noise_out(functional.silu(self.noise_in(torch.cat([sample, latent], dim=1))))
        tokens = self.head(self.backbone(mixed, time, label))
        patches = tokens.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (self.side, self.side))
        image = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return image[:, : self.channels]


class Energy(nn.Module):
    """E(x, t): the same backbone and a linear layer on the mean of its tokens (A.3.1), which starts at zero.

    Arguments as for `Backbone`.
    """

    def __init__(self, channels: int, size: int, patch: int, heads: int, head: int, layers: int, labels: int) -> None:
        super().__init__()
        self.backbone = Backbone(channels, size, patch, heads, head, layers, labels)
        self.head = nn.Linear(heads * head, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sample: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Energies (B,) of latent images (B, channels, size, size) at times (B,)."""
        energy: Tensor = self.head(self.backbone(sample, time, label).mean(dim=1)).squeeze(1)
        return energy
