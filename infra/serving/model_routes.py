"""The routes that tell what there is and how it fares: models, health, metrics."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from components.config import Strict, by_path, models_in
from infra.config import ServeConfig
from infra.serving.api_error import ApiError
from infra.serving.backend import Backend
from infra.serving.served_model import ServedModel, find, names


def add(app: FastAPI, backend: Backend, config: ServeConfig) -> None:
    created = int(time.time())

    def card(name: str, model: ServedModel) -> dict:
        told = {"medium": model.medium.name, "size": model.size, "x-sampler": describe(model, config)}
        return {"id": name, "object": "model", "created": created, "owned_by": model.name, **told}

    @app.get("/v1/models")
    async def models() -> dict:
        known = names(await backend.served())
        return {"object": "list", "data": [card(name, model) for name, model in known.items()]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        return card(name, find(name, await backend.served(), config.aliases))

    @app.get("/champion")
    async def champion() -> dict:
        """What the page shows: what can be asked for, and where the model comes from."""
        model, *_ = await backend.served()
        return {
            "name": model.name,
            "version": model.version,
            **describe(model, config),
            "figures": model.figures,
            "definitions": {one["name"]: one for one in model.definitions},
            "lineage": {"family": model.run.family, "hash": model.hash, **model.run.provenance.model_dump()},
        }

    _add_health(app, backend)

    @app.get("/metrics")
    async def metrics(all: bool = False) -> Response:
        """Figures of the engines and of requests as Prometheus reads them; `all`: those of Ray itself, too."""
        return PlainTextResponse(await backend.metrics(all))


def _add_health(app: FastAPI, backend: Backend) -> None:
    @app.get("/livez")
    async def livez() -> dict:
        """Whether this process answers, whatever stands behind it."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 if an image can be made now, 503 if not."""
        try:
            champion, *_ = await backend.served()
            await backend.check(champion)
        except ApiError as error:
            return JSONResponse(error.body, 503, error.headers)
        return JSONResponse({"status": "ok"})

    @app.get("/healthz")
    async def healthz() -> dict:
        """What is served, the load of an engine, and what keeps the registry from being followed."""
        champion, *others = await backend.served()
        load = await backend.check(champion)
        followed = backend.trouble or "ok"
        told = {"model": champion.id, "others": [model.id for model in others], "load": load, "registry": followed}
        return {"status": "ok", **told}


def schema(settings: type[Strict]) -> dict[str, Any]:
    """The JSON schema of each setting, those of blocks below by their path: up1.augmentation."""
    found = {}
    for name, one in settings.model_json_schema()["properties"].items():
        blocks = models_in(settings.model_fields[name].annotation)
        below = {f"{name}.{path}": inner for block in blocks for path, inner in schema(block).items()}
        found |= below or {name: one}
    return found


def describe(model: ServedModel, config: ServeConfig) -> dict[str, Any]:
    """What can be asked of a model: enough to build a page on."""
    return {
        "medium": model.medium.name,
        "size": model.size,
        "own_sizes": list(model.own_sizes),
        "sizes": config.sizes,
        "classes": model.classes,
        "voices": model.voices,
        "accepts": model.accepts,
        "texts": model.condition("prompt") == "prompt",
        "guided": model.condition("negative_prompt") is not None,
        "edits": bool({"source", "image"} & set(model.accepts)),
        "settings": (settings := by_path(model.kind.Settings(**model.settings).model_dump(mode="json"))),
        "settings_schema": {name: one for name, one in schema(model.kind.Settings).items() if name in settings},
        "limits": {
            "n": config.max_images,
            "num_inference_steps": config.max_steps,
            "prompt": config.max_prompt_length,
            "body": config.max_body,
            "pixels": config.max_pixels,
            "seconds": config.deadline,
        },
    }
