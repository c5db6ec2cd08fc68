"""`multiprocessing.dummy.connection` itself: pipes between threads have nothing to gain here."""

import sys
from multiprocessing.dummy import connection
from multiprocessing.dummy.connection import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = connection
