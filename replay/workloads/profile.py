"""A workload as a YAML profile: who asks, how often, how long prompts and answers are, and what must hold.

A profile has tenants and streams. A stream is sessions of LLM requests (turns that grow on each other), or embedding
jobs. Its starts may come in clusters; `pace` makes all streams busy at the same time. See docs/workloads.md for every
field, and `replay.workloads.drawn` for how arrivals are drawn.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from events.base import NS_PER_MS, RequestKind
from replay.workloads.lengths import Lengths, always
from replay.workloads.slo import Slo

PROFILES = "replay.workloads.profiles"
SUFFIX = ".yaml"
BYTES_MAX = 1 << 20
STARTS_PER_S_MAX = 10_000
CONTEXT_TOKENS = 131_072

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class ProfileError(Exception):
    """A profile cannot be used: which, what is wrong with it, and the mend."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.mend}"


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must hold for a stream: TTFT <= max(`ttft_min_ms`, `ttft_factor` x unloaded TTFT), mean TPOT <= `tpot_ms`
    (0 = no limit; embeddings have none)."""

    ttft_min_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] = 1_000
    ttft_factor: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 2
    tpot_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 50

    def slo(self) -> Slo:
        """The same in the words of the scorer."""
        return Slo(
            ttft_min_ns=self.ttft_min_ms * NS_PER_MS, ttft_factor=self.ttft_factor, tpot_ns=self.tpot_ms * NS_PER_MS
        )


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Starts that come together: `size` of them within `within_ms`. The mean rate stays what it is."""

    size: Lengths
    within_ms: Annotated[int, msgspec.Meta(ge=0, le=3_600_000)] = 1_000


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calm and busy phases in turn, the same for all streams: starts are `busy_factor` times as dense in busy ones.
    The number of starts stays what it is."""

    calm_s: Lengths
    busy_s: Lengths
    busy_factor: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 4


class Documents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Documents that sessions share: `share_percent` of them open with one of `count`, the n-th as often as 1/n
    (Zipf)."""

    count: Count
    tokens: Lengths
    share_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 100


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who asks: how much of each of its streams, at which priority, and how long the system prompt is that all its
    sessions share."""

    weight: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    system_tokens: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class Stream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of traffic. `starts_per_s`: sessions (or embedding jobs) a second at scale 1. `tenants` by name, empty =
    all. `opening_tokens` is what a session's first prompt has beyond system prompt and document, `message_tokens` what
    each later turn adds to prompt and answers so far. A turn that would not fit `context_tokens_max` is not asked, and
    the session ends before it. `tokens_max` is the client's cap, 0 = none given."""

    name: Name
    kind: RequestKind = RequestKind.LLM
    starts_per_s: Annotated[float, msgspec.Meta(gt=0, le=STARTS_PER_S_MAX)]
    model: str = ""
    tenants: tuple[str, ...] = ()
    cluster: Cluster | None = None
    slo: Envelope = Envelope()
    turns: Lengths = always(1)
    opening_tokens: Lengths = always(0)
    message_tokens: Lengths = always(0)
    answer_tokens: Lengths = always(1)
    think_ms: Lengths = always(0)
    documents: Documents | None = None
    tokens_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    context_tokens_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = CONTEXT_TOKENS
    inputs: Lengths = always(1)
    input_tokens: Lengths = always(0)

    def __post_init__(self) -> None:
        embedding = self.kind is RequestKind.EMBEDDING
        if embedding and not self.input_tokens.most():
            raise ValueError(f"stream {self.name}: embedding jobs need input_tokens")
        if not embedding and not (self.opening_tokens.most() or self.documents):
            raise ValueError(f"stream {self.name}: prompts need opening_tokens or documents")


class Fit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How near a profile comes to what it was fitted to. `*_ks`: greatest distance between the two distribution
    functions of prompt and answer lengths (Kolmogorov-Smirnov); the others as (trace, profile) pairs: requests a
    second, index of dispersion of arrivals in 10 s windows, and ideal prefix hit share of prompt tokens."""

    prompt_ks: float
    answer_ks: float
    requests_per_s: tuple[float, float]
    dispersion: tuple[float, float]
    ideal_hit_share: tuple[float, float]
    seed: int
    seconds: int


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A workload. `seconds` is how long it is if nobody says otherwise. `source` says what it was fitted to ("" =
    nothing), `fit` how well."""

    name: Name
    about: str = ""
    source: str = ""
    seconds: Annotated[int, msgspec.Meta(ge=1, le=7 * 86_400)] = 300
    pace: Pace | None = None
    tenants: dict[Name, Tenant] = msgspec.field(default_factory=lambda: {"default": Tenant()})
    streams: Annotated[tuple[Stream, ...], msgspec.Meta(min_length=1, max_length=100)]
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if not self.tenants:
            raise ValueError("tenants: one at least")
        names = [stream.name for stream in self.streams]
        if len(set(names)) < len(names):
            raise ValueError("streams: two of them have one name")
        for stream in self.streams:
            unknown = [name for name in stream.tenants if name not in self.tenants]
            if unknown:
                raise ValueError(f"stream {stream.name}: no tenant {unknown[0]!r}: {', '.join(self.tenants)}")


def shipped() -> list[str]:
    """Names of the profiles that come with the program."""
    return sorted(one.name.removesuffix(SUFFIX) for one in files(PROFILES).iterdir() if one.name.endswith(SUFFIX))


def load(name: str) -> Profile:
    """A shipped profile by name, or one in a file (a slash in it, or .yaml at its end). Raises ProfileError."""
    if "/" not in name and not name.endswith((SUFFIX, ".yml")):
        if name not in shipped():
            raise ProfileError(f"no profile {name!r}", where=name, mend=f"one of {', '.join(shipped())}, or a file")
        return parse(_read(files(PROFILES) / f"{name}{SUFFIX}", name), where=name)
    return parse(_read(Path(name), name), where=name)


def parse(text: bytes, *, where: str) -> Profile:
    """A profile from YAML. Raises ProfileError for one that cannot be used."""
    import yaml

    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error)
        raise ProfileError(f"not YAML ({what})", where=f"{where}{line}", mend="see docs/workloads.md") from error
    try:
        return msgspec.convert(_spelled_out(plain), Profile)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProfileError(str(error), where=where, mend="see docs/workloads.md for every field") from error


def written(profile: Profile) -> str:
    """The profile as YAML; what is as it would be anyway is left out."""
    import yaml

    plain = _without_defaults(profile)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
    return text


def _read(path: Traversable, name: str) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"cannot be read ({error.strerror})", where=name, mend="name a file that can be") from error
    if len(text) > BYTES_MAX:
        raise ProfileError(f"{len(text)} bytes", where=name, mend=f"a profile has {BYTES_MAX} at most")
    return text


_LENGTHS = frozenset(
    {
        "size", "calm_s", "busy_s", "tokens", "turns", "opening_tokens", "message_tokens", "answer_tokens", "think_ms",
        "inputs", "input_tokens",
    }
)  # fmt: skip
"""Fields that hold a distribution, and may be written as a number."""


def _spelled_out(plain: Any) -> Any:
    """With every number that stands for a distribution as one."""
    if isinstance(plain, list):
        return [_spelled_out(one) for one in plain]
    if not isinstance(plain, dict):
        return plain
    return {
        name: {"between": [value, value]} if name in _LENGTHS and type(value) is int else _spelled_out(value)
        for name, value in plain.items()
    }


def _without_defaults(value: Any) -> Any:
    """Plain values of a struct, without fields that have their default."""
    if isinstance(value, Lengths):
        if value.between is not None:
            least, most = value.between
            return least if least == most else {"between": [least, most]}
        if value.parts:
            return {"parts": [list(part) for part in value.parts]}
        whole = {int(percent) if percent == int(percent) else percent: v for percent, v in value.quantiles.items()}
        return {"quantiles": whole}
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        told = {field.name: getattr(value, field.name) for field in fields}
        return {
            field.name: _without_defaults(told[field.name])
            for field in fields
            if field.required or told[field.name] != field.default
        }
    if isinstance(value, dict):
        return {name: _without_defaults(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_without_defaults(one) for one in value]
    return value.value if isinstance(value, RequestKind) else value
