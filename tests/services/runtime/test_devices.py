"""Whose the memory of a device is, what is said of it, and that a host without NVML is no error."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from events.base import Event
from events.engine import DeviceMeasured, DevicesUnseen
from events.log.memory import MemoryLog
from services.engines.open import Engines
from services.runtime.config import EngineConfig
from services.runtime.device_watch import DeviceWatch
from services.runtime.devices import Device, NoDevices, NvmlDevices, Process, Unseen, measured
from services.runtime.facts import FactWriter
from services.runtime.pool_clock import PoolClock
from services.runtime.view_rows import View
from services.runtime.views import Views
from tests.services.runtime import toy

GIB = 2**30
VLLM = ("python", "/usr/bin/vllm", "serve", "m")
CORE = ("VLLM::EngineCore",)


def engine(port: int, *, host: str = "127.0.0.1", llm: bool = True, embedding: bool = False, devices: Any = ()) -> Any:
    url = f"http://{host}:{port}"
    return EngineConfig(
        id=f"e{port}", models=["m"], url=url, llm=llm, embedding=embedding, devices=list(devices)
    )  # fmt: skip


def process(gib: int, *commands: tuple[str, ...]) -> Process:
    return Process(gib * GIB, commands)


def device(*processes: Process, used: int = 60, number: int = 0) -> Device:
    return Device(number, "GPU", 80 * GIB, used * GIB, 250_000, processes)


LLM, EMBEDDING, BOTH = engine(8001), engine(8002, llm=False, embedding=True), engine(8003, embedding=True)


@pytest.mark.parametrize(
    ("processes", "engines", "whose"),
    [
        pytest.param([process(40, CORE, (*VLLM, "--port", "8001"))], [LLM, EMBEDDING], (40, 0, 0), id="by its port"),
        pytest.param([process(40, (*VLLM, "--port=8002"))], [LLM, EMBEDDING], (0, 40, 0), id="with an equals sign"),
        pytest.param([process(40, CORE, VLLM)], [engine(8000)], (40, 0, 0), id="vLLM's own port"),
        pytest.param([process(40, (*VLLM, "--port", "8003"))], [BOTH], (0, 0, 40), id="serves both"),
        pytest.param(
            [process(30, (*VLLM, "--port", "8001")), process(20, (*VLLM, "--port", "8002"))], [LLM, EMBEDDING],
            (30, 20, 0), id="two engines on one device",
        ),
        pytest.param([process(40, ("python", "train.py"))], [LLM], (0, 0, 0), id="somebody else's"),
        pytest.param([process(40, (*VLLM, "--port", "8001"))], [engine(8001, host="far.example")], (0, 0, 0),
                     id="the same port on another host is another engine"),
        pytest.param([], [engine(8001, devices=[0])], (60, 0, 0), id="claimed, and NVML names no process"),
        pytest.param([process(0)], [engine(8001, devices=[0])], (60, 0, 0), id="claimed, and nothing is told of it"),
        pytest.param([], [engine(8001, devices=[1])], (0, 0, 0), id="another device is claimed"),
        pytest.param([], [engine(8001, devices=[0]), engine(8002, llm=False, embedding=True, devices=[0])], (0, 0, 60),
                     id="claimed by two kinds"),
        pytest.param([process(20, (*VLLM, "--port", "8002"))], [engine(8001, devices=[0]), EMBEDDING], (40, 20, 0),
                     id="the rest of what one has is the claimant's"),
    ],
)  # fmt: skip
def test_memory_belongs_to_whom_its_processes_or_its_claims_say(
    processes: list[Process], engines: list[EngineConfig], whose: tuple[int, int, int]
) -> None:
    fact = measured("h", device(*processes), engines)
    assert (fact.llm_bytes, fact.embedding_bytes, fact.shared_bytes) == tuple(gib * GIB for gib in whose)
    assert (fact.bytes_total, fact.bytes_used, fact.busy_ppm) == (80 * GIB, 60 * GIB, 250_000)


class MemoryDevices:
    """Devices as a test sets them."""

    def __init__(self, *devices: Device, unseen: Unseen | None = None) -> None:
        self.devices, self.unseen = list(devices), unseen

    def read(self) -> list[Device]:
        if self.unseen is not None:
            raise NoDevices(self.unseen, "none here")
        return self.devices


class House:
    """A watch over devices, and what it says."""

    def __init__(self, devices: MemoryDevices) -> None:
        self.log, self.registry = MemoryLog(toy.POOL), CollectorRegistry()
        self.writer = FactWriter(self.log, source="sensor", owner="s1", clock=PoolClock())
        engines = Engines(lambda config: SimpleNamespace(engine_id=config.id))  # type: ignore[arg-type,return-value]
        self.engines = engines
        self.watch = DeviceWatch(devices, engines, host="h", writer=self.writer, registry=self.registry)

    def metric(self) -> list[str]:
        lines = generate_latest(self.registry).decode().splitlines()
        return [line for line in lines if line.startswith("tidegate_devices{")]

    def said(self) -> list[Event]:
        return [record.event for record in toy.records(self.log)]


@asynccontextmanager
async def watching(devices: MemoryDevices) -> AsyncIterator[House]:
    house = House(devices)
    await house.engines.reload([LLM])
    writing = asyncio.create_task(house.writer.run())
    yield house
    await house.writer.close()
    await writing


async def test_every_look_says_every_device() -> None:
    async with watching(MemoryDevices(device(), device(number=1))) as house:
        assert await house.watch.look()
        assert await house.watch.look()
        await house.writer.close()
        said = [event for event in house.said() if isinstance(event, DeviceMeasured)]
    assert [event.device for event in said] == [0, 1, 0, 1]
    assert house.metric() == ['tidegate_devices{reason=""} 2.0']


async def test_a_host_without_devices_is_said_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    devices = MemoryDevices(unseen=Unseen.NO_LIBRARY)
    with caplog.at_level(logging.INFO):
        async with watching(devices) as house:
            for _ in range(3):
                assert not await house.watch.look()
            assert house.metric() == ['tidegate_devices{reason="no_library"} 0.0']
            devices.unseen, devices.devices = None, [device()]
            assert await house.watch.look()
            assert house.metric() == ['tidegate_devices{reason=""} 1.0']
            devices.unseen = Unseen.NO_DRIVER
            assert not await house.watch.look()
            await house.writer.close()
    assert [event.event_kind() for event in house.said()] == ["devices_unseen", "device_measured", "devices_unseen"]
    assert len([record for record in caplog.records if "no device" in record.message]) == 2
    views = Views()
    for record in toy.records(house.log):
        views.take(record)
    assert {name: row.unseen for name, row in views.tables[View.DEVICES].items()} == {"h": "no_driver"}


async def test_the_views_forget_that_there_was_none_once_there_is_one() -> None:
    views = Views()
    for seq, event in enumerate([DevicesUnseen(host="h", reason="no_driver"), measured("h", device(), [])], start=1):
        views.take(toy.Recorded(seq=seq, item=0, event=event))
    assert list(views.tables[View.DEVICES]) == ["h/0"]


class FakeNvml:
    """What NVML answers, behind the names that pynvml has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, devices: int = 1, fails: int = 0) -> None:
        self.open, self.fails, self.devices = 0, fails, devices
        for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex",
                     "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName", "nvmlDeviceGetUtilizationRates",
                     "nvmlDeviceGetComputeRunningProcesses"):  # fmt: skip
            monkeypatch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self) -> None:  # noqa: N802
        if self.fails:
            raise pynvml.NVMLError(self.fails)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, used=60 * GIB)

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        import os

        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None), SimpleNamespace(pid=2**22 + 1, usedGpuMemory=5)]


def test_what_nvml_tells_is_read_and_what_it_does_not_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(monkeypatch)
    [one] = NvmlDevices().read()
    assert (one.name, one.bytes_total, one.bytes_used, one.busy_ppm) == ("GPU", 80 * GIB, 60 * GIB, 0)
    ours, gone = one.processes
    assert ours.used == 0
    assert ours.commands[0] == tuple(Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"))
    assert gone == Process(5, ())
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, Unseen.NO_LIBRARY),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, Unseen.NO_DRIVER),
        (pynvml.NVML_ERROR_NO_PERMISSION, Unseen.NO_PERMISSION),
        (pynvml.NVML_ERROR_UNKNOWN, Unseen.FAILED),
    ],
)
def test_why_nvml_does_not_answer_is_one_of_few_words(
    monkeypatch: pytest.MonkeyPatch, code: int, reason: Unseen
) -> None:
    FakeNvml(monkeypatch, fails=code)
    with pytest.raises(NoDevices) as none:
        NvmlDevices().read()
    assert none.value.reason is reason


def test_a_driver_without_a_device_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, devices=0)
    with pytest.raises(NoDevices) as none:
        NvmlDevices().read()
    assert none.value.reason is Unseen.NO_DEVICE


def test_the_real_nvml_names_devices_or_says_why_not() -> None:
    what, devices = "", []
    try:
        devices = NvmlDevices().read()
    except NoDevices as none:
        what = none.what
    assert bool(devices) is not bool(what)
    assert all(0 < device.bytes_used <= device.bytes_total for device in devices)
