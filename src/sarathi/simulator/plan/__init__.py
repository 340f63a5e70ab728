"""The cheapest deployment that serves a load within latency targets.

planner.py searches candidates; replica_sizing.py makes them, and finds how many replicas of one a
load takes; plan_report.py prints. Use `make_plan` and plan_report.
"""
