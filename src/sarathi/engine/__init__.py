"""The engine: schedule, execute, sample, publish.

`core` is that loop and `process` runs it in an engine process, which exchanges `messages` with the
HTTP process. `llm` runs the same loop in the caller's process. `config` has the options, `startup/`
loads and profiles a model, `output_processor` turns tokens into text. Packages above import these
modules directly; users import `LLM` from `sarathi`.
"""
