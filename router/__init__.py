"""The front door: one OpenAI-compatible address that sends every session to its home.

Builds on `serving` and `cluster`; nothing imports it but the command line. It never imports Ray or an engine.
"""
