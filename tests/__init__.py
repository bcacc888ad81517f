"""Tests: mirrors src, plus house/ (the rules of the whole repository)."""
