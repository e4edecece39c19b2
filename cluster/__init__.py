"""Machines: what exists, and what of it is promised to whom.

Hardware is measured (`inventory`), shared out (`slices`, `fit`) and defended (`confine`) here. This package
knows nothing of models' contents, sessions or HTTP, and imports neither `serving` nor `router`.
"""
