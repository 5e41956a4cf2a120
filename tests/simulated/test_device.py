"""The simulated device refuses what CUDA refuses, allows what CUDA allows, and notes what makes the host wait."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.simulated.device import SimulatedTensor, WrongDevice, simulated


def ramp(count: int = 6) -> torch.Tensor:
    """0, 1, ... on the device."""
    return torch.arange(count, device="simulated", dtype=torch.float32)


REFUSED = {
    "a tensor made without device=": lambda: ramp() + torch.zeros(6),
    "a CPU mask": lambda: ramp().masked_fill(torch.ones(6, dtype=torch.bool), 0.0),
    "a CPU mask in where": lambda: torch.where(torch.ones(6, dtype=torch.bool), ramp(), ramp()),
    "CPU ids of an embedding": lambda: F.embedding(torch.tensor([1]), ramp().view(3, 2)),
    "CPU indices of index_select": lambda: ramp().index_select(0, torch.tensor([1])),
    "CPU indices of gather": lambda: ramp().gather(0, torch.tensor([1])),
    "CPU targets of a loss": lambda: F.cross_entropy(ramp()[None], torch.tensor([1])),
    "CPU weights of a matrix product": lambda: ramp().view(2, 3) @ torch.ones(3, 1),
    "a CPU tensor in a list": lambda: torch.cat([ramp(), torch.zeros(1)]),
    "a CPU number in a list": lambda: torch.stack([ramp().sum(), torch.tensor(1.0)]),
    "device indices of a CPU tensor": lambda: torch.zeros(6)[ramp().long()],
    "a device number added into a CPU one": lambda: torch.tensor(1.0).add_(ramp().sum()),
    "CPU values put in": lambda: ramp().index_put_((ramp(2).long(),), torch.zeros(2)),
    "a CPU bias of attention": lambda: F.scaled_dot_product_attention(*[ramp(8).view(1, 2, 4)] * 3, torch.zeros(2, 2)),
    "equal": lambda: torch.equal(ramp(), torch.zeros(6)),
}


@pytest.mark.parametrize("attempt", REFUSED.values(), ids=REFUSED.keys())
def test_refused(device, attempt):
    with pytest.raises(WrongDevice, match=r"test_device\.py:\d+ mixes .* on cpu"):
        attempt()


ALLOWED = {
    "a number": lambda: ramp() * 2 + 1,
    "a CPU number without dimensions": lambda: ramp() * torch.tensor(2.0),
    "a CPU number under a mask": lambda: ramp().masked_fill(ramp() > 2, torch.tensor(2.0)),
    "a number put under a mask": lambda: put(ramp(), ramp() > 2, 0.5),
    "a number put at a slice": lambda: put(ramp(), slice(2), 0.5),
    "a slice put at a slice": lambda: put(ramp(), slice(2), ramp(2) + 5),
    "indices of the device": lambda: ramp()[ramp(2).long()],
    "tensors made like another": lambda: torch.cat([torch.zeros_like(ramp()), ramp().new_ones(2)]),
    "random numbers": lambda: torch.rand(3, device="simulated") * 0,
    "attention": lambda: F.scaled_dot_product_attention(*[ramp(8).view(1, 2, 4)] * 3, is_causal=True),
}


def put(target: torch.Tensor, where, value) -> torch.Tensor:
    target[where] = value
    return target


@pytest.mark.parametrize("attempt", ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed_without_a_wait(device, attempt):
    result = attempt()
    assert isinstance(result, SimulatedTensor) and result.device.type == "simulated"
    assert not device.reads and not device.uploads


READS = {
    "item": (lambda: ramp().sum().item(), 1),
    "float": (lambda: float(ramp().sum()), 1),
    "bool": (lambda: bool(ramp().sum() > 0), 1),
    "tolist": (lambda: ramp().tolist(), 1),
    "cpu": (lambda: ramp().cpu(), 1),
    "cpu without waiting for it": (lambda: ramp().to("cpu", non_blocking=True), 1),
    "copied into a CPU tensor": (lambda: torch.zeros(6).copy_(ramp()), 1),
    "each of a loop": (lambda: [x.item() for x in ramp()], 6),
    "nonzero": (lambda: (ramp() > 2).nonzero(), 1),
    "a mask as an index": (lambda: ramp()[ramp() > 2], 1),
    "values put under a mask": (lambda: put(ramp(), ramp() > 3, ramp(2)), 1),
    "unique": (lambda: ramp().unique(), 1),
    "allclose": (lambda: torch.allclose(ramp(), ramp()), 1),
}


@pytest.mark.parametrize("attempt, count", READS.values(), ids=READS.keys())
def test_reads_are_noted(device, attempt, count):
    attempt()
    assert len(device.reads) == count and not device.uploads
    assert all("test_device.py:" in read for read in device.reads)


UPLOADS = {
    "tensor": (lambda: torch.tensor([1.0, 2.0], device="simulated"), 1),
    "as_tensor": (lambda: torch.as_tensor([1.0, 2.0], device=torch.device("simulated")), 1),
    "to": (lambda: torch.zeros(2).to("simulated"), 1),
    "to, not waiting": (lambda: torch.zeros(2).to("simulated", non_blocking=True), 0),
    "nothing": (lambda: torch.zeros(0).to("simulated"), 0),
    "copied into a tensor": (lambda: ramp(2).copy_(torch.zeros(2)), 1),
    "a list as an index": (lambda: ramp()[[1, 2]], 1),
    "CPU indices": (lambda: ramp()[torch.tensor([1, 2])], 1),
    "a number put at one place": (lambda: put(ramp(), 3, 0.5), 1),
    "put at a list": (lambda: put(ramp(), [1, 2], ramp(2)), 1),
}


@pytest.mark.parametrize("attempt, count", UPLOADS.values(), ids=UPLOADS.keys())
def test_uploads_are_noted(device, attempt, count):
    result = attempt()
    assert isinstance(result, SimulatedTensor)
    assert len(device.uploads) == count and not device.reads


def test_numpy_is_refused(device):
    with pytest.raises(TypeError, match="to numpy"):
        ramp().numpy()


def test_learns_as_the_cpu_does(device):
    torch.manual_seed(0)
    here = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    there = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    there.load_state_dict(here.state_dict())
    there.to("simulated")
    assert all(isinstance(p, SimulatedTensor) and isinstance(p, nn.Parameter) for p in there.parameters())
    inputs = torch.randn(2, 3, 8)
    for model in (here, there):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            model(inputs.to(model.linear1.weight.device)).square().mean().backward()
            optimizer.step()
    assert not device.reads
    for (name, expected), actual in zip(here.named_parameters(), there.parameters()):
        torch.testing.assert_close(actual.cpu(), expected, msg=lambda text, name=name: f"{name}: {text}")


class MixesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad + torch.zeros(6)


def test_a_backward_pass_is_watched(device):
    leaf = ramp().requires_grad_()
    with pytest.raises(WrongDevice, match=r"test_device\.py:\d+ mixes"):
        MixesInBackward.apply(leaf).sum().backward()
    device.forget()
    leaf.grad = None
    (leaf * 2).sum().backward()
    assert leaf.grad.tolist() == [2.0] * 6


def test_recomputed_parts_draw_the_same_numbers(device):
    leaf = ramp(100).requires_grad_()
    drawn = checkpoint(F.dropout, leaf, use_reentrant=False)
    drawn.sum().backward()
    assert torch.equal(leaf.grad, (drawn > 0).float() * 2) or torch.equal(leaf.grad[1:], (drawn > 0)[1:].float() * 2)


def test_views_and_versions(device):
    base = ramp()
    before = base._version
    base.view(2, 3)[1].mul_(10)
    assert base.tolist() == [0, 1, 2, 30, 40, 50] and base._version == before + 1


def test_is_gone_afterwards():
    if torch.cuda.is_available():
        pytest.skip("a real device is here")
    with simulated():
        tensor = ramp()
        assert torch.simulated.is_available()
    assert not torch.simulated.is_available() and not torch.accelerator.is_available()
    with pytest.raises(WrongDevice, match="outside of"):
        tensor + 1
    value = torch.ones(2, requires_grad=True)
    value.sum().backward()
    assert value.grad.tolist() == [1, 1]
