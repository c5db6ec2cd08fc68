"""`concurrent.futures._base`, which programs reach into, with plait's `Future`."""

from __future__ import annotations

from concurrent.futures._base import *  # noqa: F403

from plait.future import Future as Future
