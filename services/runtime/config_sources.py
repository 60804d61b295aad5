"""Where settings come from (file, environment, command line), and who said which: errors name the place.

Later ones win, key by key: file, then the common names NATS_URL, NATS_CREDS and REDIS_URL, then
`TIDEGATE_<SECTION>__<KEY>`, then `--set section.key=value`. Members of a list are named by their index
(`TIDEGATE_ENGINES__0__API_KEY`).
"""

import difflib
import os
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import msgspec

PREFIX = "TIDEGATE_"
CONFIG_VARIABLE = "TIDEGATE_CONFIG"
COMMON_NAMES = {"NATS_URL": ("nats", "url"), "NATS_CREDS": ("nats", "creds"), "REDIS_URL": ("redis", "url")}
LIST_INDEX_MAX = 4_096
_KUBERNETES = re.compile(
    r"TIDEGATE(_\w+)?_(SERVICE_(HOST|PORT)(_\w+)?=.*|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?=.*|PORT=\w+://.*)"
)
"""What Kubernetes puts into every container beside a service called tidegate: not ours. TIDEGATE_METRICS_PORT is ours,
unless an address stands in it."""

Key = tuple[str | int, ...]
Raw = dict[str, Any]


class ConfigError(Exception):
    """A setting is wrong: where it stands, what it is, and what is allowed."""

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str, key: str, allowed: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.key, self.allowed = what, where, key, allowed

    def __str__(self) -> str:
        allowed = f" (allowed: {self.allowed})" if self.allowed else ""
        key = f"{self.key}: " if self.key else ""
        return f"{self.where}: {key}{self.what}{allowed}"


class Gathered:
    """The settings of all sources, laid over one another, and the place that said each of them."""

    def __init__(self, schema: type[msgspec.Struct]) -> None:
        self.raw: Raw = {}
        self.schema = schema
        self._said_by: dict[Key, str] = {}
        self._file = "defaults"

    def add_file(self, path: Path) -> None:
        """Read a TOML or JSON file (by its suffix)."""
        self._file = str(path)
        self.raw = read_file(path)

    def add_environment(self, env: Mapping[str, str]) -> None:
        """Take the variables that are ours."""
        for name, key in COMMON_NAMES.items():
            if env.get(name):
                self._put(key, env[name], where=name)
        for name in sorted(env):
            if name.startswith(PREFIX) and name != CONFIG_VARIABLE and not _is_kubernetes(name, env[name]):
                parts = name.removeprefix(PREFIX).lower().split("__")
                self._put(tuple(int(p) if p.isdecimal() else p for p in parts), env[name], where=name)

    def add_overrides(self, overrides: Sequence[str]) -> None:
        """Take `key.path=value` from the command line."""
        for text in overrides:
            path, equals, value = text.partition("=")
            if not (equals and path.strip()):
                raise ConfigError("not of the form key.path=value", where=f"--set {text}", key="")
            key = tuple(int(p) if p.isdecimal() else p for p in path.strip().split("."))
            self._put(key, value, where=f"--set {path.strip()}")

    def where(self, key: Key) -> str:
        """Who said the setting at `key`: its own source, that of what it stands in, or of what stands in it."""
        for length in range(len(key), 0, -1):
            if (place := self._said_by.get(key[:length])) is not None:
                return place
        within = (place for said, place in self._said_by.items() if said[: len(key)] == key)
        return next(within, self._file)

    def said(self, key: Key) -> str:
        """Who said the setting at `key`; "default" when nobody did."""
        value: Any = self.raw
        try:
            for part in key:
                value = value[part]
        except (KeyError, IndexError):
            return "default"
        return self.where(key)

    def error(self, key: Key, what: str, *, allowed: str = "") -> ConfigError:
        """A ConfigError about the setting at `key`."""
        return ConfigError(what, where=self.where(key), key=dotted(key), allowed=allowed)

    def _put(self, key: Key, text: str, *, where: str) -> None:
        self._said_by[key] = where
        value = _read_value(text, _type_at(self.schema, key))
        holder: Any = self.raw
        for index, part in enumerate(key[:-1]):
            deeper: Any = [] if isinstance(key[index + 1], int) else {}
            holder = self._step_into(holder, part, deeper, key)
        self._step_into(holder, key[-1], value, key, replace=True)

    def _step_into(self, holder: Any, part: str | int, new: Any, key: Key, *, replace: bool = False) -> Any:
        """The value under `part`, put there when there is none (or always, with `replace`)."""
        if isinstance(holder, list) and isinstance(part, int):
            if part > min(len(holder), LIST_INDEX_MAX):
                raise self.error(key, f"there is no number {part}", allowed=f"0 to {len(holder)}")
            if part == len(holder):
                holder.append(new)
        elif isinstance(holder, dict) and isinstance(part, str):
            holder.setdefault(part, new)
        else:
            raise self.error(key, f"{part!r} names nothing here")
        fitting: Any = holder
        if replace:
            fitting[part] = new
        return fitting[part]


def _is_kubernetes(name: str, value: str) -> bool:
    return "__" not in name and _KUBERNETES.fullmatch(f"{name}={value}") is not None


def read_file(path: Path) -> Raw:
    """The plain values of a TOML or JSON file. Raises ConfigError: not there, not readable, not well formed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=str(path), key="") from error
    try:
        match path.suffix:
            case ".toml":
                return tomllib.loads(text)
            case ".json":
                return msgspec.json.decode(text, type=Raw)
            case suffix:
                raise ConfigError(
                    f"the suffix {suffix!r} is not known", where=str(path), key="", allowed=".toml, .json"
                )
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise ConfigError(f"not well formed: {error}", where=str(path), key="") from error


def convert(gathered: Gathered) -> Any:
    """The settings as the schema's struct. Raises ConfigError for the first that does not fit."""
    _refuse_unknown(gathered, gathered.raw, gathered.schema, ())
    try:
        return msgspec.convert(gathered.raw, gathered.schema)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at ")
        key = _key_of(path)
        kind = _type_at(gathered.schema, key)
        raise gathered.error(key, what[:1].lower() + what[1:], allowed=allowed_values(kind)) from error


def dotted(key: Key) -> str:
    """`engines[0].url`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def meant(word: str, known: Sequence[str]) -> str:
    """The end of a sentence that names the `known` word nearest to a wrong one; "" when none is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def allowed_values(kind: Any) -> str:
    """What may stand where a value of this type is wanted."""
    for each in _members(kind):
        if isinstance(each, type) and issubclass(each, Enum):
            return ", ".join(str(choice.value) for choice in each)
    return {bool: "true, false", int: "a whole number", str: "a text"}.get(kind, "")


def _refuse_unknown(gathered: Gathered, value: Any, kind: Any, key: Key) -> None:
    """Unknown keys first, with the nearest known one: `msgspec` tells only the first, and not where it was said."""
    struct = next((each for each in _members(kind) if _is_struct(each)), None)
    if struct is not None and isinstance(value, dict):
        hints = get_type_hints(struct)
        for name, inner in value.items():
            if name not in hints:
                known = list(hints)
                raise gathered.error((*key, name), f"no such setting{meant(name, known)}", allowed=", ".join(known))
            _refuse_unknown(gathered, inner, hints[name], (*key, name))
    elif get_origin(kind) is list and isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unknown(gathered, inner, get_args(kind)[0], (*key, index))


def _type_at(schema: Any, key: Key) -> Any:
    """The type that the schema wants at `key`; Any where it does not say."""
    kind = schema
    for part in key:
        struct = next((each for each in _members(kind) if _is_struct(each)), None)
        if struct is not None:
            kind = get_type_hints(struct).get(str(part), Any)
        elif get_origin(kind) is list:
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            return Any
    return kind


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _read_value(text: str, kind: Any) -> Any:
    """A value written on one line. Texts and choices stand for themselves, all else is written as in JSON."""
    texts = [each for each in _members(kind) if isinstance(each, type) and issubclass(each, str)]
    if texts:
        return text
    if kind is bool and text.lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        return text.lower() in ("true", "1", "yes", "on")
    if kind == list[str] and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _key_of(path: str) -> Key:
    """`$.engines[0].url` in backquotes, as msgspec writes it."""
    found = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", path)
    return tuple(int(index) if index else name for name, index in found)


def default_file(env: Mapping[str, str]) -> Path | None:
    """The file to read when none was named: $TIDEGATE_CONFIG, or ./tidegate.toml where it exists."""
    if env.get(CONFIG_VARIABLE):
        return Path(env[CONFIG_VARIABLE])
    here = Path("tidegate.toml")
    return here if here.is_file() and os.access(here, os.R_OK) else None
