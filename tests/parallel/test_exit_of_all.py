"""One exit code of many: what the launcher makes of how its ranks ended."""

from __future__ import annotations

import signal

import pytest

from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.engine.distributed.launcher import exit_code, root_failures


@pytest.mark.parametrize(
    ("codes", "handed", "expected"),
    [
        ({0: 4, 1: 4}, False, 4),
        ({0: 3, 1: 2}, False, 2),
        ({0: 143, 1: 143}, False, 143),
        ({0: 143, 1: 3}, True, 143),  # the other noticed that it was left alone
        ({0: 143, 1: 3}, False, 3),  # the agent ended the one when the other had failed
        ({0: 143, 1: 1}, False, 1),
        ({0: 138}, False, 138),
        ({0: 130, 1: -signal.SIGTERM}, True, 130),
        ({0: 3, 1: 3}, False, 3),
    ],
)
def test_exit_code(codes: dict[int, int], handed: bool, expected: int) -> None:
    assert exit_code(root_failures(codes, handed)) == expected


def test_a_killed_rank_is_named() -> None:
    with pytest.raises(MachineError, match="rank 1 was killed by SIGKILL"):
        exit_code(root_failures({0: 143, 1: -signal.SIGKILL}, False))
