"""The same scheduler under a virtual clock, on hardware that you do not have.

simulation.py is the simulation of a `Setup` (setup.py; this_cpu/ for this machine);
gpu_cost.py and calibration/ have the cost model, plan/ and reproduction/ what is built on it.
Commands use simulated_run.py.
"""
