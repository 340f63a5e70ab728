"""The command `sarathi`: `main` chooses a module for each command, whose `run` takes its options.

`arguments` derives the command line, environment variables and `--config` from declared options;
`local_engine`, `measurement` and `simulation` have what several commands share. No other
package imports from here.
"""
