"""Fixtures that several parts share: real servers as child processes, and a pool of one's own per test."""

import secrets
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis
from hypothesis import HealthCheck, settings
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from events.base import PoolId
from events.log.jetstream import JetStreamLog, connect
from services.runtime.config import LogProfile
from services.runtime.embedded import EmbeddedNats, start_nats, start_valkey

# Laws hold on a busy machine too, and how long an example took there is no finding.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# A shell ignores SIGINT for what it runs in the background, and children would go on ignoring it.
signal.signal(signal.SIGINT, signal.default_int_handler)


MEASURED = "measured"


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a value that a test measured, at the end of the run: in whichever process the test ran."""
    return lambda text: record_property(MEASURED, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured, in a section of its own."""
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.getreports(outcome)]
    said = [str(text) for report in reports for name, text in report.user_properties if name == MEASURED]
    if said:
        terminalreporter.section(MEASURED)
        for text in said:
            terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedNats]:
    """One NATS server for the whole run: each test has its own pool, so its own stream."""
    with start_nats(tmp_path_factory.mktemp("nats"), profile=LogProfile.FAST) as server:
        yield server


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server of each kind for the whole run: the Valkey that comes as a wheel, and the machine's own Redis
    (Debian's package), where it has one. Keys are named by pool."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "valkey":
        with start_valkey(folder) as server:
            yield server.url
        return
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine: apt-get install redis-server")
    path = folder / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        url = f"unix://{path}"
        with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.05), 200)) as client:
            client.ping()
        yield url
        process.terminate()


@pytest.fixture
def pool() -> PoolId:
    """A pool that nobody else uses."""
    return PoolId(f"test-{secrets.token_hex(6)}")


@pytest.fixture
async def jetstream_log(nats_server: EmbeddedNats, pool: PoolId) -> AsyncIterator[JetStreamLog]:
    """The log of a fresh pool on the run's NATS server."""
    client = await connect(nats_server.url, name="tests")
    log = await JetStreamLog.open(client, pool)
    yield log
    await log.close()
    await client.close()
