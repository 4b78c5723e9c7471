"""Finds faults in the layout of a drawn figure."""

from unittest.mock import patch

from matplotlib.text import Text


def crowded(fig):
    """The texts that extend beyond the figure, and the pairs of texts that overlap."""
    drawn = []
    draw = Text.draw

    def record(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    with patch.object(Text, "draw", record):
        fig.canvas.draw()
    visible = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in visible]
    page = fig.bbox.padded(2)
    outside = [
        text
        for text, box in boxes
        if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1
    ]
    overlapping = [
        (text, earlier_text)
        for i, (text, box) in enumerate(boxes)
        for earlier_text, earlier_box in boxes[:i]
        if box.overlaps(earlier_box)
    ]
    return outside + overlapping
