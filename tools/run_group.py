"""Runs a command and stops all of it, the programs it started included, when told to or when its caller is gone.

    python tools/run_group.py COMMAND ARGUMENT...

Ctrl-C in a terminal reaches every program in the foreground, but `kill` or a scheduler's time limit reach only one. So
the command gets a process group of its own, which is interrupted as a whole: Snakemake then tidies up after its jobs.
If it is still there after a grace period, or on a second signal, it is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

GRACE_SECONDS = 20.0


def main(command: list[str]) -> int:
    """The exit status of the command; 128 + n if signal n ended it."""
    caller = os.getppid()
    asked_at: list[float] = []
    # bash has programs in the background ignore Ctrl-C, and what ignores it hands that on; handlers are not handed on
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked_at.append(time.monotonic()))
    # open files are handed on: run_all.sh holds its locks by them
    running = subprocess.Popen(command, process_group=0, close_fds=False)

    interrupted_at = None
    while True:
        try:
            status = running.wait(timeout=0.2)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            pass
        if not asked_at and os.getppid() != caller:
            asked_at.append(time.monotonic())
        if not asked_at:
            continue
        now = time.monotonic()
        if interrupted_at is None:
            interrupted_at = now
            os.killpg(running.pid, signal.SIGINT)
        # one Ctrl-C may arrive twice, from the terminal and from run_all.sh; what comes a second later is a second one
        elif now - interrupted_at > GRACE_SECONDS or asked_at[-1] - asked_at[0] > 1:
            os.killpg(running.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
