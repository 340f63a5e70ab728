"""This machine as simulated hardware: measured under load, fitted, kept in a file.

measure_machine.py loads a server; measured_machine.py fits a cost to its iteration log, keeps the
result, and makes a `Setup` of it.
"""
