"""`multiprocessing.process` itself: there is one current process, whoever asks."""

import sys
from multiprocessing import process
from multiprocessing.process import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = process
