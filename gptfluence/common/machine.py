"""What a machine lets this process use. Needs nothing but Python: `run_all.sh` runs this file before packages are installed.

python gptfluence/common/machine.py      prints the number of cores
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMORY_FILES = ("memory.max", "memory.limit_in_bytes")  # of control groups of version 2 and 1


def cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may keep busy, 1 at least: every count of workers comes from here.

    They are those of its affinity, and no more than the CPU quota of its control groups (as containers and schedulers set
    them), rounded up. root: where `proc` and `sys` are found
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(root, "cpu") for quota in _quota(folder)]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def memory(root: Path = Path("/")) -> int:
    """The bytes of memory that this process may fill: the machine's, and no more than its control groups let it have."""
    words = [_read(folder / name) for folder in _groups(root, "memory") for name in _MEMORY_FILES]
    limits = [int(word) for word in words if word and word.isdecimal()]  # not "max"
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, and of the groups around them. controller: cpu or memory"""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # inside a container the path may be the host's, of which only the end of the way up is seen here
        for mount in ("", "unified") if not controllers else (controller, controllers):
            group = root / "sys/fs/cgroup" / mount / path.lstrip("/")
            yield from (group, *group.parents[: len(Path(path).parts)])


def _quota(folder: Path) -> list[float]:
    """The quota of one control group, of version 2 (cpu.max) or 1; none if it is not limited."""
    words = (_read(folder / "cpu.max") or "").split() or [
        _read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such files
        return []
    return [quota / period] if quota > 0 and period > 0 else []


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


if __name__ == "__main__":
    print(cores())
