"""The floor's worker, a process of its own: the least that plain nats-py can do. Reads a fact by ordered consumer,
publishes a decision with the expected-sequence check, awaits the ack. Arguments: the stream's name."""

import asyncio
import os
import sys

import nats
import uvloop
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy


async def main(stream: str) -> None:
    client = await nats.connect(os.environ["BENCH_NATS_URL"])
    js = client.jetstream()
    last = 0

    async def on_fact(message: Msg) -> None:
        nonlocal last
        ack = await js.publish(
            f"{stream}.decision.raw.made",
            message.data,
            headers={
                "Nats-Msg-Id": f"raw:{message.reply}",
                "Nats-Expected-Last-Subject-Sequence": str(last),
                "Nats-Expected-Last-Subject-Sequence-Subject": f"{stream}.decision.raw.>",
            },
        )
        last = ack.seq

    config = ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
    await js.subscribe(f"{stream}.fact.>", ordered_consumer=True, cb=on_fact, config=config)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
