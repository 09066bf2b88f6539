"""What private training spends, by the accountants of Opacus: epsilon of steps, and the noise for an epsilon."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from bigmodel_cli.core.errors import InputError, MachineError
from bigmodel_cli.core.extras import install_line

Releases = tuple[float, float, int]
"""Noise multiplier, sampling rate and number of steps of a Poisson-subsampled Gaussian mechanism."""
MOST_NOISE = 10_000.0
TOLERANCE = 0.01  # of epsilon, which is met from below


@dataclass(frozen=True)
class Budget:
    """What a private run may spend, and with what noise. All of it is in the checkpoint."""

    epsilon: float
    delta: float
    noise: float
    """Standard deviation of the noise on the sum of the gradients, over the largest norm of one."""
    rate: float
    """The probability of a sample in a step."""
    clip_norm: float
    accountant: str
    secret: bool
    """Whether noise and sampling come from the system's random numbers, not from a seed in the recipe."""

    def spent(self, steps: int) -> float:
        """Epsilon after so many steps."""
        return epsilon(((self.noise, self.rate, steps),), self.delta, self.accountant)

    def to_dict(self, steps: int) -> dict[str, Any]:
        return {**asdict(self), "steps": steps, "spent": self.spent(steps)}


@functools.lru_cache(1024)
def epsilon(releases: tuple[Releases, ...], delta: float, accountant: str) -> float:
    """Epsilon of `releases` one after the other, for datasets that differ by one sample added or removed.

    Raises:
        MachineError: Opacus is not installed.
    """
    try:
        from opacus.accountants import create_accountant
    except ImportError:
        what = "private training needs opacus"
        raise MachineError(what, "the extra privacy", install_line("privacy")) from None
    if not sum(steps for *_, steps in releases):
        return 0.0
    found = create_accountant(mechanism=accountant)
    found.history = [release for release in releases if release[2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an order at the end of its range: the bound holds, and is a little loose
        try:
            return float(found.get_epsilon(delta))
        except (RuntimeError, ValueError, OverflowError, MemoryError):  # prv, where the noise is next to nothing
            return math.inf


@functools.lru_cache(64)
def noise_for(target: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    """The least noise multiplier, within a tolerance, with which `steps` steps spend at most `target`.

    The quick accountant brackets it, which spares the tight one most of its work.

    Raises:
        InputError: there is none.
        MachineError: Opacus is not installed.
    """
    high = _least_noise(target, delta, rate, steps, "rdp", 0.0, MOST_NOISE)
    if accountant == "rdp":
        return high
    return _least_noise(target, delta, rate, steps, accountant, high / 2, high)


def _least_noise(
    target: float, delta: float, rate: float, steps: int, accountant: str, low: float, high: float
) -> float:
    def spends(noise: float) -> float:
        return epsilon(((noise, rate, steps),), delta, accountant)

    spent = spends(high)
    if spent > target:
        what = f"privacy.epsilon = {target:g} cannot be reached"
        raise InputError(what, f"expected at least {spent:.2g}", "a larger epsilon or delta, or fewer epochs")
    while target - spent > TOLERANCE * min(target, 1) and high - low > 1e-4 * high:
        middle = math.sqrt(low * high) if low else min(high / 10, 1.0) if high > 1 else high / 2
        now = spends(middle)
        low, high, spent = (low, middle, now) if now <= target else (middle, high, spent)
    return high


def default_delta(samples: int) -> float:
    """The largest power of ten below 1 / `samples`."""
    return 10.0 ** -(math.floor(math.log10(samples)) + 1)
