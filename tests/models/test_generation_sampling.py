import pytest
import torch

from fedscale.models.generation.sampling import Sampler, gumbel

CPU = torch.device("cpu")


def test_draws_follow_the_softmax_of_the_scaled_logits():
    """Chi-square against the softmax, over seeds and over steps; 0.999 quantiles."""
    logits, temperature, draws = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -3.0]), 0.8, 50_000
    expected = draws * (logits / temperature).softmax(0)
    numbers, fixed = torch.arange(draws), torch.zeros(draws, dtype=torch.long)
    for seeds, steps in ((numbers, fixed), (fixed + 2**61, numbers)):
        tokens = Sampler([temperature] * draws, seeds.tolist(), CPU)(logits.expand(draws, -1), steps)
        found = torch.bincount(tokens, minlength=6)
        assert ((found - expected) ** 2 / expected).sum() < 20.5


def test_the_noise_is_gumbels_and_independent_of_that_beside_it():
    noise = gumbel(torch.arange(40), torch.arange(40) // 3, 32_000).double()
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.57722) < 0.005 and abs(noise.var() - torch.pi**2 / 6) < 0.01
    rows = torch.corrcoef(noise) - torch.eye(40)
    assert rows.abs().max() < 0.03  # 5.4 standard errors, of 780 pairs
    neighbours = torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1]
    assert abs(neighbours) < 0.005


def test_a_draw_knows_neither_its_row_nor_what_else_is_drawn():
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    temperatures, seeds = [0.0, 1.0, 2.0, 0.5, 0.0, 1.0, 3.0, 1.0], [0, 1, 2, 3, 4, 1, 6, 2**63 - 1]
    steps = torch.tensor([0, 5, 1, 2, 3, 5, 6, 7])
    together = Sampler(temperatures, seeds, CPU).scores(logits, steps)
    for row in range(8):
        alone = Sampler([temperatures[row]], [seeds[row]], CPU).scores(logits[row : row + 1], steps[row : row + 1])
        assert torch.equal(alone[0], together[row])
    assert torch.equal(together[0], logits[0])  # greedy


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same():
    seeds, steps = torch.arange(64) * 2**55 + 3, torch.arange(64)
    here, there = gumbel(seeds, steps, 32_000), gumbel(seeds.cuda(), steps.cuda(), 32_000).cpu()
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
