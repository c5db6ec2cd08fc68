"""asyncpg, psycopg and redis-py on plait's loop, against servers that the tests start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import plait


def test_asyncpg(postgresql: dict[str, Any]) -> None:
    asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")

    async def use() -> None:
        async with asyncpg.create_pool(**postgresql, min_size=2, max_size=8) as pool:

            async def double(number: int) -> int:
                async with pool.acquire() as connection:
                    found: int = await connection.fetchval("SELECT $1::int * 2", number)
                    return found

            assert await asyncio.gather(*map(double, range(200))) == [2 * number for number in range(200)]
            async with pool.acquire() as connection:
                await connection.execute("CREATE TEMP TABLE items (number int, words text)")
                rows = [(number, "words " * number) for number in range(300)]
                await connection.executemany("INSERT INTO items VALUES ($1, $2)", rows)
                async with connection.transaction():
                    seen = [
                        tuple(row) async for row in connection.cursor("SELECT * FROM items ORDER BY number")
                    ]
                assert seen == rows
                await connection.copy_records_to_table("items", records=[(-1, "x" * 1_000_000)])
                assert (
                    await connection.fetchval("SELECT length(words) FROM items WHERE number = -1")
                    == 1_000_000
                )
                with pytest.raises(asyncpg.PostgresError, match="division by zero"):
                    await connection.fetchval("SELECT 1 / 0")
                with pytest.raises(TimeoutError):
                    await connection.fetchval("SELECT pg_sleep(60)", timeout=0.05)
                assert await connection.fetchval("SELECT 'still here'") == "still here"

    plait.run(use())


def test_asyncpg_hears_notifications_and_can_be_cancelled(postgresql: dict[str, Any]) -> None:
    asyncpg = pytest.importorskip("asyncpg", reason="asyncpg is not installed")

    async def use() -> None:
        heard: asyncio.Queue[str] = asyncio.Queue()
        listener = await asyncpg.connect(**postgresql)
        speaker = await asyncpg.connect(**postgresql)
        await listener.add_listener(
            "news", lambda _connection, _pid, _channel, payload: heard.put_nowait(payload)
        )
        for number in range(10):
            await speaker.execute(f"NOTIFY news, '{number}'")
        assert [await heard.get() for _ in range(10)] == list(map(str, range(10)))
        asking = asyncio.create_task(speaker.fetchval("SELECT pg_sleep(60)"))
        running = (
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
        )
        while not await listener.fetchval(running):
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await speaker.fetchval("SELECT 42") == 42
        await listener.close()
        await speaker.close()

    plait.run(use())


def test_psycopg(postgresql: dict[str, Any]) -> None:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    options = {key: value for key, value in postgresql.items() if key != "database"} | {"dbname": "postgres"}

    async def double(number: int) -> int:
        async with await psycopg.AsyncConnection.connect(**options) as connection:
            cursor = await connection.execute("SELECT %s::int * 2", (number,))
            (found,) = await cursor.fetchone()
            return int(found)

    async def use() -> None:
        assert await asyncio.gather(*map(double, range(20))) == [2 * number for number in range(20)]
        async with await psycopg.AsyncConnection.connect(**options, autocommit=True) as connection:
            async with connection.cursor() as cursor:
                await cursor.execute("CREATE TEMP TABLE items (number int, words text)")
                async with cursor.copy("COPY items FROM STDIN") as copy:
                    for number in range(2000):
                        await copy.write_row((number, "words " * 20))
                await cursor.execute("SELECT * FROM items ORDER BY number")
                assert [row async for row in cursor] == [(number, "words " * 20) for number in range(2000)]
            async with connection.pipeline():
                cursors = [await connection.execute("SELECT %s::int", (number,)) for number in range(50)]
            assert [await cursor.fetchone() for cursor in cursors] == [(number,) for number in range(50)]
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1 / 0")
            await connection.execute("LISTEN news")
            await connection.execute("NOTIFY news, 'hello'")
            async for notification in connection.notifies():
                assert notification.payload == "hello"
                break

    plait.run(use())


def test_redis(redis: int) -> None:
    client_module = pytest.importorskip("redis.asyncio", reason="redis-py is not installed")

    async def use() -> None:
        async with client_module.Redis(
            port=redis, decode_responses=True, socket_timeout=None, max_connections=300
        ) as client:
            assert await client.ping()
            await asyncio.gather(*(client.set(f"key {number}", number) for number in range(200)))
            found = await asyncio.gather(*(client.get(f"key {number}") for number in range(200)))
            assert found == list(map(str, range(200)))
            async with client.pipeline(transaction=True) as pipeline:
                for _ in range(100):
                    pipeline.incr("count")
                assert await pipeline.execute() == list(range(1, 101))
            await client.set("long", "x" * 3_000_000)
            assert await client.get("long") == "x" * 3_000_000
            with pytest.raises(client_module.ResponseError):
                await client.lpush("count", 1)

    plait.run(use())


def test_redis_subscriptions_and_blocking_reads(redis: int) -> None:
    client_module = pytest.importorskip("redis.asyncio", reason="redis-py is not installed")

    async def use() -> None:
        async with client_module.Redis(
            port=redis, decode_responses=True, socket_timeout=None, max_connections=300
        ) as client:
            async with client.pubsub() as channel:
                await channel.subscribe("news")
                for number in range(20):
                    await client.publish("news", number)
                heard: list[str] = []
                async for message in channel.listen():
                    if message["type"] == "message":
                        heard.append(message["data"])
                    if len(heard) == 20:
                        break
                assert heard == list(map(str, range(20)))
            popping = asyncio.create_task(client.blpop(["jobs"]))
            while not any("blpop" in one["cmd"] for one in await client.client_list()):
                await asyncio.sleep(0.01)
            popping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await popping
            popping = asyncio.create_task(client.blpop(["jobs"]))
            await client.rpush("jobs", "work")
            assert tuple(await popping) == ("jobs", "work")

    plait.run(use())
