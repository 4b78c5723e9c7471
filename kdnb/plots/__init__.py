"""Arrays and DataFrames -> matplotlib Figures, as wide as a notebook.

Figures depend on no run and no network. A `title` is appended to the heading of a figure, and says
of which data set or run it is. A function with nothing to draw returns None. Blocks are
(name, (channels, height, width)) pairs, shallow to deep; T and S are the numbers of the teacher's
and the student's blocks. `plots.explorers` has interactive figures.
"""

from kdnb.plots.compare import (
    accuracy_and_cost,
    block_matrices,
    box_energy,
    class_changes,
    correlation_changes,
    loss_terms,
    reliability,
)
from kdnb.plots.curves import accuracy_over_time, accuracy_vs_published, learning_curves, step_times
from kdnb.plots.deployment import accuracy_and_latency, predictions, probe_accuracy
from kdnb.plots.file_links import FileLinks
from kdnb.plots.forest import gains
from kdnb.plots.images import augmentations, class_balance, image_grid, image_sizes, person_boxes
from kdnb.plots.links import (
    link_entropy,
    link_history,
    link_matrix,
    links_by_class,
    map_distances,
    run_links,
)
from kdnb.plots.maps import likeliest_classes, map_depth, map_grid
from kdnb.plots.style import ROLES, STYLES, Style, draw_each, line_styles, save, write_index
