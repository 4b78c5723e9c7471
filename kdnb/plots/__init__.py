"""Arrays and tables -> matplotlib Figures for a notebook's width; `plots.explorers`: pictures to play with.

Nothing here knows a run or a network. Titles say what is shown, `title` adds of what; conclusions are the reader's. A
figure for which there is nothing to draw is None. Blocks are (name, (channels, height, width)) pairs, shallow to deep;
T and S count those of the teacher and of the student.
"""

# ruff: noqa: F403
from kdnb.plots.compare import *
from kdnb.plots.curves import *
from kdnb.plots.images import *
from kdnb.plots.links import *
from kdnb.plots.maps import *
from kdnb.plots.style import *
