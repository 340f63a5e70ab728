"""This machine as simulated hardware: measured under load, fitted, kept in a file.

measure_machine.py loads a server, iteration_fit.py fits a cost to its iteration log,
measured_machine.py keeps the result and makes a `Setup` of it.
"""
