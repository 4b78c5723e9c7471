"""Arrays and DataFrames -> matplotlib Figures, as wide as a notebook.

Figures depend on no run and no network. A `title` is appended to the heading of a figure, and says
of which data set or run it is. A function with nothing to draw returns None. Blocks are
(name, (channels, height, width)) pairs, shallow to deep; T and S are the numbers of the teacher's
and the student's blocks. `plots.explorers` has interactive figures.

Names are imported when they are first used, since arrays need no matplotlib: see `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
