"""params.yaml and dvc.lock as they stand, before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.errors import ConfigError


def read(path: Path) -> Any:
    """Raises ConfigError of what is no file, no UTF-8 or no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; run from the project's root") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; expected a file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def mapping(path: Path) -> dict[str, Any]:
    """The same; raises ConfigError of what holds no mapping, too."""
    content = read(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of blocks, found {type(content).__name__}")
    return content


def locked_stages(path: Path) -> dict[str, Any]:
    """The stages of a dvc.lock; none of one that is not there. Raises ConfigError of a damaged one, with the cure."""
    if not path.exists():
        return {}
    try:
        stages = mapping(path).get("stages") or {}
        if not isinstance(stages, dict):
            raise ConfigError(f"{path}: stages: expected a mapping, found {type(stages).__name__}")
    except ConfigError as error:
        raise ConfigError(f"{error}; git has an older one, or without the file `dvc repro` writes it anew") from None
    return stages
