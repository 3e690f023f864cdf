"""Runs every benchmark, or the one that is named: `python -m tests.benchmarks [NAME]`."""

import importlib
import pkgutil
import subprocess
import sys

from tests import benchmarks

NOT_BENCHMARKS = {"__main__", "captioned", "common", "digits", "quality"}
NOT_BENCHMARKS |= {"served_process", "serving_load", "serving_peers"}


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in NOT_BENCHMARKS]


def main(argv: list[str]) -> int:
    unknown = set(argv) - set(names())
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; expected one of {', '.join(names())}", file=sys.stderr)
        return 2
    if len(argv) == 1:
        importlib.import_module(f"tests.benchmarks.{argv[0]}").main()
        return 0
    # each in a process of its own, so that none inherits threads, caches or a Ray session
    codes = [
        subprocess.run([sys.executable, "-m", "tests.benchmarks", name], check=False).returncode for name in names()
    ]
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
