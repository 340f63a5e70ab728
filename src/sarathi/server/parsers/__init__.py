"""Output parsers: they split generated text into content, reasoning and the like.

`output_parser` has the protocol and the parsers by name; each further one is a module. The
generation core applies a job's parser between detokenised text and the API's translation.
"""
