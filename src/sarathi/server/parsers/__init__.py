"""Output parsers: they split generated text into content, reasoning and the like.

`output_parser` has the protocol, a module each implements it, and `registry` names them all. The
generation core applies the parser of a job between detokenised text and the API's translation.
"""
