"""The decisions: facts in, commands and advice out.

Nothing here knows a clock, a socket or an event loop; time is an argument. Only the standard library is imported,
and import-linter holds that in CI.
"""
