"""Output parsers: they split generated text into content, reasoning and tool calls.

`output_parser` has the protocol, `tool_formats` and `reasoning_parser` the formats by name, and
`format_detection` chooses among them by the model's chat template. The generation core applies a
job's parser between detokenised text and the API's translation.
"""
