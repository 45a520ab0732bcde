import math

import torch

from dllm_decode.kernels.noise import Noise, fold, gumbel, mix, unit_interval


def noise(seeds, step=0, columns=4):
    index = torch.arange(columns).expand(len(seeds), -1)
    return Noise(torch.tensor(seeds), torch.full((len(seeds),), step), index)


def uniform_over(noise, vocabulary, stream=Noise.TOKENS):
    return unit_interval(fold(noise.states(stream)[..., None], torch.arange(vocabulary)))


def gumbel_over(noise, vocabulary):
    return gumbel(noise.states()[..., None], torch.arange(vocabulary))


def test_a_row_draws_the_same_numbers_in_any_batch_and_order():
    alone = gumbel_over(noise([7]), 5)
    together = gumbel_over(noise([3, 7, 9]), 5)
    assert torch.equal(alone[0], together[1])
    assert torch.equal(noise([7]).uniform()[0], noise([7, 7]).uniform()[1])


def test_draws_do_not_depend_on_where_a_column_stands_in_the_window():
    moved = Noise(torch.tensor([7]), torch.tensor([0]), torch.tensor([[2, 0]]))
    assert torch.equal(moved.uniform()[0], noise([7]).uniform()[0, [2, 0]])


def test_seeds_steps_streams_columns_and_ids_give_different_numbers():
    base = uniform_over(noise([7]), 50)
    others = [
        uniform_over(noise([8]), 50),
        uniform_over(noise([7], step=1), 50),
        uniform_over(noise([7]), 50, Noise.POSITIONS),
    ]
    for other in others:
        assert not (base == other).any()
    assert base.unique().numel() == base.numel()


def test_numbers_are_uniform_in_the_open_interval():
    numbers = uniform_over(noise(list(range(100)), columns=20), 10).flatten()
    count = numbers.numel()
    assert numbers.min() > 0.0 and numbers.max() < 1.0 and numbers.dtype == torch.float64
    assert abs(numbers.mean() - 0.5) < 4 / math.sqrt(12 * count)
    share = torch.histc(numbers.float(), 10, 0, 1) / count
    assert ((share - 0.1).abs() < 4 * math.sqrt(0.09 / count)).all()


def test_the_ends_of_the_hash_range_stay_inside_the_interval():
    ends = torch.tensor([0, -1, -(2**63), 2**63 - 1])
    numbers = unit_interval(ends)
    assert (numbers > 0).all() and (numbers < 1).all()
    assert (-(-numbers.log()).log()).isfinite().all()


def test_gumbel_noise_has_the_mean_and_variance_of_the_distribution():
    draws = gumbel_over(noise(list(range(200)), columns=10), 10).flatten()
    deviation = math.pi / math.sqrt(6)
    assert abs(draws.mean() - 0.5772156649) < 4 * deviation / math.sqrt(draws.numel())
    assert abs(draws.std() - deviation) < 0.05


def test_the_hash_is_splitmix64():
    # known answer: the first output of splitmix64 seeded with 0
    assert mix(torch.tensor(0x9E3779B97F4A7C15 - (1 << 64))).item() % 2**64 == 0xE220A8397B1DCDAF
    assert fold(torch.tensor(0), 0).item() % 2**64 == 0xE220A8397B1DCDAF
