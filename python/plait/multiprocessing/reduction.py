"""`multiprocessing.reduction` itself: there is one table of how things are pickled."""

import sys
from multiprocessing import reduction
from multiprocessing.reduction import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = reduction
