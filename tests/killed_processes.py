"""Processes of a test that are killed, and what they leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import vqkit


def start(script, *words, **environment):
    """Run a file of tests as a script, with this vqkit."""
    paths = os.pathsep.join([str(Path(vqkit.__file__).parents[1]), str(Path(__file__).parent)])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    command = [sys.executable, script, *map(str, words)]
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for the end; return the exit status and what was said to stderr."""
    error = process.communicate(timeout=200)[1]
    return process.returncode, error


def kill_at_rename(place, out):
    """Kill this process where it would rename its file number `place`, counted from 1; 0: never.

    With a negative `place` it is slow to rename, and `<out>.started` is there once it has begun.
    """
    replace, count = os.replace, [0]

    def deadly(part, path):
        count[0] += 1
        if count[0] == place:
            os.kill(os.getpid(), signal.SIGKILL)
        if place < 0:
            time.sleep(0.02)
            Path(f"{out}.started").touch()
        replace(part, path)

    os.replace = deadly
