"""RandomNumbers: the published generator, uniform, and the same when compiled."""

import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from kdnb.losses.random_numbers import INCREMENT, RandomNumbers

# Of the authors' generator with the seed 1234567, as other implementations of it are tested.
SEED = 1234567
NUMBERS = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_the_numbers_are_those_of_splitmix64():
    """In several calls as in one: the state advances by what was drawn."""
    random = RandomNumbers()
    position = SEED * pow(INCREMENT, -1, 2**64)  # where the state of the authors is the seed
    random.position.fill_((position + 2**63) % 2**64 - 2**63)
    drawn = torch.cat([random.bits(2), random.bits(3)])
    assert [number % 2**64 for number in drawn.tolist()] == NUMBERS


def test_numbers_are_uniform_and_do_not_depend_on_each_other():
    """By chi-squared tests of the pairs of a number with the next one, and with the next call's."""
    random = RandomNumbers()
    first, second = (random.uniform(2, 100_001).double().numpy() for _ in range(2))
    assert first.shape == (2, 100_001) and min(first.min(), second.min()) >= 0
    assert max(first.max(), second.max()) < 1
    pairs = {
        "next": (first[:, :-1:2], first[:, 1::2]),
        "other half of the 64 bits": (first[0], first[1]),
        "next call": (first, second),
    }
    for name, (x, y) in pairs.items():
        counts, *_ = np.histogram2d(x.ravel(), y.ravel(), bins=32, range=[(0, 1), (0, 1)])
        assert stats.chisquare(counts.ravel()).pvalue > 0.001, name
    fine = (2**24 * first) % 256  # the lowest bits
    assert stats.chisquare(np.bincount(fine.ravel().astype(int))).pvalue > 0.001


def test_two_states_differ_and_follow_the_seed():
    first, second = RandomNumbers(), RandomNumbers()
    torch.manual_seed(0)  # as before each test
    assert torch.equal(first.uniform(9), RandomNumbers().uniform(9))
    assert not torch.equal(first.uniform(9), second.uniform(9))


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not any(map(shutil.which, ("c++", "g++", "clang++"))),
                    reason="compiling needs a C++ compiler",
                ),
            ],
        ),
    ],
)
@pytest.mark.parametrize("n", [5, 4907])  # less than a vector register holds, and many with a rest
def test_a_compiled_call_draws_the_same_in_one_graph(backend, n):
    random, compiled = RandomNumbers(), RandomNumbers()
    compiled.load_state_dict(random.state_dict())
    torch.compiler.reset()
    uniform = torch.compile(compiled.uniform, backend=backend, fullgraph=True, dynamic=False)
    for _ in range(3):
        assert torch.equal(uniform(3, n), random.uniform(3, n))
    assert compiled.position == random.position


def test_a_state_dict_without_the_state_leaves_the_new_one():
    """As files have it of losses that drew from the global generator. Others bring theirs."""
    losses = torch.nn.ModuleDict({"crd": RandomNumbers()})
    before = losses["crd"].position.clone()
    old = {}
    losses.load_state_dict(old)
    assert losses["crd"].position == before and not old
    losses.load_state_dict({"crd.position": torch.tensor(7)})
    assert losses["crd"].position == 7
