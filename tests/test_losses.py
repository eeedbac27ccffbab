"The focal loss agrees with the libraries where they coincide, and is finite, with its derivatives, everywhere."
from itertools import product

import pytest, torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from conftest import refused
from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.losses import (LOSSES, FocalLoss, class_weights, focal_loss,
    training_loss)

def inputs(fresh, dtype=torch.float64): return (torch.randn(50, 14, generator=fresh, dtype=dtype) * 5,
                                                (torch.rand(50, 14, generator=fresh) < .3).to(dtype))

@pytest.mark.parametrize('gamma', [0., .5, 2., 5.])
def test_torchvision_agrees(fresh, gamma):
    logits, targets = inputs(fresh)
    torch.testing.assert_close(focal_loss(logits, targets, gamma), sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma))

def test_the_limits_are_cross_entropy(fresh):
    logits, targets = inputs(fresh)
    weights = torch.rand(14, generator=fresh, dtype=torch.float64) * 7 + 1
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction='none')
    torch.testing.assert_close(focal_loss(logits, targets, 0.), plain)
    torch.testing.assert_close(focal_loss(logits, targets, 0., 0., torch.ones(14, dtype=torch.float64)), plain)
    torch.testing.assert_close(focal_loss(logits, targets, 0., class_weights=weights),
                               F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction='none'))
    smooth = targets * .9 + .05
    torch.testing.assert_close(focal_loss(logits, targets, 0., .1), F.binary_cross_entropy_with_logits(logits, smooth, reduction='none'))

@pytest.mark.parametrize('dtype, gamma, smoothing', list(product([torch.float32, torch.bfloat16, torch.float64], [0., .5, 1., 2., 5.], [0., .1])))
def test_loss_gradient_and_forward_derivative_are_finite_and_agree(fresh, dtype, gamma, smoothing):
    size = torch.tensor([1e4, 1e3, 100, 88, 30, 1, 1e-4, 0])
    logits = torch.cat([size, -size]).to(dtype)
    targets = (torch.rand(16, generator=fresh) < .5).to(dtype)
    loss = lambda z: focal_loss(z, targets, gamma, smoothing, torch.tensor(8.).to(dtype))
    value, forward = torch.func.jvp(loss, (logits,), (torch.ones_like(logits),))
    backward = torch.func.grad(lambda z: loss(z).sum())(logits)
    _, second = torch.func.jvp(torch.func.grad(lambda z: loss(z).sum()), (logits,), (torch.ones_like(logits),))
    assert value.isfinite().all() and forward.isfinite().all() and backward.isfinite().all() and second.isfinite().all()
    torch.testing.assert_close(forward, backward, rtol=.05 if dtype == torch.bfloat16 else 1e-4, atol=.02 if dtype == torch.bfloat16 else 1e-5)

@pytest.mark.parametrize('name', [name for name in LOSSES if name != 'softmax'])
def test_a_named_loss_is_made_again_from_its_settings(data, name, fresh):
    frame = data.frame
    loss = training_loss(name, frame)
    logits, targets = inputs(fresh, torch.float32)
    targets[3, 4] = float('nan')
    assert torch.equal(FocalLoss(**loss.settings())(logits, targets), loss(logits, targets)) and loss(logits, targets)[3, 4] == 0
    other = frame.assign(split=frame.split.replace({'test': 'unused'}), **{FINDINGS[0]: frame[FINDINGS[0]].where(frame.split == 'train', 1)})
    assert torch.equal(training_loss(name, other).class_weights, loss.class_weights) # only training labels count

def test_class_weights_balance_what_they_do_not_clamp(fresh):
    targets = (torch.rand(4000, 14, generator=fresh) < torch.linspace(.15, .45, 14)).float()
    weights = class_weights(targets)
    torch.testing.assert_close(weights * targets.sum(0), 4000 - targets.sum(0))
    assert class_weights(torch.zeros(10, 14)).tolist() == [8.] * 14 and class_weights(torch.ones(10, 14)).tolist() == [1.] * 14

def test_settings_that_make_no_sense(data):
    with refused('gamma is -1'): FocalLoss(gamma=-1)
    with refused('label_smoothing is 1'): FocalLoss(label_smoothing=1)
    with refused('hinge', 'weighted_bce'): training_loss('hinge', data.frame)
