"""What is wrong with a drawn figure."""

from unittest.mock import patch

from matplotlib.text import Text


def crowded(fig):
    """Pairs of texts of the figure that lie over each other, and texts that stick out of it."""
    drawn, draw = [], Text.draw

    def note(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    with patch.object(Text, "draw", note):
        fig.canvas.draw()
    shown = [t for t in drawn if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in shown]
    page = fig.bbox.padded(2)
    out = [
        text
        for text, b in boxes
        if b.x0 < page.x0 or b.y0 < page.y0 or b.x1 > page.x1 or b.y1 > page.y1
    ]
    return out + [
        (a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)
    ]
