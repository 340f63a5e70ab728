"""Imports torch, and is imported only by those who run this executor."""

import os

# Read when the library is loaded. A thread that waits at the end of an operation must sleep, not
# spin: where other processes want the cores too, spinning made steps of 70 ms take seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
