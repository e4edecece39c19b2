"""Tests, and the fakes and processes that they share."""
