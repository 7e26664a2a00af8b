"""What the OpenAPI schema promises is what is answered, route by route; and it says what clients need."""

from __future__ import annotations

from collections import Counter

import pytest

import fuzz_requests
from gpa.serve.app import create_app

EXAMPLES = 30  # requests of a route; `make fuzz` tries for minutes


@pytest.fixture(scope="module")
def schema() -> dict:
    return create_app().openapi()


@pytest.mark.parametrize(("method", "path"), fuzz_requests.OPERATIONS)
def test_answers_are_those_of_the_schema(method: str, path: str) -> None:
    """No 5xx, no status, media type or shape that is not documented; and some requests are met."""
    statuses: Counter[int] = Counter()
    for seed in range(1, 6):  # routes of many fields are seldom met at once
        statuses += fuzz_requests.conforms(method, path, seed, EXAMPLES)
        if statuses[200]:
            return
    pytest.fail(f"nothing was met: {statuses}")


def test_files_are_sent_as_forms_of_many_parts(schema: dict) -> None:
    """A generated client would send a file in an URL-encoded form, or as text, otherwise."""
    files = 0
    for path, methods in schema["paths"].items():
        for media_type, content in methods.get("post", {}).get("requestBody", {}).get("content", {}).items():
            body = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            spoken = path.startswith("/v1/audio/speech") and "to-speech" not in path
            if spoken or path == "/v1/audio/voice_consents/{consent_id}":
                assert media_type == "application/json"
                continue
            assert media_type == "multipart/form-data", path
            files += str(body["properties"]).count("'format': 'binary'")
    assert files == 14


def test_every_route_says_how_it_may_fail(schema: dict) -> None:
    """All in the one shape of errors, the framework's own never."""
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            failures = {status: each for status, each in operation["responses"].items() if status != "200"}
            assert failures.keys() >= {"401", "500", "503"}, path
            assert method != "post" or failures.keys() >= {"400", "408", "413", "422", "429"}, path
            for each in failures.values():
                shape = each["content"]["application/json"]["schema"]["$ref"]
                assert shape == "#/components/schemas/Error" and each["description"]
            assert operation["responses"]["200"]["content"]
