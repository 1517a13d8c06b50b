import torch

from fedscale.models.projector import Projector


def test_features_become_tokens_of_the_language_model():
    projector = Projector(in_dim=6, tokens=3, lm_dim=8)
    features = torch.randn(2, 6)
    out = projector(features)
    assert out.shape == (2, 3, 8)
    torch.testing.assert_close(projector(features[1:]), out[1:])
    out.sum().backward()
    assert all(p.grad is not None for p in projector.parameters())
