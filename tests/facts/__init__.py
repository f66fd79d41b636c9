"""What others promise or do, and this project builds on: each fact pinned by a trial against the real thing.

A test that fails here after an upgrade says that the world changed, not that the code broke: look first which advice,
message or measurement rests on the fact, then change both.
"""
