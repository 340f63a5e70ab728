"""The paper's evaluation as data, and its reproduction.

evaluation.py names the experiments, runs them and writes the report; each is described in
*_experiments.py with values of published.py and simulations of jobs.py, and in words in
evaluation.yaml; experiment.py makes tables and figures of a description.
"""
