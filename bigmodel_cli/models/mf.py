"""Matrix factorisation with biases (Koren, Bell and Volinsky 2009), by SGD, least squares or Gibbs sampling.

Shapes: B batch, U users, I items, S samples, K factors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.interactions import InteractionSpec, everything
from bigmodel_cli.core.registry import models
from bigmodel_cli.core.types import Source
from bigmodel_cli.models.layers.attributes import indicator_matrix
from bigmodel_cli.models.layers.bayesian_factors import Group, group, sample_factors
from bigmodel_cli.models.layers.sharded_tables import table_plan

PositiveInt = Annotated[int, Field(gt=0)]
Solver = Literal["sgd", "als", "gibbs"]
DEFAULTS: dict[str, Any] = {
    "loss": {"name": "mse"},
    "optimizer": {"name": "adamw", "lr": 4e-2, "weight_decay": 0.9},
    "train": {"epochs": 15, "batch_size": 2048, "eval_batch_size": 65536},
}
IMPLICIT_MOST = 20_000  # users or items: the Gibbs sampler decomposes a matrix of as many rows


class MatrixFactorisation(nn.Module):
    """user, item (B,) int64 -> ratings (B,): the mean over S samples of ``mean + x . z + b_user + b_item``.

    A row of `user` or `item` holds S times K factors and a bias. One sample is ordinary matrix factorisation.
    """

    def __init__(
        self, spec: InteractionSpec, factors: int, samples: int, solver: Solver, sweeps: int, burn_in: int,
        regularisation: float, attributes: bool, implicit: bool, seed: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spec, self.samples, self.solver = spec, samples, solver
        self.sweeps, self.burn_in, self.regularisation, self.seed = sweeps, burn_in, regularisation, seed
        self.attributes, self.implicit, self.factors = attributes, implicit, factors
        self.user = nn.Embedding(spec.users, samples * (factors + 1))
        self.item = nn.Embedding(spec.items, samples * (factors + 1))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1 * factors**-0.5)
            with torch.no_grad():
                self._parts(table.weight)[..., -1] = 0

    def _parts(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.samples, self.factors + 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rating = self.samples_of(user, item)
        return rating.mean(1) if self.samples > 1 else rating.squeeze(1)

    def samples_of(self, user: Tensor, item: Tensor) -> Tensor:
        """(B,S) the rating by each sample."""
        # Split, not sliced: the backward pass then writes each row once.
        (x, b_user), (z, b_item) = (
            self._parts(table(index)).split((self.factors, 1), -1)
            for table, index in ((self.user, user), (self.item, item))
        )
        rating = (x * z).sum(-1) + (b_user + b_item).squeeze(-1) + self.spec.mean  # (B,S)
        if self.samples > 1:
            rating = rating.clamp(self.spec.low, self.spec.high)
        return rating

    def item_vectors(self) -> Tensor:
        """(I,S * (K + 2)): factors, 1 and bias of each sample."""
        parts = self._parts(self.item.weight)
        return torch.cat([parts[..., :-1], torch.ones_like(parts[..., :1]), parts[..., -1:]], -1).flatten(1)

    def user_vectors(self, user: Tensor, history: Tensor) -> Tensor:
        """(B,S * (K + 2)), divided by S: the dot product with an item's is the rating above the mean, unclipped."""
        parts = self._parts(self.user(user))
        return torch.cat([parts, torch.ones_like(parts[..., :1])], -1).flatten(1) / self.samples

    @property
    def solves(self) -> bool:
        return self.solver != "sgd"

    @torch.no_grad()
    def solve(self, train: Source) -> str:
        """Least squares, alternating between users and items, or samples from the posterior."""
        batch = everything(train)
        user, item, target = batch["user"], batch["item"], batch["rating"] - self.spec.mean
        if self.solver == "als":
            self._least_squares(user, item, target)
            return f"solved by {self.sweeps} sweeps of alternating least squares"
        drawn = sample_factors(
            user, item, target,
            self._about(self.spec.user_columns, user, item, self.spec.users, self.spec.items),
            self._about(self.spec.item_columns, item, user, self.spec.items, self.spec.users),
            self.factors, self.sweeps, self.burn_in, self.samples, self.seed,
        )  # fmt: skip
        for i, (users, items) in enumerate(drawn):
            self._parts(self.user.weight)[:, i] = users
            self._parts(self.item.weight)[:, i] = items
        return f"{self.samples} samples of {self.sweeps} Gibbs sweeps, the first {self.burn_in} left out"

    def _about(self, columns: Any, own: Tensor, other: Tensor, count: int, others: int) -> Tensor:
        """(M,F): the attributes, and with `implicit` what each user rated (or who rated each item), of norm 1."""
        parts = [indicator_matrix(columns if self.attributes else (), count)]
        if self.implicit:
            rated = torch.zeros(count, others)
            rated[own, other] = 1
            parts.append(rated / rated.norm(dim=1, keepdim=True).clamp(min=1))
        return torch.cat(parts, 1)

    def _least_squares(self, user: Tensor, item: Tensor, target: Tensor) -> None:
        tables = (self.user.weight, self.item.weight)
        sides = (group(user, item, self.spec.users), group(item, user, self.spec.items))
        for _ in range(self.sweeps):
            for own, other, groups in ((tables[0], tables[1], sides[0]), (tables[1], tables[0], sides[1])):
                for part in groups:
                    own[part.members] = self._ridge(part, other, target)

    def _ridge(self, part: Group, other: Tensor, target: Tensor) -> Tensor:
        """(M,K + 1) the factors and bias that fit each member's ratings; the penalty grows with their number."""
        design = other[part.other].clone()
        left = (target[part.row] - design[..., -1]) * part.real
        design[..., -1] = 1
        design = design * part.real[..., None]
        count = part.real.sum(1).clamp(min=1)[:, None, None]
        penalty = self.regularisation * count * torch.eye(design.shape[-1])
        return torch.linalg.solve(design.transpose(1, 2) @ design + penalty, (design * left[..., None]).sum(1))


@models.register(task="rating_prediction", head="item", backbone_first="user", grows=("user.weight", "item.weight"),
                 tensor_plan=table_plan("user", "item"), defaults=DEFAULTS)  # fmt: skip
def mf(
    spec: InteractionSpec,
    *,
    factors: PositiveInt = 16,
    solver: Solver = "sgd",
    samples: PositiveInt = 64,
    sweeps: PositiveInt = 200,
    burn_in: Annotated[int, Field(ge=0)] = 20,
    regularisation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1,
    attributes: bool = False,
    implicit: bool = False,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
) -> nn.Module:
    """Matrix factorisation with biases, by SGD, alternating least squares or Gibbs sampling.

    Args:
        solver: sgd trains in steps; als and gibbs need none.
        samples: of the posterior, whose predictions are averaged (gibbs).
        sweeps: over all users and items (als, gibbs); the first `burn_in` give no sample.
        regularisation: of als, times the number of ratings of a user or an item (Zhou et al. 2008).
        attributes: the attributes of users and items shift the mean of their factors (gibbs; Simm et al. 2017).
        implicit: so does which items a user rated, whatever the rating (gibbs).

    Raises:
        InputError: attributes without gibbs, or more users or items than it can relate to each other.
    """
    if (attributes or implicit) and solver != "gibbs":
        raise InputError(f"model.solver = {solver} with attributes", "expected gibbs", "--set model.solver=gibbs")
    if solver == "gibbs" and sweeps - burn_in < samples:
        raise InputError(f"{samples} samples of {sweeps} sweeps", f"expected more than {samples + burn_in} sweeps")
    if implicit and max(spec.users, spec.items) > IMPLICIT_MOST:
        raise InputError(f"model.implicit with {max(spec.users, spec.items):,} users or items",
                         f"expected at most {IMPLICIT_MOST:,}")  # fmt: skip
    count = samples if solver == "gibbs" else 1
    return MatrixFactorisation(
        spec, factors, count, solver, sweeps, burn_in, regularisation, attributes, implicit, seed
    )  # fmt: skip
