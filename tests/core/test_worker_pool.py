"""Worker processes: a killed one is named, an interrupt waits for nobody, and each knows what --import brought."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from bigmodel_cli.core import plugins
from bigmodel_cli.core.errors import MachineError
from bigmodel_cli.core.processes.worker_pool import worker_pool


def begin(value: str) -> None:
    os.environ["BEGUN"] = value


def test_a_worker_that_is_killed_is_named() -> None:
    with (
        pytest.raises(MachineError, match="a sleeper was killed") as killed,
        worker_pool(1, "a sleeper", "sleep less", begin, "x") as pool,
    ):
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        pool.submit(time.sleep, 0).result()
    assert killed.value.hint == "sleep less"


def test_an_interrupt_does_not_wait_for_the_work() -> None:
    """Whoever waits, waits for an hour."""
    numbers: list[int] = []
    with pytest.raises(KeyboardInterrupt), worker_pool(1, "a sleeper", "", begin, "x") as pool:
        numbers.append(pool.submit(os.getpid).result())
        for _ in range(3):
            pool.submit(time.sleep, 3600)
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


def test_a_worker_knows_what_its_parent_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import os\nos.environ['IMPORTED'] = 'yes'\n")
    monkeypatch.setattr(plugins, "_imported", {"mine": tmp_path / "mine.py"})
    with worker_pool(1, "a worker", "", begin, "well") as pool:
        assert [pool.submit(os.getenv, name).result() for name in ("IMPORTED", "BEGUN")] == ["yes", "well"]
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
    assert "IMPORTED" not in os.environ  # negative control: this process has not run it
