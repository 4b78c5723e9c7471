"""Random numbers for losses that draw some in each step, from a state of their own."""

import math

import torch
from torch import Tensor, nn

# Of 64 bits without a sign, as int64 holds them: its products wrap around.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
FACTORS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


class RandomNumbers(nn.Module):
    """The generator SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), whose state is a buffer.

    torch.rand draws from a generator that all runs in a process share. A torch.Generator breaks the
    graph under torch.compile, and a CUDA graph needs it to be registered. Here all operations are
    on tensors, and nothing waits for the device. The numbers are the same on every device.

    The state is a position in the sequence, which returns to its start after 2**64 numbers. The
    first one is drawn from torch's global generator when the module is built.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("position", torch.randint(2**62, ()))

    def uniform(self, *shape: int) -> Tensor:
        """Draws numbers in [0, 1), multiples of 2**-24, as a float32 tensor of this shape."""
        n = math.prod(shape)
        bits = self.bits((n + 1) // 2)
        # The highest and the lowest 24 of 64 bits give a number each, which halves the work.
        highest = (bits >> 40).bitwise_and_(2**24 - 1).to(torch.float32)
        lowest = bits.bitwise_and_(2**24 - 1).to(torch.float32)
        return torch.cat([highest, lowest])[:n].view(shape).mul_(2**-24)

    def bits(self, n: int) -> Tensor:
        """Draws n numbers of 64 bits, int64 (n,), and advances the state in place."""
        # Added before it is multiplied: inductor would make an index of a multiple of arange, and
        # compiled C++ must not have an index that wraps around.
        z = torch.arange(1, n + 1, device=self.position.device).add_(self.position).mul_(INCREMENT)
        self.position.add_(n)
        buffer = torch.empty_like(z)
        for shift, factor in zip((30, 27), FACTORS, strict=True):
            xor_shift_(z, shift, buffer).mul_(factor)
        return xor_shift_(z, 31, buffer)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Checkpoints of before losses had such a state lack it: then the new one stays.
        state_dict.setdefault(f"{prefix}position", self.position)
        super()._load_from_state_dict(state_dict, prefix, *args)


def xor_shift_(z: Tensor, shift: int, buffer: Tensor) -> Tensor:
    """Computes z ^ (z >> shift) in place; buffer: as large, is overwritten."""
    # int64 is shifted with its sign, which the mask removes.
    torch.bitwise_right_shift(z, shift, out=buffer).bitwise_and_(2 ** (64 - shift) - 1)
    return z.bitwise_xor_(buffer)
