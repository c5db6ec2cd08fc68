"""`multiprocessing.resource_tracker` itself: there is one process that unlinks what was left behind."""

import sys
from multiprocessing import resource_tracker
from multiprocessing.resource_tracker import *  # noqa: F403 (for type checkers)

sys.modules[__name__] = resource_tracker
