"""Audit: what a model's maps and times give away.   (floor 5 · audit)

report/      the result of any audit, as HTML, as JSON, as a gate
attention/   from attention maps back to tokens
timing.py    from how long a model takes to what it was asked
"""

__all__: list[str] = []
