"""The whole of `asyncio`, on plait's event loop: a program changes ``import plait.asyncio as asyncio``.

Every public name of the standard package and of its modules is here. What makes a loop makes a
`plait.EventLoop`; tasks, futures, exceptions, protocols and all that is not said to be plait's *are* the
standard ones, so that libraries that import `asyncio` themselves work with it.
"""

from __future__ import annotations

import asyncio as _standard
from asyncio import *  # noqa: F403
from asyncio.taskgroups import TaskGroup as TaskGroup
from typing import TYPE_CHECKING

from plait._fall_back import fall_back as _fall_back
from plait.asyncio import events as events
from plait.asyncio import locks as locks
from plait.asyncio import queues as queues
from plait.asyncio import runners as runners
from plait.asyncio import streams as streams
from plait.asyncio.events import DefaultEventLoopPolicy as DefaultEventLoopPolicy
from plait.asyncio.events import get_event_loop as get_event_loop
from plait.asyncio.events import new_event_loop as new_event_loop
from plait.asyncio.locks import Barrier as Barrier
from plait.asyncio.locks import BoundedSemaphore as BoundedSemaphore
from plait.asyncio.locks import Condition as Condition
from plait.asyncio.locks import Event as Event
from plait.asyncio.locks import Lock as Lock
from plait.asyncio.locks import Semaphore as Semaphore
from plait.asyncio.queues import LifoQueue as LifoQueue
from plait.asyncio.queues import PriorityQueue as PriorityQueue
from plait.asyncio.queues import Queue as Queue
from plait.asyncio.queues import QueueShutDown as QueueShutDown
from plait.asyncio.runners import Runner as Runner
from plait.asyncio.runners import run as run
from plait.asyncio.streams import StreamReader as StreamReader
from plait.asyncio.streams import StreamReaderProtocol as StreamReaderProtocol
from plait.asyncio.streams import StreamWriter as StreamWriter
from plait.asyncio.streams import open_connection as open_connection
from plait.asyncio.streams import open_unix_connection as open_unix_connection
from plait.asyncio.streams import start_server as start_server
from plait.asyncio.streams import start_unix_server as start_unix_server
from plait.event_loop import EventLoop as EventLoop

if TYPE_CHECKING:
    from asyncio import base_events as base_events
    from asyncio import base_futures as base_futures
    from asyncio import base_subprocess as base_subprocess
    from asyncio import base_tasks as base_tasks
    from asyncio import constants as constants
    from asyncio import coroutines as coroutines
    from asyncio import exceptions as exceptions
    from asyncio import format_helpers as format_helpers
    from asyncio import futures as futures
    from asyncio import log as log
    from asyncio import mixins as mixins
    from asyncio import protocols as protocols
    from asyncio import selector_events as selector_events
    from asyncio import sslproto as sslproto
    from asyncio import staggered as staggered
    from asyncio import subprocess as subprocess
    from asyncio import taskgroups as taskgroups
    from asyncio import tasks as tasks
    from asyncio import threads as threads
    from asyncio import timeouts as timeouts
    from asyncio import transports as transports
    from asyncio import trsock as trsock
    from asyncio import unix_events as unix_events

__all__ = [*_standard.__all__, "EventLoop", "QueueShutDown"]
_fall_back(globals(), _standard)
