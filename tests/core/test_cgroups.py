"""The limits of a container count as the machine's, in every layout in which the kernel shows them."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from bigmodel_cli.core.processes import cgroups, cpu_count, host_memory
from bigmodel_cli.engine.device import env_check

GB = 1 << 30
V2 = "35 30 0:30 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate"
V1 = "36 31 0:3{n} {root} /sys/fs/cgroup/{at} rw - cgroup cgroup rw,{controllers}"


@dataclass(frozen=True)
class Scene:
    """What a kernel shows, and what is read from it: bytes allowed, bytes left, cores."""

    mounts: tuple[str, ...]
    groups: str
    files: dict[str, str]
    memory: int | None
    left: int | None
    cores: int | None


SCENES = {
    "docker, version 2": Scene(
        (V2.format(root="/"),), "0::/\n",
        {"memory.max": f"{2 * GB}", "memory.current": f"{GB}", "memory.stat": f"anon 7\ninactive_file {GB // 2}\n",
         "cpu.max": "150000 100000"},
        2 * GB, 2 * GB - GB // 2, 2,
    ),
    "a service whose slice has the tighter limit": Scene(
        (V2.format(root="/"),), "0::/a.slice/b.service\n",
        {"a.slice/memory.max": f"{GB}", "a.slice/memory.current": f"{GB // 4}", "a.slice/cpu.max": "100000 100000",
         "a.slice/b.service/memory.max": f"{2 * GB}", "a.slice/b.service/memory.current": "0",
         "a.slice/b.service/cpu.max": "max 100000"},
        GB, GB - GB // 4, 1,
    ),
    "version 2 without limits": Scene(
        (V2.format(root="/"),), "0::/a\n", {"a/memory.max": "max", "a/memory.current": "5", "a/cpu.max": "max 100000"},
        None, None, None,
    ),
    "docker, version 1, with the host's paths": Scene(
        (V1.format(n=1, root="/docker/1f", at="memory", controllers="memory"),
         V1.format(n=2, root="/docker/1f", at="cpu,cpuacct", controllers="cpu,cpuacct")),
        "9:memory:/docker/1f\n8:cpu,cpuacct:/docker/1f\n7:name=systemd:/docker/1f\n0::/system.slice\n",
        {"memory/memory.limit_in_bytes": f"{3 * GB}", "memory/memory.usage_in_bytes": f"{GB}",
         "memory/memory.stat": f"total_inactive_file {GB}", "cpu,cpuacct/cpu.cfs_quota_us": "50000",
         "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        3 * GB, 3 * GB, 1,
    ),
    "version 1 without limits": Scene(
        (V1.format(n=1, root="/", at="memory", controllers="memory"),
         V1.format(n=2, root="/", at="cpu", controllers="cpu")),
        "4:memory:/a\n1:cpu:/\n",
        {"memory/a/memory.limit_in_bytes": "9223372036854771712", "memory/a/memory.usage_in_bytes": "5",
         "cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None, None, None,
    ),
    "a group that is not to be seen here": Scene(
        (V2.format(root="/kubepods/pod1"),), "0::/../pod2\n", {"memory.max": f"{GB}", "memory.current": "0"},
        GB, GB, None,
    ),
    "broken files": Scene(
        ("35 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup rw",), "0::/\nnonsense\n",
        {"memory.max": "many", "cpu.max": "0 0"}, None, None, None,
    ),
}  # fmt: skip


def lay(scene: Scene, root: Path) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in scene.files.items()}
    files |= {"proc/self/mountinfo": "\n".join(scene.mounts), "proc/self/cgroup": scene.groups}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_the_limits_of_a_group_are_read(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(scene, tmp_path)
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert (cgroups.memory_limit(), cgroups.memory_left()) == (scene.memory, scene.left)
    assert cgroups.cpu_limit() == scene.cores


def test_who_asks_for_memory_or_cores_meets_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert cpu_count.available_cores() == 8 and "limit" not in env_check._cpu().value
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory.memory_total() == physical and "limit" not in env_check._memory().value
    scene = SCENES["docker, version 2"]
    lay(scene, tmp_path)
    assert (host_memory.memory_total(), cpu_count.available_cores()) == (2 * GB, 2)
    assert host_memory.memory_available() <= 2 * GB - GB // 2
    memory, cpu = env_check._memory(), env_check._cpu()
    assert memory.amount == 2 * GB and memory.value.endswith("by the limit of this container or service")
    assert cpu.amount == 2 and "2 cores by the limit of this container or service" in cpu.value
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{physical * 2}")  # looser than the machine: no limit
    assert host_memory.memory_total() == physical and "limit" not in env_check._memory().value


ASKS = {"os.cpu_count", "os.sched_getaffinity", "multiprocessing.cpu_count", "psutil"}


def test_nobody_asks_the_machine_past_them() -> None:
    package = Path(cgroups.__file__).parents[2]
    found = {
        f"{path.relative_to(package).as_posix()}: {ask}"
        for path in package.rglob("*.py")
        for ask in (*ASKS, "MemAvailable", "SC_PHYS_PAGES")
        if ask in path.read_text(encoding="utf-8")
    }
    own = {f"core/processes/cpu_count.py: {ask}" for ask in ("os.cpu_count", "os.sched_getaffinity")}
    assert found == own | {f"core/processes/host_memory.py: {ask}" for ask in ("MemAvailable", "SC_PHYS_PAGES")}
