"""The command `sarathi`: `main` chooses a module with `add_arguments` and `run` for each command.

`arguments` derives the command line, environment variables and `--config` from declared options;
`engine_arguments`, `measurement` and `simulation` have what several commands share. No other
package imports from here.
"""
