"""Base: what every other floor stands on.   (floor 0 · base)

shapes.py     one letter per meaning
errors.py     the one tree of exceptions, each with its exit code
rng.py        seeds that are passed: a stream, or a counter
files.py      whole files or none: atomic writes
arrays.py     .npy files, mapped and written; nothing in them is run
room.py       memory and disk that are free, asked before they are used
chart.py      a self-contained SVG of points on a logarithmic scale
roofline.py   bytes against time on such a page, and the line that memory draws
timing.py     medians of interleaved repeats, and the machine they hold for
progress.py   one line on standard error, silent when nobody watches
"""
