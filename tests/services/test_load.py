"""The load generator says an arrival in OpenAI's words, token for token."""

import json

from events.base import RequestKind
from replay.workloads.base import Arrival
from services.load import call_of, prompt_json


def arrival(**changes: object) -> Arrival:
    plain = {"at_ns": 0, "request_id": "r1", "prompt_tokens": 1200, "output_tokens": 5, "prefix": (7, 8, 9)}
    return Arrival(**(plain | changes))  # type: ignore[arg-type]


def test_a_prompt_has_exactly_its_tokens() -> None:
    for tokens in (1, 3, 511, 512, 513, 1200, 2000):
        assert len(json.loads(prompt_json(arrival(prompt_tokens=tokens)))) == tokens


def test_equal_prefix_ids_give_equal_tokens_and_others_do_not() -> None:
    one, two = (json.loads(prompt_json(arrival(prefix=ids))) for ids in ((7, 8, 9), (7, 8, 10)))
    assert one[:1024] == two[:1024]
    assert one[1024:] != two[1024:]


def test_far_apart_ids_do_not_collide() -> None:
    ids = [0, 1, 29_999, 30_000, 30_001, 900_000_000, 900_000_000 * 30_000]
    runs = {prompt_json(arrival(prompt_tokens=512, prefix=(i,))) for i in ids}
    assert len(runs) == len(ids)


def test_an_embedding_goes_to_its_own_path_without_an_output_length() -> None:
    path, body, headers = call_of(arrival(kind=RequestKind.EMBEDDING))
    assert path == "/v1/embeddings"
    assert len(json.loads(body)["input"]) == 1200
    assert "x-tidegate-output-tokens" not in headers
