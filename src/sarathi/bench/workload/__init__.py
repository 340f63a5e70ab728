"""What is sent, and when: lengths, arrivals, conversations, and the text of prompts.

`workload.py` makes a `Plan` of requests from options; `presets.py` has the named workloads (a new
one is an entry of `PRESETS`), `lengths.py` distributions and files, `arrivals.py` times.
`prompt_text.py` writes prompts of an exact length with the help of a `TokenCounter` of
`token_counter.py`. Import `Workload`, `Plan`, `PRESETS` and these counters.
"""
