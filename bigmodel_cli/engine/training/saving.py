"""The checkpoints of a run in its folder: saved by every rank, and the newest valid one found again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core import atomic_files
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import LocalShard, Writer
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec, split_state
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.engine.training.restore import restore
from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.engine.training.run_folder import RunFolder
from bigmodel_cli.engine.training.sharded_build import own_shard


@dataclass(frozen=True)
class Checkpoints:
    """Where a run saves, and what it goes back to. Every rank of `group` calls these together."""

    folder: RunFolder
    writer: Writer
    group: Group

    def save(self, run: Run, best: bool) -> None:
        """Hand the run's state to the writer: each rank its own rows where they are many, else rank 0 the whole."""
        state = run.state(whole=False)
        if run.parallel.saves_shards and checkpoint.tensor_bytes(state) > run.recipe.train.shard_above:
            self.writer.save_shard(_parts(run, state), best)
            return
        state = run.parallel.gather_full(state, self.group.is_main)
        if self.group.is_main:
            self.writer.save(state, best)

    def roll_back(self, run: Run) -> bool:
        """Put the run back to its newest checkpoint; False where there is none."""
        self.writer.flush()
        try:
            state, _ = newest(self.folder, self.group, own_shard(run.recipe, self.group))
        except InputError:
            return False
        restore(run, state)
        self.folder.rewind(run.progress.epoch)
        return True


def newest(folder: RunFolder, group: Group, share: ShardSpec | None) -> tuple[dict[str, Any], list[str]]:
    """The newest valid checkpoint, which rank 0 chooses and every rank reads; and a line for each that was skipped.

    Raises:
        InputError: there is none.
    """
    if not group.is_main:
        chosen = group.broadcast(None)
        if chosen is None:
            raise InputError(f"{folder.path}: no valid checkpoint")
        return checkpoint.load(Path(chosen), share), []
    try:
        path, state, skipped = checkpoint.newest_valid(folder.path, share)
    except InputError:
        group.broadcast(None)
        raise
    if path.name == "best.pt" and not skipped:  # a kill came between best.pt and its link: end that save
        atomic_files.link(path, folder.path / "last.pt")
    group.broadcast(str(path))
    return state, skipped


def _parts(run: Run, state: dict[str, Any]) -> LocalShard:
    group = run.parallel.group
    plain, mine = split_state(state, run.parallel.local_rows, group.is_main)
    name = group.broadcast(atomic_files.SHARDS_PREFIX + uuid.uuid4().hex[:12])
    return LocalShard(name, run.progress.step, group.rank, group.world, plain, mine, run.recipe.parallel.timeout)
