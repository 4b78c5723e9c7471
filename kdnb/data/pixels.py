"""The stored pixels of a split, where they are, and how the crops of a batch are cut from them."""

from typing import ClassVar
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from kdnb.data.crop_cache import CropCache
from kdnb.data.crops import copy_windows, crop_each, gather_windows, resize_windows
from kdnb.data.ragged import Ragged
from kdnb.data.stream import to_device


class Pixels:
    """Cuts the crops of a batch, as a plan of random choices says.

    Args:
        images: the stored pixels, uint8 (n, 3, size, size) or photographs.
        device: where the crops are made.
        on_device: whether all images are held there; on a CPU, a memory map stays one.
        padding: black pixels around an image before it is cropped at random.
        cached_size: side of photographs' crops that a CPU cuts once for all epochs; 0: none.
    """

    def __init__(
        self,
        images: Tensor | Ragged,
        device: torch.device,
        on_device: bool,
        padding: int,
        cached_size: int,
    ):
        self.device = device
        self.on_device = on_device
        self.padding = padding
        self.copy = CopyOnDevice.of(images, device) if on_device else None
        self.stored = self.copy.images if self.copy else images
        self.are_photographs = isinstance(images, Ragged)
        self.crops_each = self.are_photographs and on_device and device.type == "cpu"
        self.cache = None
        if self.crops_each and cached_size:
            self.cache = CropCache(self.stored, cached_size)

    def read(self, plan: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns some rows of a plan with the stored "pixels" that `crop` needs.

        They are where all images are: on the device or on the CPU.
        """
        if self.crops_each:
            return plan
        names = [name for name in plan if name.endswith("box")]  # of each view of photographs
        shapes = {name: plan[name][:, 2:].amax(0).tolist() for name in names}
        if self.on_device:
            # Not blocking, which would wait until the GPU has finished the steps before.
            plan = to_device(plan, self.device, non_blocking=self.device.type == "cuda")
        if not self.are_photographs:
            return plan | {"pixels": self.stored[plan["index"]]}
        windows = gather_windows if self.on_device else copy_windows
        pixels = {
            name.replace("box", "pixels"): windows(self.stored, plan["index"], plan[name], *shape)
            for name, shape in shapes.items()
        }
        return plan | pixels

    def crop(self, part: dict[str, Tensor], size: int) -> Tensor:
        """Returns the cropped pixels 0..255 of what `read` returns, (batch, 3, size, size)."""
        if self.crops_each:
            if self.cache and size == self.cache.size:
                return self.cache(part["index"], part["box"])
            return crop_each(self.stored, part["index"], part["box"], size)
        if self.are_photographs:
            return resize_windows(part["pixels"], part["box"], size)
        if "corner" in part:
            padded = F.pad(part["pixels"], [self.padding] * 4)  # black, before normalisation
            windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view: b 3 y x size size
            rows, columns = part["corner"].unbind(1)
            return windows[torch.arange(len(padded), device=self.device), :, rows, columns]
        return part["pixels"]


class CopyOnDevice:
    """Images and their copy on a device, which all users of the same images share."""

    copies: ClassVar[WeakValueDictionary] = WeakValueDictionary()  # by image and device

    def __init__(self, source: Tensor | Ragged, device: torch.device):
        self.source = source  # as long as it lives, no other object has its id
        self.images = source if device.type == "cpu" else source.to(device)

    @classmethod
    def of(cls, source: Tensor | Ragged, device: torch.device) -> "CopyOnDevice":
        key = id(source), str(device)
        copy = cls.copies.get(key) or cls(source, device)
        cls.copies[key] = copy
        return copy
