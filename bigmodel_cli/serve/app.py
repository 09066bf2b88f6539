"""The routes of the service. Every response with a status of 400 or more is one line of JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bigmodel_cli.serve.http_errors import HttpRefusal, line
from bigmodel_cli.serve.middleware import Middleware
from bigmodel_cli.serve.model import ReadsQueries
from bigmodel_cli.serve.page import PAGE, POLICY
from bigmodel_cli.serve.service import Service

TOP = {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1}, "description": "Classes a sample."}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def build_app(service: Service, log: Callable[[str], None], log_all: bool) -> Middleware:
    """The ASGI application. `log` receives a line for each request that hit a bug, or with `log_all` for every one."""
    # FastAPI's documentation pages load scripts from a CDN, so only /openapi.json is served.
    app = FastAPI(title="bigmodel serve", docs_url=None, redoc_url=None)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(PAGE, headers=headers, media_type="text/html")

    @app.get("/model")
    async def model() -> Response:
        """The served model: name, format, class names, digest of its file, and request limits."""
        limits = service.options.limits
        most = {"bytes": limits.size, "pixels": limits.pixels, "samples": limits.samples}
        return _json({**service.served.about, "limits": most})

    body = {"content": service.served.reader.content, "required": True}

    @app.post("/predict", openapi_extra={"requestBody": body, "parameters": [TOP]})
    async def predict(request: Request) -> Response:
        """The answer for each sample: classes or labels with probabilities, most likely first, or numbers."""
        return _json(await service.predict(request))

    if isinstance(service.served.reader, ReadsQueries):
        path = service.served.reader.query_path
        app.post(path, openapi_extra={"requestBody": body, "parameters": [TOP]})(predict)
        app.get(path, openapi_extra={"parameters": [TOP]})(predict)

    @app.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        """200 if the model responds."""
        await service.healthy()
        return _json({"status": "ok"})

    @app.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    async def readyz() -> Response:
        """200 if a request would be accepted now."""
        service.ready()
        return _json({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": PROMETHEUS})

    _errors(app)
    return Middleware(app, service, log, log_all)


def _errors(app: FastAPI) -> None:
    paths = sorted({path for route in app.routes if (path := getattr(route, "path", None))})

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: "no such path", 405: f"{request.method} is not for this path"}.get(error.status_code, error.detail)
        return _refused(
            HttpRefusal(error.status_code, what, hint="the paths are " + " ".join(paths)), error.headers or {}
        )

    @app.exception_handler(HttpRefusal)
    async def refused(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, HttpRefusal)
        return _refused(refusal, {})

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # the client is gone; this is only for the metrics

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return _refused(HttpRefusal(500, f"the service failed: {type(error).__name__}"), {})


def _json(value: Any) -> Response:
    return Response(line(value), media_type="application/json")


def _refused(refusal: HttpRefusal, headers: Any) -> Response:
    return Response(refusal.body(), refusal.status, {**headers, **refusal.headers()}, "application/json")
