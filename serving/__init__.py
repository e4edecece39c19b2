"""Replicas: models that run in slices, and the sessions that live in them.

Configuration, engines, the host around an engine, and who may use it. This package builds on `cluster` and
does not import `router`.
"""
