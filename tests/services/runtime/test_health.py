"""/health and /metrics of a worker, asked over a real socket."""

import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.runtime import health
from services.runtime.config import Config, ConfigError


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_metrics_are_served_while_the_block_runs() -> None:
    registry = CollectorRegistry()
    Counter("tidegate_things", "Things.", registry=registry).inc(3)
    ailing = ""
    with health.serve(0, registry, ailing=lambda: ailing) as port:
        assert get(port, "/health") == (200, "ok\n")
        status, text = get(port, "/metrics")
        assert (status, "tidegate_things_total 3.0" in text) == (200, True)
        ailing = "the log is away"
        assert get(port, "/health") == (503, "the log is away\n")
    with pytest.raises(urllib.error.URLError):
        get(port, "/health")


def test_a_port_that_is_taken_is_a_wrong_setting() -> None:
    with health.serve(0, CollectorRegistry()) as port:
        config = Config(metrics_port=port - health.PORT_OFFSET["auditor"])
        with pytest.raises(ConfigError, match="metrics_port"), health.served(config, "auditor", CollectorRegistry()):
            pass


def test_nothing_is_served_when_it_is_off() -> None:
    with health.served(Config(metrics_port=0), "clock", CollectorRegistry()) as port:
        assert port == 0
