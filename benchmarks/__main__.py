"""Run the benchmarks one after the other, each in a process of its own: python -m benchmarks [NAME ...].

Ends with 1 if one of them failed. With RLT_DATA_KEEP_RESULTS=1 each writes its figures to docs/results/NAME.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

#: In this order; about two hours on two cores that nobody else uses, most of them for overhead (a million traces) and
#: cluster. `vllm_generation` needs an environment with vLLM, which also adds it to `scoring`.
NAMES = (
    "limits",
    "scoring",
    "generation",
    "exactness",
    "memory",
    "ranking",
    "page",
    "grpo",
    "kill",
    "overhead",
    "cluster",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    failed = []
    for name in names:
        print(f"\n== {name} ==", flush=True)
        began = time.monotonic()
        environment = {"GOMP_SPINCOUNT": "1000"} | dict(os.environ)  # as the command line sets it
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], env=environment, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
