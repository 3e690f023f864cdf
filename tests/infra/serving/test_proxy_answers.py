import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from infra.serving import proxy_answers


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
