"""Save a run's checkpoints from every rank, and load the newest valid one."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.core.errors import CommandEnd, InputError, MachineError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.async_writer import LocalShard, Writer
from bigmodel_cli.engine.checkpoint.sharded import ShardSpec, split_state
from bigmodel_cli.engine.distributed.process_group import Group
from bigmodel_cli.engine.session.run_folder import RunFolder
from bigmodel_cli.engine.training.restore import restore
from bigmodel_cli.engine.training.run import Run
from bigmodel_cli.engine.training.sharded_build import own_shard


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores a run's checkpoints. Every rank of `group` must call these methods together."""

    folder: RunFolder
    writer: Writer
    group: Group

    def save(self, run: Run, best: bool) -> None:
        """Pass the run's state to the writer: each rank its shard if the state is large, else rank 0 all of it."""
        state = run.state(whole=False)
        if run.parallel.saves_shards and checkpoint.tensor_bytes(state) > run.recipe.train.shard_above:
            self.writer.save_shard(_local_shard(run, state), best)
            return
        state = run.parallel.gather_full(state, self.group.is_main)
        if self.group.is_main:
            self.writer.save(state, best)

    def roll_back(self, run: Run) -> bool:
        """Restore the run's newest checkpoint. Return False if there is none."""
        self.writer.flush()
        try:
            state, _ = newest(self.folder, self.group, own_shard(run.recipe, self.group))
        except InputError:
            return False
        restore(run, state)
        self.folder.rewind(run.progress.epoch)
        return True


def newest(folder: RunFolder, group: Group, shard: ShardSpec | None) -> tuple[dict[str, Any], list[str]]:
    """Load the newest valid checkpoint. Rank 0 chooses it and every rank reads it.

    Returns its state, and one line for each checkpoint that was passed over. Such a ``last.pt`` or ``best.pt``, which
    the next save would replace, is kept under another name: it may be whole, and only of a newer version.

    Raises:
        InputError: there is no valid checkpoint.
    """
    if not group.is_main:
        path = group.broadcast(None)
        if path is None:
            raise InputError(f"{folder.path}: no valid checkpoint")
        return checkpoint.load(Path(path), shard), []
    try:
        found = checkpoint.newest_valid(folder.path, shard)
        notes = [_keep_aside(path, reason) for path, reason in found.skipped]
    except CommandEnd:
        group.broadcast(None)
        raise
    if found.path.name == "best.pt":  # killed between writing best.pt and linking it: finish that save
        atomic_files.link(found.path, folder.path / "last.pt")
    group.broadcast(str(found.path))
    return found.state, notes


def _keep_aside(path: Path, reason: str) -> str:
    """Rename a checkpoint that was passed over, if the run would overwrite it; returns the note for the user."""
    if path.name not in ("last.pt", "best.pt"):
        return f"skipped {reason}"
    names = (path.with_name(f"{path.name}.skipped-{n}") for n in itertools.count(1))
    kept = next(name for name in names if not (name.exists() or name.is_symlink()))
    try:
        path.rename(kept)
    except OSError as error:
        raise MachineError(f"{path}: cannot be kept as {kept.name}: {error.strerror}") from None
    return f"skipped {reason}; kept as {kept.name}"


def _local_shard(run: Run, state: dict[str, Any]) -> LocalShard:
    group = run.parallel.group
    plain, rows = split_state(state, run.parallel.local_rows, group.is_main)
    name = group.broadcast(atomic_files.SHARDS_PREFIX + uuid.uuid4().hex[:12])
    return LocalShard(name, run.progress.step, group.rank, group.world, plain, rows, run.recipe.parallel.timeout)
