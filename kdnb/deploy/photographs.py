"""Image files: which of the given ones are images, and decoding them."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from kdnb.errors import InputError
from kdnb.image_files import Tree, endings, open_image

LISTED = 3  # names in an error message


def list_photographs(paths: Iterable[str | Path]) -> list[Path]:
    """The files among some paths, and the images in the folders among them, sorted by name.

    Images in folders are recognised by their endings, at any depth; hidden files and folders are
    left out. Raises InputError for a path that does not exist and for a folder without images.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"photograph {str(path)!r}: no such file or folder")
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(map(Path, Tree([path]).images(path)))
        if not found:
            raise InputError(f"{path} contains no images ({', '.join(endings())})")
        files += found
    return files


def read_photograph(path: str | Path) -> Image.Image | None:
    """An image file in RGB, turned upright; None for a damaged one.

    Damaged are files that are empty, truncated, not an image, of more than 8 bits a channel, or of
    more than `PIL.Image.MAX_IMAGE_PIXELS` pixels; training refuses the same ones.
    """
    try:
        with open_image(path) as image:
            too_large = image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf"))
            if too_large or image.mode.startswith(("I", "F")):
                return None
            return ImageOps.exif_transpose(image).convert("RGB")
    except MemoryError:
        raise
    except Exception:  # PIL raises nearly any exception for files that are not images
        return None


def read_photographs(paths: list[Path], skip_damaged: bool) -> dict[Path, Image.Image]:
    """{path: image}, without the damaged files, of which a line is printed.

    Raises InputError for damaged files unless they may be skipped, and if no image is left.
    """
    images = {path: read_photograph(path) for path in paths}
    damaged = [str(path) for path, image in images.items() if image is None]
    if damaged:
        names = ", ".join(damaged[:LISTED]) + (" ..." if len(damaged) > LISTED else "")
        text = (
            f"{len(damaged)} of {len(paths)} files cannot be decoded (empty, truncated, not an "
            f"image of 8 bits a channel, or too large): {names}"
        )
        if not skip_damaged or len(damaged) == len(images):
            raise InputError(text)
        print(f"left out: {text}", flush=True)
    return {path: image for path, image in images.items() if image is not None}
