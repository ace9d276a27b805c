"""Other people's machines: quotas of cores, file systems without locks, locales, homes that cannot be written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptfluence.common import machine


def control_groups(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A machine's /proc and /sys with these files, for `machine.cores`."""
    for name, content in {"proc/self/cgroup": membership, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


V1, V2 = "4:memory:/a\n3:cpu,cpuacct:/a/b\n", "0::/a/b\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        (V1, {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000"}, 1),
        (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "4", "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "2"}, 2),
        (V1, {"sys/fs/cgroup/memory/a/cpu.cfs_quota_us": "1", "sys/fs/cgroup/memory/a/cpu.cfs_period_us": "2"}, 8),
        (V2, {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2),
        (V2, {"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),  # more than there are
        (V2, {"sys/fs/cgroup/unified/cpu.max": "150000 100000\n"}, 2),
        (V2, {"sys/fs/cgroup/a/cpu.max": "nonsense"}, 8),
        ("", {}, 8),
    ],
)  # fmt: skip
def test_a_quota_of_cores_counts_and_those_around_it(tmp_path, eight_cores, membership, files, expected):
    assert machine.cores(control_groups(tmp_path, membership, files)) == expected


def test_a_machine_without_control_groups_counts_its_cores(tmp_path, eight_cores):
    assert machine.cores(tmp_path / "nothing here") == 8
