"""One line of env-check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]
TORCH_FIX = "pip install --force-reinstall torch torchvision (their versions must match)"
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line of env-check: `value` is the finding, `fix` the remedy, `amount` its bytes or count, if any.

    `absent` says that nothing is broken: a part that nobody has to have is not there.
    """

    name: str
    status: Status
    value: str
    fix: str | None = None
    amount: float | None = None
    absent: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
