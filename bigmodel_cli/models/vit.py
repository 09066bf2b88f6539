"""Vision transformer (Dosovitskiy et al. 2020). State-dict keys are timm's, so its weights load strictly.

Shapes: B batch, C channels, H height, W width, K classes, N patches, T = N + 1 tokens, D width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import ImageSpec
from bigmodel_cli.models.layers.dropout import Dropout
from bigmodel_cli.models.layers.sdpa import attend
from bigmodel_cli.models.resnet import DropPath, drop_rates

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class PatchEmbed(nn.Module):
    """Embed each patch of p x p pixels as a token: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head softmax(q k^T / sqrt(D / heads)) v (Vaswani et al. 2017): (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = attend(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers of width 4 D and D, with GELU: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """(B, C, H, W) -> (B, K), from a class token."""

    def __init__(
        self, spec: ImageSpec, patch: int, width: int, depth: int, heads: int, dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        tokens = (spec.height // patch) * (spec.width // patch) + 1
        self.patch_embed = PatchEmbed(spec.channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.pos_drop = Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, rate) for rate in drop_rates(drop_path, depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, spec.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        # x.shape[0], since a tracer would record len(x) as a constant.
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.blocks(self.pos_drop(x))
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


@models.register(task="image_classification", head="head", backbone_first="patch_embed.proj")
def vit(
    spec: ImageSpec,
    *,
    patch: PositiveInt | Literal["auto"] = "auto",
    width: PositiveInt = 192,
    depth: PositiveInt = 6,
    heads: PositiveInt = 3,
    dropout: Fraction = 0.0,
    drop_path: Fraction = 0.0,
) -> nn.Module:
    """Vision transformer; 16-pixel patches for photos, 4 for small images, 2 for tiny ones.

    Raises:
        InputError: the patches do not tile the image, or the width is not a multiple of the heads.
    """
    side = min(spec.height, spec.width)
    if patch == "auto":
        patch = 16 if side >= 128 else 4 if side >= 16 else 2
    if spec.height % patch or spec.width % patch:
        divisors = [n for n in range(1, side + 1) if spec.height % n == spec.width % n == 0]
        what = f"vit with patches of {patch} on {spec.height}x{spec.width} images"
        raise InputError(what, f"expected model.patch to be one of {', '.join(map(str, divisors))}")
    if width % heads:
        raise InputError(f"model.width = {width} with model.heads = {heads}", "expected a multiple of the heads")
    return VisionTransformer(spec, patch, width, depth, heads, dropout, drop_path)
