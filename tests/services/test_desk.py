"""Orders of an operator, over NATS and by command, against a real log and real actors."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.errors import NoRespondersError

from events import codec, subjects
from events.base import PPM, Event, Recorded
from events.control import PolicyConfigured
from events.decisions import RequestAdmitted, ShareReason, SharesSet, TenantQuotaSet, Would
from events.log.jetstream import JetStreamLog
from policies.catalog import ACTORS, PRESETS
from services import admission, cli, desk, quota
from services.runtime.actor_position import position_of, taken_in
from services.runtime.config import Config
from services.runtime.embedded import EmbeddedNats
from services.runtime.facts import FactWriter
from services.runtime.orders import Refused, preset_facts
from services.runtime.output import Exit
from services.runtime.pool_clock import PoolClock
from tests.policies.quota_words import both
from tests.policies.words import arrived, engine, measured, tick

pytestmark = pytest.mark.integration

START_NS = 1_000 * 10**9


class House:
    """A pool with a desk and, after `decide`, a quota actor. Each in a task of its own."""

    def __init__(self, log: JetStreamLog, config: Config) -> None:
        self.log, self.config = log, config
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
        self._said = 0

    def start(self, run: Any) -> None:
        stop = asyncio.Event()
        self._running.append((stop, asyncio.create_task(run(self.config, log=self.log, stop=stop))))

    async def stop(self) -> None:
        for stop, task in reversed(self._running):
            stop.set()
            await task
        self._running.clear()

    async def decide(self) -> None:
        """Quota runs and has read the log."""
        self.start(quota.run)
        async with asyncio.timeout(10):
            # Nobody says when it listens: it is asked.
            while await position_of(self.log.client, self.log.pool, "quota") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def ask(self, name: str, body: Any = None) -> Any:
        """Ask the desk, as soon as it is there."""
        data = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with asyncio.timeout(10):
            while True:
                try:
                    answer = await self.log.client.request(f"tg.rpc.{self.log.pool}.{name}", data, timeout=5)
                    return msgspec.json.decode(answer.data)
                except NoRespondersError:
                    await asyncio.sleep(0.01)

    async def say(self, *events: Event, at_s: int) -> int:
        """Write facts at a pool time; where the last one stands."""
        seq = 0
        for event in events:
            self._said += 1
            body = codec.encode(owner="test", ts_ns=START_NS + at_s * 10**9, said=[codec.Said(event=event)])
            source = "clock" if event.event_kind() == "ticked" else "sensor"
            subject = subjects.fact(self.log.pool, source, event.event_kind())
            seq = await self.log.append(subject, body, msg_id=f"test:{self._said}")
        return seq

    async def records(self) -> list[Recorded]:
        return [
            recorded
            async for batch in self.log.read()
            for message in batch
            for recorded in codec.decode(message.seq, message.subject, message.body)
        ]

    async def command(self, *argv: str) -> int:
        """Run a command of the program in this process; its exit code."""
        where = (f"nats.url={self.config.nats.url}", f"pool={self.log.pool}", f"state_dir={self.config.state_dir}")
        return await asyncio.to_thread(cli.run, [*argv, *(word for each in where for word in ("--set", each))])


@pytest.fixture
async def house(jetstream_log: JetStreamLog, nats_server: EmbeddedNats, tmp_path: Path) -> AsyncIterator[House]:
    config = Config(pool=jetstream_log.pool, state_dir=str(tmp_path / "state"))
    config.nats.url = nats_server.url
    found = House(jetstream_log, config)
    found.start(desk.run)
    yield found
    await found.stop()


async def reached(house: House, actor: str, seq: int) -> bool:
    """Whether an actor that was just started has taken a message in."""
    async with asyncio.timeout(10):
        while not await taken_in(house.log.client, house.log.pool, actor, seq):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return True


async def settings_of(house: House, actor: str) -> dict[str, Any]:
    (told,) = (await house.ask("policy.show", {"actor": actor}))["policies"]
    settings: dict[str, Any] = told["settings"]
    return settings


async def test_settings_are_shown_changed_and_shown_as_changed(house: House) -> None:
    before = await house.ask("policy.show")
    assert [one["actor"] for one in before["policies"]] == list(ACTORS)
    assert all(one["changed"] == [] for one in before["policies"])
    answer = await house.ask("policy.set", {"actor": "quota", "settings": {"deadband_ppm": 7, "enabled": "off"}})
    (written,) = [one for one in await house.records() if one.seq == answer["seq"]]
    assert written.event == PolicyConfigured(actor="quota", settings={"deadband_ppm": 7, "enabled": "off"})
    (now,) = (await house.ask("policy.show", {"actor": "quota"}))["policies"]
    assert (now["settings"]["deadband_ppm"], now["changed"]) == (7, ["enabled", "deadband_ppm"])


@pytest.mark.parametrize(
    ("name", "order", "told"),
    [
        ("policy.set", {"actor": "quota", "settings": {"deadband_ppm": 7, "step_max_ppm": 1}}, "1000 to 1000000"),
        ("policy.set", {"actor": "quota", "settings": {"enabled": "maybe"}}, "(allowed: on, off)"),
        ("policy.set", {"actor": "quota", "settings": {"nonsense": 1}}, "no such setting (allowed: enabled"),
        ("policy.set", {"actor": "quoat", "settings": {"deadband_ppm": 7}}, "did you mean"),
        ("policy.set", {"actor": "quota", "settings": {}}, "nothing to change"),
        ("policy.set", {"actor": "quota"}, "fields actor, settings"),
        ("policy.show", {"actor": "quoat"}, "allowed: admission,"),
        ("policy.preset", {"preset": "nonsense"}, "allowed: default, first_come"),
        ("policy.preset", b"{nope", "fields preset"),
        ("quota.set", {"tenant": "t", "kv_bytes_max": -1}, "allowed: 0, for no limit, to"),
        ("quota.set", {"tenant": "a b", "kv_bytes_max": 1}, "A-Z a-z 0-9 _ -"),
        ("quota.set", {"embedding_min_ppm": 2, "embedding_max_ppm": 1}, "allowed: 0 to 1000000 ppm"),
        ("quota.set", {"engine": "e9", "embedding_min_ppm": 1, "embedding_max_ppm": 2}, "allowed: e1, e2"),
        ("quota.set", {"tenant": "t", "embedding_max_ppm": 1}, "tenant and kv_bytes_max; or"),
        ("cache.pin", {"slices": ["nonsense"], "for_ns": 1}, "32 hex digits"),
        ("cache.pin", {"slices": ["a" * 32]}, "fields slices, for_ns"),
    ],
)
async def test_an_order_that_does_not_hold_is_told_what_is_allowed_and_changes_nothing(
    house: House, name: str, order: Any, told: str
) -> None:
    await house.say(engine("e1"), both("e2"), at_s=0)
    before = [(one.at, one.event) for one in await house.records()]
    answer = await house.ask(name, order)
    assert not answer["ok"]
    assert told in answer["error"]
    assert [(one.at, one.event) for one in await house.records()] == before


async def test_a_preset_is_one_message_and_puts_back_what_it_does_not_name(house: House) -> None:
    await house.ask("policy.set", {"actor": "admission", "settings": {"queue_max": 7}})
    await house.ask("policy.set", {"actor": "quota", "settings": {"deadband_ppm": 7}})
    answer = await house.ask("policy.preset", {"preset": "first_come_affinity"})
    said = [one.event for one in await house.records() if one.seq == answer["seq"]]
    assert [one.actor for one in said if isinstance(one, PolicyConfigured)] == list(ACTORS)
    for told in (await house.ask("policy.show"))["policies"]:
        wanted = PRESETS["first_come_affinity"].get(told["actor"], {})
        assert {key: told["settings"][key] for key in wanted} == dict(wanted)
        assert set(told["changed"]) <= set(wanted)


def test_presets_name_every_setting_of_every_actor() -> None:
    for name in PRESETS:
        assert [fact.actor for fact in preset_facts(name)] == list(ACTORS)
    with pytest.raises(Refused, match="there is no preset 'defualt'; did you mean 'default'"):
        preset_facts("defualt")


async def test_settings_that_an_actor_was_started_with_are_shown_and_later_words_win(house: House) -> None:
    house.config.policies = {"quota": {"deadband_ppm": 11, "step_max_ppm": 50_000}}
    await house.decide()
    answer = await house.ask("policy.set", {"actor": "quota", "settings": {"deadband_ppm": 12}})
    assert await taken_in(house.log.client, house.log.pool, "quota", answer["seq"])
    now = await settings_of(house, "quota")
    assert (now["deadband_ppm"], now["step_max_ppm"]) == (12, 50_000)


async def test_orders_take_effect_while_everything_runs(house: House) -> None:
    await house.decide()
    await house.say(both("e1"), measured("e1"), tick(0), at_s=0)
    await house.say(measured("e1"), tick(1), at_s=1)
    answer = await house.ask("quota.set", {"engine": "e1", "embedding_min_ppm": 300_000, "embedding_max_ppm": 400_000})
    await house.ask("quota.set", {"tenant": "acme", "kv_bytes_max": 4_096})
    seq = await house.say(tick(2), at_s=2)
    assert await taken_in(house.log.client, house.log.pool, "quota", seq)
    standing = await house.ask("quota.show")
    assert standing["tenants"] == {"acme": 4_096}
    by_engine = {one["engine"]: one for one in standing["engines"]}
    assert by_engine["e1"]["embedding_ppm"] == 300_000
    assert by_engine["e1"]["embedding_ppm"] + by_engine["e1"]["llm_ppm"] == PPM
    told = [one for one in await house.records() if one.actor == "quota"]
    (bound,) = [one for one in told if isinstance(one.event, SharesSet) and one.cause.startswith(f"{answer['seq']}.")][
        :1
    ]
    assert isinstance(bound.event, SharesSet)
    assert bound.event.reason is ShareReason.BOUNDS_ASKED
    assert [one.event for one in told if isinstance(one.event, TenantQuotaSet)] == [
        TenantQuotaSet(tenant="acme", kv_bytes_max=4_096)
    ]


async def test_a_setting_of_admission_changes_the_next_decision_without_a_restart(house: House) -> None:
    house.start(admission.run)
    await house.say(engine("e1"), tick(0), at_s=0)
    arrival = await house.say(arrived("before"), at_s=0)
    assert await reached(house, "admission", arrival)
    order = await house.ask("policy.set", {"actor": "admission", "settings": {"mode": "observe"}})
    assert order["ok"]
    arrival = await house.say(arrived("after"), at_s=0)
    assert await reached(house, "admission", arrival)
    said = [one for one in await house.records() if isinstance(one.event, RequestAdmitted)]
    assert [(one.event.request_id, one.event.would) for one in said if isinstance(one.event, RequestAdmitted)] == [
        ("before", None), ("after", Would.ADMIT),
    ]  # fmt: skip
    assert len({one.owner for one in said}) == 1, "the same owner decided both"


async def test_without_an_actor_an_order_is_written_and_said_to_wait(house: House) -> None:
    answer = await house.ask("quota.set", {"tenant": "acme", "kv_bytes_max": 1})
    assert not await taken_in(house.log.client, house.log.pool, "quota", answer["seq"])
    assert (await house.ask("quota.show"))["tenants"] == {}
    await house.decide()
    assert await taken_in(house.log.client, house.log.pool, "quota", answer["seq"])


async def test_nats_micro_finds_the_desk(house: House) -> None:
    await house.ask("policy.show")
    pong = msgspec.json.decode((await house.log.client.request("$SRV.INFO.tidegate-desk", b"", timeout=5)).data)
    assert sorted(one["subject"] for one in pong["endpoints"]) == sorted(
        f"tg.rpc.{house.log.pool}.{name}"
        for name in ("policy.show", "policy.set", "policy.preset", "quota.show", "quota.set", "cache.pin")
    )


async def test_an_order_is_written_at_the_pool_s_time_not_at_the_wall_s(house: House) -> None:
    await house.say(tick(0), at_s=0)
    answer = await house.ask("quota.set", {"tenant": "acme", "kv_bytes_max": 1})
    (written,) = [one for one in await house.records() if one.seq == answer["seq"]]
    assert 0 <= written.ts_ns - START_NS <= 2 * 10**9


# The same by command -------------------------------------------------------------------------------------------------


async def test_commands_change_what_commands_show(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    await house.decide()
    assert await house.command("policy", "set", "quota", "deadband_ppm=3%", "period_ns=2s", "--json") == Exit.FINE
    told = json.loads(capsys.readouterr().out)
    assert told["taken_in"] == {"quota": True}
    assert await house.command("policy", "show", "quota", "--json") == Exit.FINE
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["settings"]["deadband_ppm"], shown["settings"]["period_ns"]) == (30_000, 2 * 10**9)
    assert await house.command("policy", "preset", "default") == Exit.FINE
    said = capsys.readouterr().out
    assert "quota goes by it" in said
    assert "nobody runs admission now: it holds from its next start on" in said
    assert (await settings_of(house, "quota"))["deadband_ppm"] == 5_000


async def test_quota_commands_set_and_show(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    await house.say(both("e1"), at_s=0)
    await house.decide()
    assert await house.command("quota", "set", "--tenant", "acme", "--kv-bytes", "8GiB") == Exit.FINE
    bounds = ("--embedding-min", "10%", "--embedding-max", "40%")
    assert await house.command("quota", "set", "--engine", "e1", *bounds, "--json") == Exit.FINE
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = told["quotas"]["engines"]
    assert (row["embedding_min_ppm"], row["embedding_max_ppm"]) == (100_000, 400_000)
    assert told["quotas"]["tenants"] == {"acme": 8 * 2**30}
    assert await house.command("quota", "show") == Exit.FINE
    page = capsys.readouterr().out
    assert "10.0 % to 40.0 %" in page
    assert str(8 * 2**30) in page


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("policy", "set", "quota", "deadband_ppm=90%"), "quota.deadband_ppm = 900000 (allowed: a whole number from 0"),
        (("policy", "set", "quota", "deadband_ppm"), "write KEY=VALUE"),
        (("policy", "preset", "nonsense"), "allowed: default"),
        (("quota", "set", "--tenant", "t", "--kv-bytes", "8GiBi"), "one of: B, KiB"),
        (("quota", "set", "--tenant", "t"), "give --tenant and --kv-bytes"),
        (("quota", "set", "--embedding-min", "50%", "--embedding-max", "40%"), "0% to 100%"),
    ],
)
async def test_a_bad_order_by_command_is_one_line_with_what_is_allowed_and_nothing_is_written(
    house: House, argv: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await house.command(*argv) == Exit.BAD_INPUT
    assert told in capsys.readouterr().err
    assert await house.records() == []


async def test_the_actor_s_position_is_where_it_has_read_to(house: House) -> None:
    await house.decide()
    writer = FactWriter(house.log, source="policy", owner="test", clock=PoolClock())
    running = asyncio.create_task(writer.run())
    place = await writer.write(PolicyConfigured(actor="quota", settings={"deadband_ppm": 1}))
    await writer.close()
    await running
    assert await taken_in(house.log.client, house.log.pool, "quota", place.seq)
    found = await position_of(house.log.client, house.log.pool, "quota")
    assert found is not None
    assert (found.actor, found.owner.startswith("quota-")) == ("quota", True)
    assert found.seq >= place.seq
