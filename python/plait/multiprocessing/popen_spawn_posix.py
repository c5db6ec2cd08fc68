"""`multiprocessing.popen_spawn_posix`: starts a child by executing a fresh interpreter."""

from multiprocessing import popen_spawn_posix as _standard

from plait.multiprocessing import spawn
from plait.multiprocessing._standard import fall_back, with_globals


class Popen(_standard.Popen):
    """A child with a fresh interpreter."""

    _launch = with_globals(_standard.Popen._launch, spawn=spawn)


fall_back(globals(), _standard)
