"""How the memory fails: typed, with fields, so that a caller decides by the kind and not by a text.

Fields are amounts and names; the sentence is made in `__str__` alone. `where` says which pool, tier or file it was. A
name is a slice's or a handle's: never a token, never a prompt.
"""


class KVError(Exception):
    """The memory could not do what was asked, and nothing changed: no half block, no half reservation."""

    def __init__(self, *, where: str) -> None:
        super().__init__(where)
        self.where = where


class BudgetExceeded(KVError):
    """`asked` is more than the `free` part of a budget of `limit`, all three in `unit` ("bytes", "tokens", ...)."""

    def __init__(self, *, where: str, asked: int, free: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(where=where)
        self.asked, self.free, self.limit, self.unit = asked, free, limit, unit

    def __str__(self) -> str:
        return f"{self.where}: {self.asked} {self.unit} asked, {self.free} of {self.limit} free"


class DoubleFree(KVError):
    """What was to be given back is not held: it was given back before, or never handed out there."""

    def __init__(self, *, where: str, name: str) -> None:
        super().__init__(where=where)
        self.name = name

    def __str__(self) -> str:
        return f"{self.where}: {self.name} is not held, so it cannot be given back"


class Pinned(KVError):
    """What was to be freed, moved, overwritten or evicted is held `pins` times by somebody else."""

    def __init__(self, *, where: str, name: str, pins: int = 1) -> None:
        super().__init__(where=where)
        self.name, self.pins = name, pins

    def __str__(self) -> str:
        return f"{self.where}: {self.name} is held ({self.pins})"


class NoVictim(KVError):
    """`asked` had to be made free; all that may be evicted comes to `evictable`, both in `unit`."""

    def __init__(self, *, where: str, asked: int, evictable: int, unit: str = "bytes") -> None:
        super().__init__(where=where)
        self.asked, self.evictable, self.unit = asked, evictable, unit

    def __str__(self) -> str:
        return f"{self.where}: {self.asked} {self.unit} to be made free, {self.evictable} may be evicted"


class NotResident(KVError):
    """The slice is not (wholly) there."""

    def __init__(self, *, where: str, name: str) -> None:
        super().__init__(where=where)
        self.name = name

    def __str__(self) -> str:
        return f"{self.where}: {self.name} is not resident"


class ChecksumMismatch(KVError):
    """The bytes found under this name are not those that were stored: they are never served. `why` says what differs
    ("checksum", "length", "magic", "version", "name", "namespace", "generation")."""

    def __init__(self, *, where: str, name: str, why: str = "checksum") -> None:
        super().__init__(where=where)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.where}: {self.name} is damaged ({self.why} differs)"


class TierUnavailable(KVError):
    """The tier cannot be used now: the disk is full or read-only, the peer is gone, the link is closed. `why` is what
    the system said, `lasting` that it does not mend itself, and `mend` what would ("" = nobody need do anything)."""

    def __init__(self, *, where: str, why: str, lasting: bool = False, mend: str = "") -> None:
        super().__init__(where=where)
        self.why, self.lasting, self.mend = why, lasting, mend

    def __str__(self) -> str:
        return f"{self.where}: unavailable ({self.why})" + (f"; {self.mend}" if self.mend else "")


class UnsupportedSchema(KVError):
    """KV of this format cannot be kept, converted or moved there; `why` names what does not fit."""

    def __init__(self, *, where: str, why: str) -> None:
        super().__init__(where=where)
        self.why = why

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"
