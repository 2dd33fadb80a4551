"""Programs that take a turn for each line that they are given, and what the drivers of both benchmarks share."""

import json
import os
import socket
import statistics
import subprocess
import sys


class Program:
    """A process that takes a turn for each line that it is given; on one core where it is named."""

    def __init__(self, command, core=None):
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(
            self.command if core is None else ["taskset", "--cpu-list", str(core), *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def ready(self):
        self.answer()
        return self

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.command)} ended with {self.process.wait()}")
        return json.loads(line)

    def turn(self):
        self.go()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def spread(values):
    return statistics.median(values), min(values), max(values)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
