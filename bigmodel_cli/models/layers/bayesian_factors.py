"""Bayesian matrix factorisation by Gibbs sampling (Salakhutdinov and Mnih 2008), with attributes (Simm et al. 2017).

A rating is ``mean + x_u . z_i + b_u + b_i`` plus Gaussian noise. The factors and the bias of each user (and item) are
one Gaussian vector, whose mean depends linearly on the user's attributes. Averaging the predictions of many samples
from the posterior needs no choice of regularisation, number of epochs or learning rate.
Shapes: N ratings, U users, I items, K factors, D = K + 1 (the last one is the bias), F attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

GROUPS = 12  # users are padded to the longest of a group of similar length
PRIOR_COUNT = 2.0  # the prior mean of the factors weighs as much as two users


@dataclass(frozen=True)
class Group:
    """Users (or items) with similarly many ratings: `members` (M,), and their ratings padded to (M,L)."""

    members: Tensor
    other: Tensor
    row: Tensor
    real: Tensor


def group(own: Tensor, other: Tensor, count: int) -> list[Group]:
    """The ratings (N,) by `own` of `count` users, as padded groups; `other` are the items rated."""
    order = own.argsort(stable=True)
    length = own.bincount(minlength=count)
    offset = length.cumsum(0) - length
    groups = []
    for members in length.argsort(stable=True).tensor_split(min(GROUPS, count)):
        width = max(1, int(length[members].max()))
        column = torch.arange(width)
        real = column < length[members][:, None]
        at = (offset[members][:, None] + column).clamp(max=len(order) - 1)
        row = torch.where(real, order[at], 0)
        groups.append(Group(members, other[row], row, real.float()))
    return groups


@dataclass
class Side:
    """The users or the items: factors (M,D), the Gaussian they are drawn from, and what attributes add to its mean."""

    factors: Tensor
    groups: list[Group]
    attributes: Tensor  # (M,F)
    generator: torch.Generator
    mean: Tensor = field(init=False)
    precision: Tensor = field(init=False)
    weights: Tensor = field(init=False)  # (F,D)
    strength: float = 5.0  # precision of the weights, relative to that of the factors

    def __post_init__(self) -> None:
        d, f = self.factors.shape[1], self.attributes.shape[1]
        self.mean, self.precision, self.weights = torch.zeros(d), torch.eye(d), torch.zeros(f, d)
        values, self._basis = torch.linalg.eigh((self.attributes.t() @ self.attributes).double())
        self._values, self._basis = values.clamp(min=0).float(), self._basis.float()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def expected(self) -> Tensor:
        """(M,D) the prior mean of each member."""
        return self.mean + self.attributes @ self.weights

    def draw_prior(self) -> None:
        """Sample the mean and precision of the factors (normal-Wishart), then the weights of the attributes."""
        m, d = self.factors.shape
        rest = self.factors - self.attributes @ self.weights
        average = rest.mean(0)
        scatter = (rest - average).t() @ (rest - average)
        scale = torch.eye(d) + scatter + m * PRIOR_COUNT / (m + PRIOR_COUNT) * torch.outer(average, average)
        scale = scale + self.strength * self.weights.t() @ self.weights
        self.precision = self._wishart(d + m + len(self.weights), torch.linalg.inv(scale))
        spread = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        self.mean = m * average / (m + PRIOR_COUNT) + (spread @ self.normal(d)) * (m + PRIOR_COUNT) ** -0.5
        if len(self.weights):
            self._draw_weights(spread)

    def _draw_weights(self, spread: Tensor) -> None:
        """A draw from ridge regression of the factors on the attributes, by perturbing what it is solved for."""
        f, d = self.weights.shape
        noise = self.normal(len(self.factors), d) @ spread.t()
        prior = self.strength**0.5 * self.normal(f, d) @ spread.t()
        right = self.attributes.t() @ (self.factors - self.mean + noise) + prior
        self.weights = self._basis @ ((self._basis.t() @ right) / (self._values + self.strength)[:, None])
        size = float((self.weights @ self.precision * self.weights).sum())
        self.strength = self._gamma((f * d + 1) / 2, (1 / 5 + size) / 2)

    def draw_factors(self, other: Tensor, target: Tensor, noise: float) -> None:
        """Sample the factors given those of the other side (M',D), the centred ratings (N,) and their precision."""
        prior = self.expected() @ self.precision
        for part in self.groups:
            design = other[part.other]  # (M,L,D)
            left = (target[part.row] - design[..., -1]) * part.real
            design[..., -1] = 1
            design = design * part.real[..., None]
            precision = self.precision + noise * design.transpose(1, 2) @ design
            right = prior[part.members] + noise * (design * left[..., None]).sum(1)
            root = torch.linalg.cholesky(precision)
            mean = torch.cholesky_solve(right[..., None], root)
            drawn = torch.linalg.solve_triangular(root.transpose(1, 2), self.normal(*right.shape, 1), upper=True)
            self.factors[part.members] = (mean + drawn)[..., 0]

    def _gamma(self, shape: float, rate: float) -> float:
        """A draw from a gamma distribution (Marsaglia and Tsang 2000), for a shape of at least 1/3."""
        d = max(shape, 1 / 3 + 1e-6) - 1 / 3
        while True:
            x = float(self.normal(1))
            v = (1 + x / (9 * d) ** 0.5) ** 3
            u = float(torch.rand(1, generator=self.generator))
            if v > 0 and torch.tensor(max(u, 1e-30)).log() < 0.5 * x * x + d - d * v + d * torch.tensor(v).log():
                return d * v / rate

    def _wishart(self, degrees: int, scale: Tensor) -> Tensor:
        """A draw from a Wishart distribution, by Bartlett's decomposition."""
        d = len(scale)
        lower = self.normal(d, d).tril(-1)
        for i in range(d):
            lower[i, i] = self._gamma((degrees - i) / 2, 0.5) ** 0.5
        root = torch.linalg.cholesky((scale + scale.t()) / 2) @ lower
        return root @ root.t()


def sample_factors(
    user: Tensor,
    item: Tensor,
    target: Tensor,
    about_users: Tensor,
    about_items: Tensor,
    factors: int,
    sweeps: int,
    burn_in: int,
    samples: int,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draws from the posterior: the factors of users (U,D) and items (I,D), bias last, `samples` times.

    Args:
        user, item: (N,) int64.
        target: (N,) float ratings minus their mean.
        about_users, about_items: attributes (U,F), (I,F'); F may be 0.
        sweeps: Gibbs sweeps in all, of which the first `burn_in` give no sample.
    """  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def start(count: int) -> Tensor:
        drawn = 0.1 * torch.randn(count, factors + 1, generator=generator)
        drawn[:, -1] = 0
        return drawn

    users = Side(start(len(about_users)), group(user, item, len(about_users)), about_users, generator)
    items = Side(start(len(about_items)), group(item, user, len(about_items)), about_items, generator)
    noise, kept = 2.0, 0
    for sweep in range(sweeps):
        for side, other in ((users, items), (items, users)):
            side.draw_prior()
            side.draw_factors(other.factors, target, noise)
        x, z = users.factors[user], items.factors[item]
        error = target - (x[:, :-1] * z[:, :-1]).sum(1) - x[:, -1] - z[:, -1]
        noise = users._gamma(1 + len(error) / 2, 1 + float(error @ error) / 2)
        if sweep >= burn_in and (sweep - burn_in + 1) * samples // (sweeps - burn_in) > kept:
            kept += 1
            yield users.factors.clone(), items.factors.clone()
