"""A registered architecture as a run altered it: other normalisation, narrower layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bigmodel_cli.models.adapters.pruned import narrow
from bigmodel_cli.models.layers.groupnorm import with_groupnorm


def altered(model: nn.Module, section: Mapping[str, Any]) -> nn.Module:
    """`model` as the ``model`` section of a recipe alters it; a section of an older version alters nothing more.

    Raises:
        InputError: ``model.pruned`` or ``model.batchnorm`` does not fit the model.
    """
    if section.get("batchnorm") == "group":
        model = with_groupnorm(model, str(section.get("name")))
    return narrow(model, section["pruned"]) if section.get("pruned") else model
