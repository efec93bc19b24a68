"""A replacement is neither a positive nor a negative of any sample, in any method: its embeddings change nothing."""

import pytest
import torch

from tests.methods import small
from tests.methods.test_contract import NAMES

REPLACEMENT = 2


@pytest.mark.parametrize("name", NAMES)
def test_what_a_replacement_looks_like_changes_neither_loss_nor_gradient_nor_memory(name: str) -> None:
    m = small.method(name)
    b = small.batch(m.num_views, invalid=(REPLACEMENT,))
    e = {key: value.detach() for key, value in small.forward(m, b).items()}
    other = {key: value.clone() for key, value in e.items()}
    for value in other.values():
        value[REPLACEMENT] = torch.randn_like(value[REPLACEMENT])
    losses, pulls, memories = [], [], []
    for found in (e, other):
        twin = small.method(name)
        leaves = {key: value.clone().requires_grad_() for key, value in found.items()}
        out = twin.loss(leaves, b, small.HYPER)
        out.loss.backward()
        twin.remember(out, b, small.HYPER)
        losses.append(out.loss.detach())
        pulls.append({key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None})
        memories.append(dict(twin.named_buffers()))
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-12)
    for key, pull in pulls[0].items():
        assert pull[REPLACEMENT].abs().sum() == 0, key
        torch.testing.assert_close(pulls[1][key], pull, rtol=0, atol=1e-12)
    for key, value in memories[0].items():
        torch.testing.assert_close(memories[1][key], value, rtol=0, atol=1e-12, equal_nan=True)
