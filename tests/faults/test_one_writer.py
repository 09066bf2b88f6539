"""Many runs in one folder: one writes, the others say who does, and a dead holder holds nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import figures
from nursery import Child, Nursery

OPTIONS = ["train", "mlp", "--data", "digits", "--precision", "fp32", "--epochs", "100000", "--out", "run"]


def race(nursery: Nursery, sabotage: str | None = None) -> tuple[list[Child], list[Child]]:
    """Twenty commands started at once: those that still run once the others have ended, and the others."""
    children = [nursery.start(*OPTIONS, sabotage=sabotage) for _ in range(20)]
    deadline = time.monotonic() + 120
    while True:
        alive = [c for c in children if c.running()]
        trained = (nursery.folder / "run/last.pt").exists()
        if len(alive) == 1 or (sabotage and trained and time.monotonic() > deadline - 100):
            return alive, [c for c in children if c not in alive]
        assert time.monotonic() < deadline, f"{len(alive)} still run"
        time.sleep(0.05)


def test_twenty_starts_have_one_winner(tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        (winner,), losers = race(nursery)
        codes = [loser.wait() for loser in losers]
        wrong = sum(f"pid {winner.pid} on {socket.gethostname()}" not in loser.error for loser in losers)
        winner.kill()
        winner.wait()
        figures.record("simultaneous starts in one folder", len(losers) + 1, wrong, "each loser names the winner's PID")
        assert codes == [3] * 19 and wrong == 0, [loser.error for loser in losers]
        # The kernel lets a dead holder's lock go: nothing has to be cleaned up by hand.
        after = [*OPTIONS, "--max-steps", "3", "--overwrite"]
        code, child = nursery.run(*after)
        assert code == 0, child.error


def test_negative_control_without_the_lock(tmp_path: Path) -> None:
    with Nursery(tmp_path) as nursery:
        winners, losers = race(nursery, "no-lock")
        codes = [loser.wait() for loser in losers]
        for winner in winners:
            winner.kill()
            winner.wait()
    wrong = len(winners) - 1 + sum(code != 3 for code in codes)
    note = "starts that were not turned away by name"
    figures.record("simultaneous starts in one folder: no lock", 20, wrong, note, control=True)
    assert wrong > 0
