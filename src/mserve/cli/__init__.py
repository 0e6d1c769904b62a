"""The command line: one file per command, and ``main`` that ties them together.

Importing a command's file costs milliseconds; what is heavy (torch, the tokenizer, the HTTP
server) is imported inside the function that needs it, after the flags are known to be good.
"""
