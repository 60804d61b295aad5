"""`tidegate cache` as its users call it: on a journal, on a real Redis and a real log."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from events import codec, subjects
from events.base import NS_PER_S, EngineId, Event, PoolId, Recorded, SliceId
from events.control import Ticked
from events.log.base import Message
from events.log.jetstream import JetStreamLog
from events.log.journal import JournalWriter, read_journal
from events.slice import SlicesHit, SlicesPinned, SlicesRemoved, SlicesStored, Tier, TierMeasured
from kvstore.fingerprint import fingerprints
from kvstore.registry.redis import RedisRegistry
from kvstore.stats import read_export
from services import cli
from services.access_demo import SLOTS
from services.runtime.embedded import EmbeddedNats
from services.runtime.orders import PIN_NS_MAX, Refused, taking_orders
from services.runtime.output import Exit
from services.runtime.registry_book import RegistryBook
from services.runtime.registry_feed import all_of

ROOT = Path(__file__).parents[3]
E1 = EngineId("e1")
A, B, C = IDS = fingerprints(range(3), key=b"cache", slice_tokens=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and nothing in the environment that would be taken for a setting."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("TIDEGATE_") or name in ("NATS_URL", "REDIS_URL", "NATS_CREDS"):
            monkeypatch.delenv(name)


def stored(*slices: SliceId, tier: Tier = Tier.HBM) -> SlicesStored:
    return SlicesStored(engine_id=E1, tier=tier, slices=slices, slice_bytes=2**20)


def hit(*slices: SliceId, tier: Tier = Tier.HBM) -> SlicesHit:
    return SlicesHit(engine_id=E1, tier=tier, slices=slices)


DAY: list[Event] = [
    stored(A, B), hit(A, B), stored(A, B, C, tier=Tier.DRAM), hit(C, tier=Tier.DRAM),
    SlicesRemoved(engine_id=E1, tier=Tier.HBM, slices=(B,)), SlicesPinned(slices=(C,), for_ns=60 * NS_PER_S), hit(A),
    TierMeasured(engine_id=E1, tier=Tier.DRAM, bytes_max=2**30, bytes_used=2**29, slice_bytes=2**20, hits_total=3,
                 misses_total=1, evictions_total=5, failures_total=2, corrupt_total=1),
]  # fmt: skip


def written(path: Path, events: Iterable[Event] = DAY) -> Path:
    with JournalWriter(path, PoolId("p")) as journal:
        for seq, event in enumerate(events, start=1):
            body = codec.encode(owner="t", ts_ns=seq * NS_PER_S, said=[codec.Said(event=event)])
            journal.write(Message(seq, subjects.fact(PoolId("p"), "agent", event.event_kind()), body, {}))
    return path


def called(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = cli.run(["cache", *map(str, argv)])
    said = capsys.readouterr()
    return code, said.out, said.err


def answered(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code, out, err = called(capsys, *argv, "--json")
    assert err == "", "with --json nothing else is said"
    return code, json.loads(out)


def test_stats_tell_tiers_of_a_journal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path / "day.jsonl")
    code, told = answered(capsys, "stats", "--log", path)
    assert code == Exit.FINE
    assert [(row["tier"], row["slices"], row["hits_told"]) for row in told["tiers"]] == [("hbm", 1, 3), ("dram", 3, 1)]
    assert (told["tiers"][1]["corrupt_total"], told["position"]["seq"]) == (1, len(DAY))
    _, out, _ = called(capsys, "stats", "--log", path)
    dram = next(line for line in out.splitlines() if "dram" in line).split()
    assert dram == ["e1", "dram", "3", "512.0", "MiB", "1.00", "GiB", "50.0", "%", "3", "1", "75.0", "%", "5", "2", "1"]
    assert f"as of record {len(DAY)}" in out


def test_top_tells_the_hottest_first_and_what_is_pinned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path / "day.jsonl")
    _, told = answered(capsys, "top", "--log", path, "-n", 2)
    assert [(one["slice_id"], one["hits"]) for one in told["hot"]] == [(A, 2), (C, 1)]
    assert [one["slice_id"] for one in told["pinned"]] == [C]
    _, out, _ = called(capsys, "top", "--log", path)
    assert "e1/hbm, e1/dram" in out
    assert "for 58.0 s" in out, "of 60, two seconds later"


@pytest.mark.parametrize(
    ("slices", "code", "reach"),
    [(IDS, Exit.FINE, (3, {"hbm": 1, "dram": 3})), ([A], Exit.FINE, (1, {"hbm": 1, "dram": 1})),
     (["f" * 32, A], Exit.NO, None)],
)  # fmt: skip
def test_lookup_finds_the_longest_prefix(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, slices: list[str], code: int, reach: Any
) -> None:
    path = written(tmp_path / "day.jsonl")
    got, told = answered(capsys, "lookup", *slices, "--log", path)
    assert got == code
    assert [(one["slices"], one["by_tier"]) for one in told["prefixes"]] == ([reach] if reach else [])
    assert len(told["each"]) == told["slices"] == len(slices)
    _, out, _ = called(capsys, "lookup", *slices, "--log", path)
    assert ("nobody has the beginning" in out) is (reach is None)


def test_a_prompt_without_a_whole_slice_and_a_registry_without_tiers_are_said_in_words(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "day.jsonl")
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": "m", "prompt": [1, 2, 3]}))
    code, out, _ = called(capsys, "lookup", "--request", body, "--log", path, "--set", f"secret={'s' * 32}")
    assert (code, out) == (Exit.NO, "the prompt is shorter than one slice: nobody keeps it\n")
    assert called(capsys, "lookup", "f" * 32, "--log", path)[1] == "nobody has this slice\n"
    assert (
        "no engine said anything" in called(capsys, "stats", "--log", written(tmp_path / "no.jsonl", [Ticked(n=1)]))[1]
    )


def test_lookup_names_the_slices_of_a_prompt_as_the_gateway_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from services.gateway.tenants import Tenants

    tokens = list(range(600))
    key = Tenants([], secret=b"s" * 32).of_client("default").fingerprint_key
    names = fingerprints(tokens, key=key)
    assert len(names) == 2
    path = written(tmp_path / "day.jsonl", [stored(*names)])
    body = tmp_path / "body.json"
    body.write_bytes(msgspec.json.encode({"model": "m", "prompt": tokens}))
    code, told = answered(capsys, "lookup", "--request", body, "--log", path, "--set", f"secret={'s' * 32}")
    assert (code, told["prefixes"][0]["slices"], [one["slice_id"] for one in told["each"]]) == (0, 2, list(names))
    code, told = answered(capsys, "lookup", "--request", body, "--log", path, "--set", f"secret={'t' * 32}")
    assert (code, told["prefixes"]) == (Exit.NO, []), "another secret, other names"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("lookup",), "name slices, or give a prompt"),
        (("lookup", A, "--text", "hello"), "name slices, or give a prompt"),
        (("lookup", "--text", "hello"), "--text needs --model"),
        (("lookup", "--text", "hello", "--model", "m"), "no gateway ran there"),
        (("lookup", "--text", "hello", "--model", "m", "--set", "secret=s"), "cannot be tokenised here"),
        (("lookup", "--text", "hello", "--model", "m", "--tenant", "acme"), "no tenant 'acme'"),
        (("lookup", "--request", "nothing.json", "--model", "m"), "No such file"),
        (("lookup", A, "banana", "--log", "day.jsonl"), "'banana' is no slice (32 hex digits"),
        (("stats", "--log", "nothing.jsonl"), "nothing.jsonl"),
        (("stats", "--log", "day.jsonl", "--pool", "p"), "give one"),
        (("stats",), "no Redis server is named"),
        (("heatmap", "-o", "x.html"), "name a journal with --log"),
        (("heatmap", "--log", "day.jsonl"), "name the picture"),
        (("heatmap", "--log", "day.jsonl", "-o", "x.gif"), "ends in .png or .html"),
        (("demo", "--picture", "x.gif"), "ends in .png or .html"),
        (("demo", "--accesses", "0"), "--accesses"),
        (("pin", "short"), "no NATS server is named"),
        (("pin", A, "--for", "soon"), "no amount"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: tuple[str, ...], said: str
) -> None:
    written(tmp_path / "day.jsonl")
    code, out, err = called(capsys, *argv)
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert said in err.splitlines()[0]


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_heatmap_is_drawn_and_its_numbers_are_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    path, picture, stats = written(tmp_path / "day.jsonl"), tmp_path / f"x.{suffix}", tmp_path / "stats.json"
    code, told = answered(capsys, "heatmap", "--log", path, "-o", picture, "--stats", stats)
    assert code == Exit.FINE
    # Two slices were computed in HBM, the third in DRAM; four hits came after.
    tiers = [(use["tier"], use["hits"], use["computed"]) for use in told["pattern"]["tiers"]]
    assert tiers == [("hbm", 3, 2), ("dram", 1, 1)]
    assert (told["pattern"]["total_accesses"], told["pattern"]["hit_rate_ppm"]) == (7, 1_000_000 * 4 // 7)
    assert read_export(stats.read_bytes()).summary.hits == 4
    drawn = picture.read_bytes()
    if suffix == "png":
        assert drawn.startswith(b"\x89PNG")
    else:
        assert A.encode() in drawn
        assert b"http" not in drawn.replace(b"http-equiv", b""), "the page needs nothing else"


def test_a_heatmap_of_one_tier_shows_that_tier(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, picture = written(tmp_path / "day.jsonl"), tmp_path / "x.html"
    answered(capsys, "heatmap", "--log", path, "-o", picture, "--type", "dram")
    page = picture.read_text()
    assert "DRAM: 1 hits" in page
    assert "HBM" not in page
    code, _, err = called(capsys, "heatmap", "--log", path, "-o", picture, "--type", "ssd")
    assert (code, "no slice was used in ssd" in err) == (Exit.NO, True)


def test_a_log_without_slices_is_a_clear_no(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = written(tmp_path / "day.jsonl", [Ticked(n=1)])
    code, _, err = called(capsys, "heatmap", "--log", path, "--summary")
    assert (code, "no slice was used in this log" in err) == (Exit.NO, True)
    assert called(capsys, "top", "--log", path)[:2] == (Exit.FINE, "no slice was hit so far\n")


def test_without_matplotlib_a_png_is_refused_before_any_work(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['matplotlib'] = None; from services.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "cache", "demo", "--picture", "x.png"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == Exit.BAD_INPUT
    assert "pip install 'tidegate[charts]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_demo_leaves_a_log_that_all_commands_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, told = answered(capsys, "demo", "--accesses", 3_000, "-o", "d.jsonl.zst")
    assert code == Exit.FINE
    assert told["made"] == {
        "journal": "d.jsonl.zst",
        "picture": "d.html",
        "messages": told["made"]["messages"],
        "seed": 1,
    }
    assert 3_000 <= told["pattern"]["total_accesses"] < 3_020
    assert "canvas" in (tmp_path / "d.html").read_text()
    _, stats = answered(capsys, "stats", "--log", "d.jsonl.zst")
    assert all(row["slices"] <= SLOTS[row["tier"]] for row in stats["tiers"])
    hits = {row["tier"]: row["hits_told"] for row in stats["tiers"]}
    assert {use["tier"]: use["hits"] for use in told["pattern"]["tiers"]} == hits
    code, _, err = called(capsys, "demo", "-o", "d.jsonl.zst")
    assert (code, "is there already" in err) == (Exit.BAD_INPUT, True)


def test_a_demo_is_the_same_for_the_same_seed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        answered(capsys, "demo", "--accesses", 500, "--seed", seed, "-o", f"{name}.jsonl")
    same, again, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert same == again != other


def test_no_colour_and_no_markup_where_nobody_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = called(capsys, "stats", "--log", written(tmp_path / "day.jsonl"))
    assert "\x1b" not in out


@pytest.mark.integration
def test_the_registry_in_redis_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, redis_url: str, pool: PoolId
) -> None:
    where = ("--set", f"redis.url={redis_url}", "--pool", pool)
    code, out, _ = called(capsys, "stats", *where)
    assert (code, "nobody writes this pool's registry" in out) == (Exit.NO, True)

    async def fill() -> None:
        book = RegistryBook()
        for seq, event in enumerate(DAY, start=1):
            book.take(Recorded(seq=seq, item=0, event=event, ts_ns=seq * NS_PER_S))
        registry = RedisRegistry.open(redis_url, pool, where="test")
        await registry.write(all_of(book))
        await registry.close()

    asyncio.run(fill())
    path = written(tmp_path / "day.jsonl")
    for command in (("stats",), ("top",), ("lookup", *IDS)):
        live, offline = answered(capsys, *command, *where), answered(capsys, *command, "--log", path)
        assert live == offline


@pytest.mark.integration
def test_redis_away_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = called(capsys, "top", "--set", f"redis.url=unix://{tmp_path}/nobody.sock")
    assert (code, out) == (Exit.BAD_INPUT, "")
    assert "the registry of slices does not answer" in err
    assert len(err.splitlines()) == 1


@pytest.mark.integration
async def test_a_pin_is_a_fact_in_the_log(
    jetstream_log: JetStreamLog, nats_server: EmbeddedNats, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = (f"nats.url={nats_server.url}", f"pool={jetstream_log.pool}", f"state_dir={tmp_path}")
    settings = [word for each in where for word in ("--set", each)]
    code = await asyncio.to_thread(cli.run, ["cache", "pin", A, B, A, "--for", "30s", "--json", *settings])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["taken_in"]) == (Exit.FINE, {"eviction": False})
    message = await jetstream_log.get(told["seq"])
    assert message is not None
    [recorded] = codec.decode(message.seq, message.subject, message.body)
    assert recorded.event == SlicesPinned(slices=(A, B), for_ns=30 * NS_PER_S)
    code = await asyncio.to_thread(cli.run, ["cache", "pin", "nonsense", *settings])
    assert (code, "is no slice (32 hex digits" in capsys.readouterr().err) == (Exit.BAD_INPUT, True)


@pytest.mark.integration
async def test_pins_that_do_not_hold_are_refused_and_nothing_is_written(jetstream_log: JetStreamLog) -> None:
    many = [f"{number:032x}" for number in range(1_024)]
    async with taking_orders(jetstream_log, speed=1) as orders:
        await orders.pin(many, 60 * NS_PER_S)
        last = await jetstream_log.last()
        for slices, for_ns, why in (
            ([A], 60 * NS_PER_S, "1024 slices are pinned"), ([], 1, "0 slices to pin"), ([*many, A], 1, "1025 slices"),
            (["F" * 32], 1, "is no slice"), ([A], -1, "is no time"), ([A], PIN_NS_MAX + 1, "is no time"),
        ):  # fmt: skip
            with pytest.raises(Refused, match=why):
                await orders.pin(slices, for_ns)
        assert await jetstream_log.last() == last
        await orders.pin(many[:1], 0)
        await orders.pin([A], 60 * NS_PER_S)


def test_the_demo_journal_is_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answered(capsys, "demo", "--accesses", 200, "-o", "d.jsonl")
    header, messages = read_journal(tmp_path / "d.jsonl")
    kinds = {recorded.event.event_kind() for one in messages for recorded in codec.decode(*one[:3])}
    assert header.pool == "demo"
    assert "unknown" not in kinds
    assert {"slices_hit", "slices_stored", "ticked", "tier_measured"} <= kinds
