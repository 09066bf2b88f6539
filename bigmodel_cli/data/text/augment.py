"""Token augmentation; each sample's randomness depends only on (seed, epoch, index). Shapes: B batch, T tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bigmodel_cli.core.keyed_random import uniform
from bigmodel_cli.core.registry import augments
from bigmodel_cli.core.special_tokens import SPECIALS, UNKNOWN
from bigmodel_cli.core.types import SampleKey


@augments.register(kind="text")
def word_dropout(*, share: Annotated[float, Field(gt=0, lt=1)] = 0.1) -> Callable[[Tensor, SampleKey], Tensor]:
    """Replace each token by the unknown token with this probability (Iyyer et al. 2015)."""

    def apply(tokens: Tensor, key: SampleKey) -> Tensor:
        drawn = torch.stack([uniform(key, 100 + t) for t in range(tokens.shape[1])], 1)
        # Special tokens come first in the vocabulary, in the order of SPECIALS, and are kept.
        hidden = (drawn < share) & (tokens >= len(SPECIALS))
        return tokens.masked_fill(hidden, SPECIALS.index(UNKNOWN))

    return apply
