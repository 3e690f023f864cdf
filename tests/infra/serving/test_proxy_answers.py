import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from infra.serving import api_error, proxy_answers


def client(answer) -> TestClient:
    async def endpoint(request):
        return answer

    app = Starlette(routes=[Route("/{path:path}", endpoint)], middleware=proxy_answers.middlewares())
    return TestClient(app)


@pytest.mark.parametrize("status", [404, 408, 500, 503])
def test_the_proxys_own_errors_are_told_in_the_schema(status):
    answer = client(PlainTextResponse("Path '/v1/models' not found. Ping ...", status)).get("/v1/models")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("answer", [JSONResponse({"error": {}}, 404), PlainTextResponse("a page"), JSONResponse([])])
def test_what_the_api_answers_passes(answer):
    given = client(answer).get("/v1/models")
    assert (given.status_code, given.content) == (answer.status_code, answer.body)


def test_the_proxys_own_paths_pass():
    assert client(PlainTextResponse("draining", 503)).get("/-/healthz").text == "draining"


def refusing(asked: list, hold: str = "0.2 2.0") -> TestClient:
    """Behind the proxy an API that refuses, and keeps which paths it was asked for."""

    async def endpoint(request):
        asked.append(request.url.path)
        error = api_error.queue_full(3)
        return JSONResponse(error.body, error.status, {**error.headers, api_error.HOLD: hold})

    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST"])]
    return TestClient(Starlette(routes=routes, middleware=proxy_answers.middlewares()))


def test_what_goes_for_all_is_said_without_asking_again_each_later_than_the_one_before():
    asked: list = []
    reached = refusing(asked)
    answers = [reached.post("/v1/images/generations", json={"prompt": "1"}) for _ in range(4)]
    assert asked == ["/v1/images/generations"]
    assert [int(answer.headers["retry-after"]) for answer in answers] == [3, 5, 7, 9]
    assert {answer.status_code for answer in answers} == {429}
    assert {answer.json()["error"]["code"] for answer in answers} == {"queue_full"}
    assert all(api_error.HOLD not in answer.headers for answer in answers)
    time.sleep(0.25)
    again = reached.post("/v1/images/generations", json={"prompt": "1"})
    assert len(asked) == 2 and int(again.headers["retry-after"]) == 3  # the API's own word


def test_other_paths_pages_and_what_only_reads_are_asked_for():
    asked: list = []
    reached = refusing(asked)
    reached.post("/v1/images/generations")
    reached.post("/v1/images/edits")
    reached.post("/v1/images/generations", headers={"Origin": "http://127.0.0.1:3000"})
    reached.get("/v1/models")
    assert len(asked) == 4
