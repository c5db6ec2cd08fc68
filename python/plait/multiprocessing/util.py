"""`multiprocessing.util` itself: there is one list of what is done at exit."""

import sys
from multiprocessing import util
from multiprocessing.util import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = util
