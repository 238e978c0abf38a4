"""Run benchmarks in sequence, each in its own process: python -m benchmarks [NAME ...].

The exit code is 1 if a benchmark fails. With RLT_DATA_KEEP_RESULTS=1, each writes its figures to
docs/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

#: Takes about two hours on two idle cores, mostly for overhead (a million traces) and cluster.
NAMES = (
    "limits",
    "scaling",
    "recipes",
    "exactness",
    "memory",
    "ranking",
    "page",
    "grpo",
    "kill",
    "overhead",
    "parent",
    "cluster",
)
#: Only on request, because they need an environment with the peers: make bench-peers.
PEERS = ("scoring", "generation", "vllm_generation")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = f"default: {', '.join(NAMES)}; also: {', '.join(PEERS)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=known)
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - {*NAMES, *PEERS}):
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(NAMES + PEERS)}")
    failed = []
    for name in names:
        print(f"\n== {name} ==", flush=True)
        start = time.monotonic()
        environment = {"GOMP_SPINCOUNT": "1000"} | dict(os.environ)  # as rlt-data sets it
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], env=environment, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
