"""Pipes between processes: as the standard ones, but a large message waits for no reader."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import resource
import select
import signal
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import sync_calls
from faults.leftovers import excess, holdings

import plait.multiprocessing as ours
from plait.multiprocessing.connection import Pipe, wait

METHODS = ["spawn", "forkserver", "fork"]
PATIENCE = 60.0
"""Seconds: only a hang takes that long."""
LARGE = 64 << 20
ODD = 100_003


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    """A context of ours."""
    return ours.get_context(request.param)


@pytest.mark.parametrize("duplex", [True, False])
def test_a_large_message_is_sent_before_anybody_reads(context: Any, duplex: bool) -> None:
    receiver, sender = context.Pipe(duplex)
    process = context.Process(target=sync_calls.send_zeros, args=(sender, LARGE))
    process.start()
    sender.close()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert receiver.poll(0)
    assert receiver.recv_bytes() == bytes(LARGE)
    with pytest.raises(EOFError):
        receiver.recv()


def test_both_directions_at_once(context: Any) -> None:
    """With standard pipes, both would wait for the other to read."""
    here, there = context.Pipe()
    process = context.Process(target=sync_calls.send_back, args=(there,))
    process.start()
    there.close()
    for number in range(8):
        here.send(bytes([number]) * (8 << 20))
    for number in range(8):
        assert here.recv() == bytes([number]) * (8 << 20)
    here.send(None)
    process.join(PATIENCE)
    assert process.exitcode == 0


@pytest.mark.parametrize("duplex", [True, False])
def test_messages_of_any_size_come_in_order(duplex: bool, seed: int) -> None:
    chance = random.Random(seed)
    receiver, sender = ours.Pipe(duplex)
    waiting: list[bytes] = []
    for size in (0, 1, 16383, 16384, 16385, 65536, 65537, 3_000_000):
        waiting.append(bytes([size % 251]) * size)
        sender.send_bytes(waiting[-1])
        sender.send(waiting[-1])
        for received in (receiver.recv_bytes(), receiver.recv()):
            assert received == waiting[-1]
    waiting.clear()
    for _ in range(300):
        if len(waiting) < 20 and chance.random() < 0.6:
            size = chance.choice([3, 300, 17_000, 200_000])
            waiting.append(chance.randbytes(8) * (size // 8 + 1))
            send = sender.send_bytes if chance.random() < 0.5 else sender.send
            send(waiting[-1])
        elif waiting:
            sent = waiting.pop(0)
            received = receiver.recv_bytes()
            assert received == sent or pickle.loads(received) == sent
    for sent in waiting:
        received = receiver.recv_bytes()
        assert received == sent or pickle.loads(received) == sent
    assert not receiver.poll(0)


def test_arrays_arrive_writeable_and_whole(context: Any) -> None:
    np = pytest.importorskip("numpy")
    here, there = context.Pipe()
    process = context.Process(target=sync_calls.send_back, args=(there,))
    process.start()
    there.close()
    arrays = [
        np.arange(10),
        np.arange(1000),
        np.arange(1 << 20),
        np.ones((200, 300))[::2],
        np.ones((300, 200)).T,
    ]
    for array in arrays:
        here.send({"twice": [array, array]})
        first, second = here.recv()["twice"]
        assert np.array_equal(first, array)
        assert first is second
        first[...] = 0
    here.send(None)
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_an_array_as_bytes_is_one_pickle() -> None:
    np = pytest.importorskip("numpy")
    receiver, sender = ours.Pipe(False)
    array = np.arange(50_000)
    sender.send(array)
    assert np.array_equal(ForkingPickler.loads(receiver.recv_bytes()), array)
    sender.send(array)
    into = bytearray(1 << 20)
    size = receiver.recv_bytes_into(into)
    assert np.array_equal(pickle.loads(into[:size]), array)
    sender.send_bytes(ForkingPickler.dumps(array))
    assert np.array_equal(receiver.recv(), array)


def test_bytes_into_a_buffer(package: Any) -> None:
    receiver, sender = package.Pipe(False)
    for size in (10, 20_000):  # the standard pipe has room for 64 KiB
        sender.send_bytes(b"abc" * size, 3, 2 * size)
        into = bytearray(3 * size)
        assert receiver.recv_bytes_into(into, size) == 2 * size
        assert into == bytes(size) + (b"abc" * size)[3 : 3 + 2 * size]
        sender.send_bytes(b"x" * size)
        with pytest.raises(package.BufferTooShort) as caught:
            receiver.recv_bytes_into(bytearray(size - 1))
        assert caught.value.args == (b"x" * size,)


@pytest.mark.parametrize("size", [100, 30_000])
def test_what_is_refused(package: Any, size: int) -> None:
    receiver, sender = package.Pipe(False)
    with pytest.raises(OSError, match="connection is read-only"):
        receiver.send(bytes(size))
    with pytest.raises(OSError, match="connection is read-only"):
        receiver.send_bytes(bytes(size))
    with pytest.raises(OSError, match="connection is write-only"):
        sender.recv()
    with pytest.raises(OSError, match="connection is write-only"):
        sender.poll()
    with pytest.raises((pickle.PicklingError, AttributeError), match="local object"):
        sender.send([bytes(size), lambda: None])
    assert not receiver.poll(0)
    with pytest.raises(ValueError, match="negative maxlength"):
        receiver.recv_bytes(-1)
    sender.send_bytes(bytes(size))
    with pytest.raises(OSError, match="bad message length"):
        receiver.recv_bytes(size - 1)
    assert receiver.closed
    with pytest.raises(OSError, match="handle is closed"):
        receiver.recv()
    sender.close()
    with pytest.raises(OSError, match="handle is closed"):
        sender.send(1)


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("duplex", [True, False])
def test_the_other_end_is_closed(package: Any, duplex: bool, size: int) -> None:
    receiver, sender = package.Pipe(duplex)
    receiver.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            sender.send_bytes(bytes(size))
    receiver, sender = package.Pipe(duplex)
    waits = size > 1000 and package is not ours
    if not waits:
        sender.send_bytes(bytes(size))
    sender.close()
    if not waits:
        assert receiver.recv_bytes() == bytes(size)
    for _ in range(2):
        assert receiver.poll(0)
        with pytest.raises(EOFError):
            receiver.recv()


def test_a_close_with_unread_messages(package: Any) -> None:
    here, there = package.Pipe()
    here.send("unread")
    there.send("answer")
    there.close()
    assert here.recv() == "answer"
    with pytest.raises(ConnectionResetError):
        here.recv()
    with pytest.raises(BrokenPipeError):
        here.send(bytes(100_000))
    receiver, sender = package.Pipe(False)
    sender.send("unread")
    receiver.close()
    with pytest.raises(BrokenPipeError):
        sender.send("more")


def test_memory_goes_with_the_ends() -> None:
    def unread_kib() -> int:
        with open("/proc/self/status") as status:  # noqa: PTH123 (no file)
            return next(int(line.split()[1]) for line in status if line.startswith("RssShmem"))

    before = unread_kib()
    receiver, sender = ours.Pipe(False)
    sender.send_bytes(bytes(LARGE))
    assert unread_kib() > before + (60 << 10)
    receiver.close()
    with pytest.raises(BrokenPipeError):
        sender.send_bytes(bytes(LARGE))
    assert unread_kib() < before + (4 << 10)
    receiver, sender = ours.Pipe()
    sender.send_bytes(bytes(LARGE))
    del receiver, sender
    assert unread_kib() < before + (4 << 10)


def test_a_sender_that_is_killed_at_any_moment(seed: int) -> None:
    chance = random.Random(seed)
    context = ours.get_context("fork")
    for _ in range(12):
        receiver, sender = context.Pipe(chance.random() < 0.5)
        process = context.Process(target=sync_calls.send_for_ever, args=(sender, ODD))
        process.start()
        sender.close()
        expected = 0
        for _ in range(chance.randrange(1, 30)):
            number, body = receiver.recv()
            assert (number, body) == (expected, bytes([expected % 256]) * ODD)
            expected += 1
        process.kill()
        process.join()
        while True:
            try:
                number, body = receiver.recv()
            except EOFError:
                break
            assert (number, body) == (expected, bytes([expected % 256]) * ODD)
            expected += 1


def test_one_of_several_senders_is_killed(seed: int) -> None:
    """What it had not finished is skipped, though another process holds the same end."""
    chance = random.Random(seed)
    context = ours.get_context("fork")
    receiver, sender = context.Pipe(False)
    for turn in range(20):
        process = context.Process(target=sync_calls.send_for_ever, args=(sender, ODD))
        process.start()
        assert receiver.recv()[0] == 0
        time.sleep(chance.random() * 0.003)
        process.kill()
        process.join()
        while receiver.poll(0):
            number, body = receiver.recv()
            assert body == bytes([number % 256]) * ODD
        sender.send((f"turn {turn}", bytes(ODD)))
        assert receiver.recv() == (f"turn {turn}", bytes(ODD))


def test_messages_without_a_note_are_skipped() -> None:
    """A sender died before it sent the note, a receiver after it had read the note."""
    receiver, sender = ours.Pipe(False)
    assert sender._outgoing is not None
    sender._outgoing.put(b"orphan..", [bytes(ODD)], None)
    sender.send(b"a" * ODD)
    assert receiver.recv() == b"a" * ODD
    sender.send(b"b" * ODD)
    os.read(receiver.fileno(), 20)
    sender.send(b"c" * ODD)
    assert receiver.recv() == b"c" * ODD


def test_a_message_that_another_took_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.multiprocessing.connection._PATIENCE", 0.01)
    receiver, sender = ours.Pipe(False)
    sender.send(b"a" * ODD)
    assert receiver._incoming is not None
    receiver._incoming.get()
    with pytest.raises(OSError, match="is lost"):
        receiver.recv()


@pytest.mark.parametrize("unread", [b"small", b"large" * 20_000])
def test_a_receiver_that_is_killed_with_unread_messages(context: Any, unread: bytes) -> None:
    receiver, sender = context.Pipe(False)
    held = context.Event()
    process = context.Process(target=sync_calls.hold_until_killed, args=(receiver, held))
    process.start()
    receiver.close()
    assert held.wait(PATIENCE)
    sender.send(unread)
    process.kill()
    process.join()
    with pytest.raises(BrokenPipeError):
        sender.send(unread)


def test_wait_for_several_ends(context: Any) -> None:
    ends = [context.Pipe(duplex) for duplex in (True, False, True)]
    sizes = [10, 1 << 20, 100_000]
    processes = [
        context.Process(target=sync_calls.send_zeros, args=(sender, size))
        for (_, sender), size in zip(ends, sizes, strict=True)
    ]
    assert wait([receiver for receiver, _ in ends], 0) == []
    for process, (_, sender) in zip(processes, ends, strict=True):
        process.start()
        sender.close()
    waiting = {receiver: size for (receiver, _), size in zip(ends, sizes, strict=True)}
    got = []
    while waiting:
        ready = wait(list(waiting), PATIENCE)
        assert ready
        for receiver in ready:
            try:
                got.append(len(receiver.recv_bytes()))
            except EOFError:
                del waiting[receiver]
    assert sorted(got) == sorted(sizes)
    for process in processes:
        process.join()


def test_select_sees_large_messages() -> None:
    receiver, sender = ours.Pipe(False)
    assert select.select([receiver], [], [], 0)[0] == []
    sender.send_bytes(bytes(ODD))
    assert select.select([receiver], [], [], PATIENCE)[0] == [receiver]
    receiver.recv_bytes()
    assert select.select([receiver], [], [], 0)[0] == []


@pytest.mark.parametrize("duplex", [True, False])
def test_an_end_goes_through_pipes_and_queues(duplex: bool) -> None:
    """Also if it is closed before it has been received."""
    carrier, other = ours.Pipe()
    queue = ours.Queue()
    receiver, sender = ours.Pipe(duplex)
    carrier.send(sender)
    queue.put(receiver)
    sender.send(b"x" * ODD)
    sender.close()
    receiver.close()
    del receiver, sender
    second_sender, second_receiver = other.recv(), queue.get(timeout=PATIENCE)
    second_sender.send(b"y" * ODD)
    assert second_receiver.recv() == b"x" * ODD
    assert second_receiver.recv() == b"y" * ODD
    assert (second_receiver.readable, second_receiver.writable) == (True, duplex)


def test_ends_are_arguments_of_pools(context: Any) -> None:
    receiver, sender = context.Pipe(False)
    with context.Pool(2) as pool:
        for _ in range(3):
            pool.apply_async(sync_calls.send_from_worker, (sender, b"a" * ODD)).get(PATIENCE)
            assert receiver.recv() == b"a" * ODD
            sender.send(b"b" * ODD)
            assert pool.apply_async(sync_calls.receive_one, (receiver,)).get(PATIENCE) == (ODD, b"b")
        here, there = context.Pipe()
        here.send(b"c" * ODD)
        assert pool.apply_async(sync_calls.receive_one, (there,)).get(PATIENCE) == (ODD, b"c")


def test_pipes_leave_nothing_behind(context: Any) -> None:
    first = context.Process(target=sync_calls.send_zeros, args=(ours.Pipe(False)[1], 0))
    first.start()  # the zygote and the sharer's thread stay
    first.join()
    carrier, other = ours.Pipe()
    carrier.send(other)
    carrier_2 = ours.Pipe()[0]
    other.send(carrier_2)
    for end in (other.recv(), carrier.recv(), carrier, other, carrier_2):
        end.close()
    del carrier, other, carrier_2, end, first
    before = holdings()
    for duplex in (True, False):
        receiver, sender = context.Pipe(duplex)
        process = context.Process(target=sync_calls.send_zeros, args=(sender, ODD))
        process.start()
        process.join()
        process.close()
        sender.send_bytes(bytes(LARGE))
        receiver.recv_bytes()
        sender.close()
        del receiver, sender, process  # with an unread message
    assert excess(before) == {}


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_a_pipe_that_cannot_be_made_leaves_no_half(free: int) -> None:
    before = holdings()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(free):
            os.close(taken.pop())
        with pytest.raises(OSError, match="Too many open files"):
            ours.Pipe()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    assert excess(before) == {}


def test_an_interrupt_ends_the_wait(context: Any) -> None:
    receiver, sender = context.Pipe()
    process = context.Process(target=sync_calls.send_back, args=(receiver,))
    process.start()
    receiver.close()
    sender.send(b"there" * ODD)
    assert sender.recv() == b"there" * ODD
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(PATIENCE)
    assert process.exitcode == 1


def test_signals_interrupt_neither_receiving_nor_sending(context: Any) -> None:
    here, there = context.Pipe()
    process = context.Process(target=sync_calls.send_through_signals, args=(there, 500))
    process.start()
    there.close()
    assert here.recv() == "ready"
    for _ in range(20):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.002)
    here.send(b"x" * 109_999)
    for _ in range(20):
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.002)
    for number in range(500):
        if number < 100:  # it cannot have sent all before most are read
            os.kill(process.pid, signal.SIGUSR1)
        assert here.recv_bytes() == bytes(9_999)
    assert here.recv() == "done"
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_a_pipe_of_ours_is_a_standard_connection() -> None:
    from multiprocessing.connection import Connection

    assert all(isinstance(end, Connection) for duplex in (True, False) for end in Pipe(duplex))
