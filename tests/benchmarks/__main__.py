"""Runs every benchmark, or the one that is named: `python -m tests.benchmarks [NAME]`."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

from tests import benchmarks

FOLDER = Path(benchmarks.__file__).parent


def names() -> list[str]:
    """The modules that measure something; the others are what these share."""
    found = [module.name for module in pkgutil.iter_modules([str(FOLDER)]) if module.name != "__main__"]
    return [name for name in found if "\ndef main(" in (FOLDER / f"{name}.py").read_text()]


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
