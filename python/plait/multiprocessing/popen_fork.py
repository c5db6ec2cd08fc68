"""`multiprocessing.popen_fork` itself: what is asked for by this name is what it is there."""

import sys
from multiprocessing import popen_fork
from multiprocessing.popen_fork import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = popen_fork
