# The types of the compiled module `plait._rust`, held to it by stubtest.
