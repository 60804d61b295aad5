"""Says what the devices of this host measure, every few seconds; where there are none, says so once."""

import asyncio
import logging
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from events.base import Event, LogError
from events.engine import DevicesUnseen
from services.engines.open import Engines
from services.runtime.devices import Devices, NoDevices, measured
from services.runtime.facts import FactWriter

EVERY_S: Final = 5.0
"""Wall time between two readings: devices know no other."""
AGAIN_S: Final = 60.0
"""Wall time until it is tried again where there were none: a driver may be loaded later."""

logger = logging.getLogger(__name__)


class DeviceWatch:
    """Writes with the source `sensor`. Whether and why not devices are seen is a metric: `tidegate_devices`."""

    def __init__(
        self, devices: Devices, engines: Engines, *, host: str, writer: FactWriter, registry: CollectorRegistry
    ) -> None:
        self._devices, self._engines, self._host, self._writer = devices, engines, host, writer
        self._seen = Gauge(
            "tidegate_devices", "Devices that NVML shows here; 0 with the reason why none.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self._unseen = ""

    async def run(self) -> None:
        """Read and say, until cancelled."""
        while True:
            seen = await self.look()
            await asyncio.sleep(EVERY_S if seen else AGAIN_S)

    async def look(self) -> bool:
        """Read once, in a thread: a driver may take its time. Whether there was a device."""
        try:
            devices = await asyncio.to_thread(self._devices.read)
        except NoDevices as error:
            self._none(error)
            return False
        self._note(len(devices), "")
        engines = [self._engines.config(engine_id) for engine_id in self._engines]
        for device in devices:
            self._say(measured(self._host, device, engines))
        return True

    def _none(self, error: NoDevices) -> None:
        if self._unseen != error.reason:
            logger.info("no device is measured: %s", error.what)
            self._say(DevicesUnseen(host=self._host, reason=error.reason))
        self._note(0, error.reason)

    def _note(self, devices: int, reason: str) -> None:
        self._unseen = reason
        self._seen.clear()
        self._seen.labels(reason).set(devices)

    def _say(self, event: Event) -> None:
        if self._writer.down_since is not None:
            return  # What was measured while nobody listened is worth nothing later.
        try:
            self._writer.say(event)
        except LogError as error:
            logger.warning("not said: %s", error)
