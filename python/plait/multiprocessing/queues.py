"""`multiprocessing.queues`."""

from plait.multiprocessing._standard import fall_back, standard_module

fall_back(globals(), standard_module("queues"))
