"""Three hosts on one machine, as network namespaces on a bridge: a Ray head and two workers, each with an address.

The head's host has the project, the others do not see its folders: what they need must travel, or lie in storage.
Needs root, iproute2 and kernels that allow namespaces; `refusal` tells why not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NETWORK = "10.199.77"
GATEWAY = f"{NETWORK}.1"
BRIDGE = "lf-bridge"
HOSTS = {"head": 10, "one": 11, "two": 12}  # last part of the address
PATIENCE = 240  # seconds
HIDE = 'for folder in $HIDDEN; do mount -t tmpfs none "$folder" || exit; done; exec "$@"'  # from one mount namespace


def refusal() -> str:
    """Why there can be no namespaces here; empty, if there can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    done = subprocess.run(["ip", "netns", "add", "lf-probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", "lf-probe"], capture_output=True)
    return "" if done.returncode == 0 else f"network namespaces are not allowed here: {done.stderr.strip()}"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def address(host: str) -> str:
    return f"{NETWORK}.{HOSTS[host]}"


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A bridge with an address of this machine, and a namespace a host."""
    _clear()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in HOSTS:
            space, outer, inner = f"lf-{host}", f"lf-{host}-o", f"lf-{host}-i"
            ip("netns", "add", space)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", inner, "netns", space)
            ip("link", "set", outer, "master", BRIDGE, "up")
            ip("-n", space, "address", "add", f"{address(host)}/24", "dev", inner)
            ip("-n", space, "link", "set", inner, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield
    finally:
        _clear()


def _clear() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "delete", f"lf-{host}"], capture_output=True)
        subprocess.run(["ip", "link", "delete", f"lf-{host}-o"], capture_output=True)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)


def cut(host: str) -> None:
    ip("link", "set", f"lf-{host}-o", "down")


def heal(host: str) -> None:
    ip("link", "set", f"lf-{host}-o", "up")


def on(host: str, command: list[str]) -> list[str]:
    return ["ip", "netns", "exec", f"lf-{host}", *command]


@contextlib.contextmanager
def node(host: str, folder: Path, hidden: Path) -> Iterator[None]:
    """A Ray node that lives as long as the block; the head is the first. `folder` is Ray's, with a short path; nodes
    but the head have their own there, and find nothing in `hidden`."""
    own = {"GLOO_SOCKET_IFNAME": f"lf-{host}-i", "LATENT_FOUNDRY_CACHE": f"{folder}/cache"}
    is_head = host == "head"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address(host)}"]
    command += ["--object-store-memory=80000000", f"--num-cpus={0 if is_head else 1}"]
    if is_head:
        command += ["--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={folder}"]
    else:
        command = ["sh", "-c", HIDE, "sh", *command, f"--address={address('head')}:6379"]
        own["HIDDEN"] = f"{folder} {hidden}"
    with log_of(folder, host).open("a") as log:
        environment = {**os.environ, **own}
        process = subprocess.Popen(on(host, command), env=environment, cwd="/", stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def log_of(folder: Path, host: str) -> Path:
    """What a node's start says."""
    return folder / f"{host}.log"


def wait_for_nodes(count: int, folder: Path) -> None:
    """Until the head knows so many nodes alive. Raises TimeoutError."""
    script = f"import ray; ray.init('{address('head')}:6379', logging_level='error'); "
    script += "print(sum(n['Alive'] for n in ray.nodes()))"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done = subprocess.run(on("head", [sys.executable, "-c", script]), capture_output=True, text=True)
        if done.stdout.strip().endswith(str(count)):
            return
        time.sleep(1)
    logs = "".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
    raise TimeoutError(f"not {count} nodes: {done.stdout[-500:]} {done.stderr[-1500:]}\n{logs}")
