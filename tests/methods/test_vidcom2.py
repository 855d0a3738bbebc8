import math

import pytest
import torch

from tests.pictures import batch, picture, reduce
from vtc.methods.vidcom2 import VidCom2


def slow(features: torch.Tensor, keep: int) -> list[int]:
    """The definition in plain loops: ``features [F, n, D]``."""
    frames, n, width = features.shape
    flat = features.flatten(0, 1)
    channels = flat.var(0, unbiased=False).argsort()[: (width + 1) // 2]
    z = torch.nn.functional.normalize(features[..., channels], dim=2)

    def like(x, centre):
        return sum(math.exp(-float((x - centre).square().sum()) / 2 / 2.0**k) for k in range(-3, 2))

    video = [[like(x, z.flatten(0, 1).mean(0)) for x in frame] for frame in z]
    unlike = torch.tensor([-sum(row) / n for row in video], dtype=torch.float64)
    share = 1 + (unlike / 0.01).softmax(0) - 1 / frames
    turns = []
    for f in range(frames):
        score = [video[f][i] + like(z[f, i], z[f].mean(0)) for i in range(n)]
        for rank, i in enumerate(sorted(range(n), key=score.__getitem__)):
            turns.append(((rank + 1) / (n * float(share[f])), f * n + i))
    return sorted(index for _, index in sorted(turns)[:keep])


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 3, 5), (9, 2, 4)])
def test_is_the_definition(shape):
    for seed in range(3):
        tokens = batch([picture(shape, seed, torch.float64)])
        n = tokens.count[0]
        features = tokens.features[0].unflatten(0, (shape[0], -1))
        for keep in (1, n // 4, n // 2, n - 1):
            assert reduce(VidCom2(), tokens, [keep]).anchor[0].tolist() == slow(features, keep)


def test_a_frame_unlike_the_others_keeps_more():
    tokens = batch([picture((5, 4, 4), 1)])
    still = tokens.features[:, :16].repeat(1, 5, 1) + 0.01 * tokens.features
    still[:, 48:64] = tokens.features[:, 48:64] * 3
    tokens.features = still
    got = reduce(VidCom2(), tokens, [20])
    kept = tokens.grid[0, got.anchor[0], 0].bincount(minlength=5)
    assert kept.argmax() == 3
    assert (kept > 0).all()
