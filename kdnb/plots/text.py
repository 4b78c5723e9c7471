"""Text for figures: class names that can be drawn, line breaks, and titles as file names."""

import hashlib
import re
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

import matplotlib.pyplot as plt
from anyascii import anyascii
from matplotlib.font_manager import fontManager, get_font


def format_shape(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)


def wrap(name: str, width: int = 11) -> str:
    """A class name as drawable text, broken into lines of up to `width` letters."""
    return without_formulas(textwrap.fill(drawable_text(name), width, break_long_words=False))


def without_formulas(text: str) -> str:
    """A text whose dollar signs matplotlib draws; it takes what lies between two for a formula."""
    return text.replace("$", r"\$")


def drawable_text(name: str) -> str:
    """A class name with spaces in place of underscores, and only with letters that can be drawn.

    For a letter that matplotlib's fonts lack, an installed font that has it becomes a fallback.
    Without such a font the letter is transliterated to ASCII.
    """
    text = name.replace("_", " ")
    families = plt.rcParams["font.family"]
    for letter in {letter for letter in text if not letter.isascii()}:
        family = font_with(letter)
        if not family:
            text = text.replace(letter, anyascii(letter))
        elif family not in families:
            families.append(family)
            plt.rcParams["font.family"] = families
    return text


@cache
def font_with(letter: str) -> str:
    """The name of an installed font that has the letter, DejaVu Sans first; "" if none has it."""
    fonts = sorted(
        fontManager.ttflist, key=lambda font: (font.name != "DejaVu Sans", font.style != "normal")
    )
    for font in fonts:
        # A font may be bitmap-only, or uninstalled since matplotlib listed it.
        with suppress(RuntimeError, OSError):
            if "Last Resort" not in font.name and get_font(font.fname).get_char_index(ord(letter)):
                return font.name
    return ""


def file_stem(title: str, max_length: int = 48) -> str:
    """A title as part of a file name.

    A title that is too long is cut, and ends with six hex digits of the hash of the whole title.
    """
    stem = re.sub(r"[^\w.=+]+", "-", title).strip("-")
    if len(stem) <= max_length:
        return stem
    start = stem[: max_length - 7]
    cut = start.rpartition("-")[0] or start
    return f"{cut}-{hashlib.sha256(title.encode()).hexdigest()[:6]}"
