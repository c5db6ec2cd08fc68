"""`multiprocessing.resource_sharer` itself: there is one thread that hands out descriptors."""

import sys
from multiprocessing import resource_sharer
from multiprocessing.resource_sharer import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = resource_sharer
