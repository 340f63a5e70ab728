"""Output parsers: they split generated text into content, reasoning and the like.

`output_parser` has the protocol, each implementation is a module, and `parser_registry` names them
all. The generation core applies a job's parser between detokenised text and the API's translation.
"""
