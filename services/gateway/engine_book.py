"""What a gateway knows of the pool's engines: what they serve, and whether they answer."""

import time
from collections.abc import Iterable
from typing import Final

from events.base import EngineId, ModelId, RequestKind
from events.engine import EngineHealthChanged, EngineMeasured, EngineRegistered, EngineRemoved, Health

AVOID_S: Final = 5.0
"""How long an engine that broke a call off is passed over when nobody decides."""


class EngineBook:
    """Fed from the configuration, then by the log, then by what this gateway meets itself."""

    def __init__(self, known: Iterable[EngineRegistered] = ()) -> None:
        self._known: dict[EngineId, EngineRegistered] = {}
        self._health: dict[EngineId, Health] = {}
        self._broke_off: dict[EngineId, float] = {}
        for registered in known:
            self._known[registered.engine_id] = registered

    def take(self, event: EngineRegistered | EngineRemoved | EngineHealthChanged | EngineMeasured) -> None:
        """A fact about an engine."""
        match event:
            case EngineRegistered():
                self._known[event.engine_id] = event
            case EngineRemoved():
                self._known.pop(event.engine_id, None)
                self._health.pop(event.engine_id, None)
                self._broke_off.pop(event.engine_id, None)
            case EngineHealthChanged():
                self._health[event.engine_id] = event.health
                if event.health is Health.READY:
                    self._broke_off.pop(event.engine_id, None)
            case EngineMeasured():
                # Health is said when it changes; whoever came later hears of it by what is measured.
                self._health.setdefault(event.engine_id, Health.READY)

    def broke_off(self, engine_id: EngineId) -> None:
        """An engine broke off a call."""
        self._broke_off[engine_id] = time.monotonic()

    def models(self) -> tuple[ModelId, ...]:
        """All models that any engine serves, each once, in the order of engines."""
        return tuple(dict.fromkeys(model for each in self._known.values() for model in each.models))

    def serving(self, model: ModelId, kind: RequestKind) -> list[EngineRegistered]:
        """Engines that take this kind of request for this model and are not known to be lost or draining."""
        return [
            each
            for each in self._known.values()
            if model in each.models
            and (each.capability.embedding if kind is RequestKind.EMBEDDING else each.capability.llm)
            and self._is_ready(each.engine_id)
        ]

    def ready(self) -> tuple[EngineId, ...]:
        """Engines that the log has shown to answer, and that have not been lost since."""
        return tuple(each for each in self._known if each in self._health and self._is_ready(each))

    def get(self, engine_id: EngineId) -> EngineRegistered | None:
        """What an engine is."""
        return self._known.get(engine_id)

    def _is_ready(self, engine_id: EngineId) -> bool:
        if self._health.get(engine_id, Health.READY) is not Health.READY:
            return False
        broke_off = self._broke_off.get(engine_id)
        return broke_off is None or time.monotonic() - broke_off >= AVOID_S
