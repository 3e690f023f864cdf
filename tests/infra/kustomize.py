"""What `kustomize build` makes of infra/kuberay, for the features that are used there: resources, a namespace, and
JSON patches (RFC 6902: add and replace) on targets by kind and name."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml


def build(folder: Path) -> list[dict]:
    """The objects of a kustomization, patched."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(content) - {"apiVersion", "kind", "namespace", "resources", "patches"}
    assert not unknown, f"{folder}: {unknown} is not known here"
    objects = [item for name in content["resources"] for item in _load((folder / name).resolve())]
    for patch in content.get("patches", ()):
        touched = [item for item in objects if _is_meant(item, patch["target"])]
        assert touched, f"{folder}: {patch['target']} is the target of a patch and does not exist"
        for item in touched:
            for operation in yaml.safe_load((folder / patch["path"]).read_text()):
                apply(item, operation)
    if "namespace" in content:
        for item in objects:
            item["metadata"]["namespace"] = content["namespace"]
    return objects


def _load(path: Path) -> list[dict]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _is_meant(item: dict, target: dict[str, str]) -> bool:
    return target["kind"] == item["kind"] and target["name"] == item["metadata"]["name"]


def apply(item: dict, operation: dict) -> None:
    """One operation of a JSON patch. Raises KeyError or IndexError where what it replaces is absent."""
    *above, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in above:
        item = item[int(part) if isinstance(item, list) else part]
    value = copy.deepcopy(operation["value"])
    if isinstance(item, list):
        assert operation["op"] == "add" and last == "-", operation
        item.append(value)
        return
    if operation["op"] == "replace":
        item[last]  # must be there
    else:
        assert operation["op"] == "add" and last not in item, operation
    item[last] = value
