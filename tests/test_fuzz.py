"""Models, losses and batch sizes drawn from the kinds that people bring: the score is that of one backward pass
an image in float64, or an `InputError`; nothing else, and all ways alike."""
import os

import numpy as np
import pandas as pd
import pytest, torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from test_brought_models import (Coupled, Legacy, Net, OtherForward, Rounded, Standardised, MIXING_LOSSES, WAYS, Stateful,
    across, by_hand, bce, near, reference, smoothed_in_place)
from cxr_influence.data.files import InputError
from cxr_influence.attribution.scoring import query_losses
from cxr_influence.training.losses import FocalLoss, SoftmaxLoss

pytestmark = pytest.mark.filterwarnings('ignore')
MANY = int(os.environ.get('FUZZ', 1)) # times as many examples, by hand
quick = settings(deadline=None, max_examples=500 * MANY, suppress_health_check=[*HealthCheck])

# A network: convolution, norm, activation, pool and head, each drawn, then something done to it

FIRST = [lambda: nn.Conv2d(3, 8, 3, padding=1), lambda: nn.Conv2d(3, 8, 3, stride=2), lambda: nn.Conv2d(3, 8, 3, padding='same'),
         lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode='circular'), lambda: nn.ConvTranspose2d(3, 8, 3), lambda: Standardised(3, 8, 3),
         lambda: nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 3, groups=2, dilation=2, padding=2)),
         lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), lambda: parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)),
         lambda: prune.random_unstructured(nn.Conv2d(3, 8, 3), 'weight', .4)]
NORM = [lambda: nn.BatchNorm2d(8), lambda: nn.Identity(), lambda: nn.GroupNorm(4, 8), lambda: nn.InstanceNorm2d(8, affine=True),
        lambda: nn.BatchNorm2d(8, affine=False), lambda: nn.LocalResponseNorm(3), lambda: nn.Dropout2d(.5)]
MIXING_NORM = lambda: nn.BatchNorm2d(8, track_running_stats=False)
ACTIVATION = [lambda: nn.ReLU(inplace=True), lambda: nn.ReLU(), lambda: nn.PReLU(8), lambda: nn.GELU(), lambda: nn.RReLU(), lambda: nn.Hardswish(inplace=True)]

class Function(nn.Module):
    def __init__(self, function): super().__init__(); self.function = function
    def forward(self, x): return self.function(x)

BETWEEN = [lambda h: h, lambda h: h, lambda h: Legacy.apply(h * .1), lambda h: Rounded.apply(h * 3), lambda h: OtherForward.apply(h * 3),
           Coupled.apply, lambda h: h.clone().mul_(2).add_(.1), lambda h: h + (h.round() - h).detach(), lambda h: h.detach(),
           lambda h: h.requires_grad_() if h.is_leaf else h]
MIXING_BETWEEN = [F.dropout, lambda h: h + torch.randn_like(h), lambda h: h - h.mean(0), lambda h: h / h.abs().amax(), lambda h: h.sort(0)[0],
                  lambda h: h.cumsum(0), lambda h: h.roll(1, 0), lambda h: h * np.random.rand(), lambda h: h + h.mean(0).detach()]
TWISTS = {
    'none': lambda m: m, 'frozen first': lambda m: m[0].requires_grad_(False) and m, 'frozen last': lambda m: m[-1].requires_grad_(False) and m,
    'all frozen': lambda m: m.requires_grad_(False), 'twice': lambda m: Net(lambda self, x: self.net(x) + self.net(x.flip(3)), net=m),
    'idle': lambda m: Net(lambda self, x: self.net(x), net=m, idle=nn.LayerNorm(3)), 'parallel': lambda m: nn.DataParallel(m),
    'half': lambda m: m.half(), 'half of it': lambda m: m.append(nn.Identity()) and (m[-2].bfloat16() and m),
    'features without gradient': lambda m: Net(features_alone, net=m), 'used beside': lambda m: Net(beside, net=m),
    'hooked': lambda m: m[0].register_forward_hook(lambda _, i, o: o * 1.5) and m, 'hook before': lambda m: m[-1].register_forward_pre_hook(lambda _, i: (i[0] + 1,)) and m,
    'pruned head': lambda m: m if isinstance(m[-1], nn.Sequential) else m.append(prune.l1_unstructured(m.pop(-1), 'weight', .5)),
    'training': lambda m: m.train(), 'in place': lambda m: Net(lambda self, x: self.net(x.mul_(.5)), net=m),
    'halved': lambda m: Net(lambda self, x: (self.net(x[:, :, :5]) + self.net(x)) / 2, net=m),
    'image by image': lambda m: Net(lambda self, x: torch.cat([self.net(row[None]) for row in x]), net=m),
    'by halves of the batch': lambda m: Net(lambda self, x: torch.cat([self.net(part) for part in x.chunk(2)]), net=m),
    'across the batch': lambda m: Net(lambda self, x: across(self.net(x)), net=m), 'tied': lambda m: tie(Net(tied, net=m, up=nn.Linear(8, 8), down=nn.Linear(8, 8))),
}
def features_alone(self, x):
    with torch.no_grad(): features = self.net[:-1](x)
    return self.net[-1](features)
def beside(self, x): return self.net(x) + sum(p.square().sum() for p in self.net[-1].parameters())
def tie(model): model.down.weight = model.up.weight; return model
def tied(self, x): return self.net[-1](self.down(self.up(self.net[:-1](x)).relu()))

def sums(z, y): return bce(z, y).sum(1)
def with_penalty(z, y): return bce(z, y).sum(1) + .1 * z.square().sum(1)
def hinge(z, y): return (1 - (2 * y - 1) * z).clamp(min=0)
LOSSES = [bce, sums, with_penalty, hinge, by_hand, FocalLoss(), FocalLoss(gamma=0.), SoftmaxLoss(),
          SoftmaxLoss(.2, torch.arange(1., 15)), lambda z, y: F.huber_loss(z, y, reduction='none'),
          lambda z, y: F.cross_entropy(z, y / y.sum(1, keepdim=True).clamp(min=1), reduction='none'),
          lambda z, y: F.cross_entropy(z, y.argmax(1), reduction='none'), lambda z, y: bce(z, y)[:, :, None],
          lambda z, y: F.poisson_nll_loss(z.clamp(max=5), y, reduction='none')]
OTHER_LOSSES = [*(loss for kind, loss in MIXING_LOSSES.items() if kind != 'a state'), nn.BCEWithLogitsLoss(), smoothed_in_place,
                lambda z, y: bce(z.detach(), y), lambda z, y: bce(z, y).half(), lambda z, y: bce(F.dropout(z), y), lambda z, y: bce(z, y[:, :1]),
                lambda z, y: by_hand(z, y[:, 0]), lambda z, y: by_hand(z[:, 0:1], y[:, 0]), lambda z, y: z > 0, lambda z, y: sums(z, y).tolist()]
PACKS = [lambda z: z, lambda z: z, lambda z: z, lambda z: (z, z.mean()), lambda z: {'logits': z, 'loss': z.sum()}]
def unpacked(z): return z[0] if isinstance(z, tuple) else z['logits'] if isinstance(z, dict) else z

odd = st.integers(0, 5).map(lambda k: k == 0) # one in six
@st.composite
def cases(draw):
    "A network, its loss, images and targets, all made from one seed."
    seed, n, side = draw(st.integers(0, 2**20)), draw(st.integers(1, 17)), draw(st.integers(6, 11))
    first, norm, act = draw(st.sampled_from(FIRST)), MIXING_NORM if draw(odd) else draw(st.sampled_from(NORM)), draw(st.sampled_from(ACTIVATION))
    between = draw(st.sampled_from(MIXING_BETWEEN if draw(odd) else BETWEEN))
    twist, pack = draw(st.sampled_from([*TWISTS])), draw(st.sampled_from(PACKS))
    loss = Stateful() if draw(odd) and draw(odd) else draw(st.sampled_from(OTHER_LOSSES if draw(odd) else LOSSES))
    head = draw(st.sampled_from([lambda: nn.Linear(8, 14), lambda: nn.Sequential(nn.Linear(8, 9), nn.LayerNorm(9), nn.Linear(9, 14))]))
    note(f'{n} images, {first()}, {norm()}, {act()}, {(BETWEEN + MIXING_BETWEEN).index(between)}, {twist}, pack {PACKS.index(pack)}, loss {(LOSSES + OTHER_LOSSES).index(loss) if not isinstance(loss, Stateful) else loss}')
    def make():
        torch.manual_seed(seed)
        body = nn.Sequential(first(), norm(), act(), Function(between), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head()).double().eval()
        for module in body.modules():
            if getattr(module, 'running_var', None) is not None: module.running_var.uniform_(.5, 2)
        model = TWISTS[twist](body)
        if twist not in ('training', 'half', 'half of it'): model = model.double().eval()
        if twist == 'half of it' or pack is PACKS[0]: return model
        return Net(lambda self, x: pack(self.net(x)), net=model).train(model.training)
    torch.manual_seed(seed + 1)
    x, y = torch.randn(n, 3, side, side).double(), (torch.rand(n, 14) < .3).double()
    taken = loss if pack is PACKS[0] or draw(odd) else lambda z, t: loss(unpacked(z), t)
    return make, taken, (x.half() if twist == 'half' else x), (y.half() if twist == 'half' else y)

def outcomes(make, loss, x, y):
    "What each way gives: scores, or an `InputError`; anything else fails."
    found = {}
    for name, way in WAYS.items():
        model = make()
        g = torch.Generator().manual_seed(1)
        v = {name: torch.randn(p.shape, generator=g, dtype=torch.float64) for name, p in model.named_parameters()}
        try: found[name] = way(model, loss, x.clone(), y.clone(), v)
        except InputError as error:
            assert '\n' not in str(error)
            found[name] = error
    return found, v

@quick
@given(cases())
def test_a_score_is_right_or_refused(case):
    make, loss, x, y = case
    found, v = outcomes(make, loss, x, y)
    refusals = [name for name, one in found.items() if isinstance(one, InputError)]
    assert refusals in ([], [*WAYS]), {name: str(found[name]) for name in refusals}
    if refusals: return
    scores, squares = reference(make(), loss, x, y, v)
    for name, one in found.items(): near(one, squares if name == 'self-influence' else scores)

# Groups of target images, in the forms that people bring

ENDINGS = [lambda name: name, lambda name: name.removesuffix('.png'), lambda name: f' {name} ', lambda name: f'images/{name}', lambda name: f'images\\{name}',
           lambda name: name.replace('.png', '.jpg')]
NAMED = [list, tuple, np.array, pd.Index, iter, lambda names: pd.Series(names, dtype=object), lambda names: pd.DataFrame(index=names),
         lambda names: pd.Series(names, index=[f'row {i}' for i in range(len(names))], dtype=object), lambda names: dict.fromkeys(names).keys()]
MASKED = [list, np.array, lambda mask: pd.Series(mask), lambda mask: pd.Series(mask, dtype='boolean'), lambda mask: pd.Series(mask, dtype=object)]

@st.composite
def groups(draw):
    "A frame, a group of its validation images, and how often each is in it; None where it must be refused."
    splits = draw(st.lists(st.sampled_from(['validation', 'validation', 'train', 'test']), min_size=2, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    numbers = rng.permutation(len(splits)) if draw(odd) else np.arange(len(splits))
    frame = pd.DataFrame({'split': splits, 'a': 0., 'b': 1.}, [f'{i:04d}.png' for i in numbers])
    frame.attrs['findings'] = ['a', 'b']
    named = frame.index[frame.split == 'validation']
    if not len(named): return frame, ['x'], None
    form = draw(st.sampled_from(['names', 'names', 'one', 'set', 'mask', 'mask of all', 'mask by name']))
    if form in ('names', 'one', 'set'):
        names = list(rng.choice(named, int(rng.integers(1, 2 * len(named) + 1)))) if form == 'names' else list(rng.choice(named, 1)) if form == 'one' else sorted({*rng.choice(named, 3)})
        wrong = draw(odd)
        if wrong: names[int(rng.integers(len(names)))] = rng.choice([*frame.index.difference(named), 'nobody.png', ''])
        if draw(odd): names, wrong = [], True
        counts = None if wrong else pd.Series(names).value_counts()
        write = draw(st.sampled_from(ENDINGS))
        names = [write(str(name)) for name in names]
        if form == 'one': return frame, (names or [''])[0], counts
        if form == 'set': return frame, draw(st.sampled_from([set, frozenset]))(names), counts
        make = draw(st.sampled_from(NAMED))
        if make is NAMED[-1] and counts is not None: counts = counts.clip(upper=1) # keys are there once
        return frame, make(names), counts
    of = named if form == 'mask' else frame.index
    marked = rng.random(len(of)) < draw(st.sampled_from([0., .3, 1.]))
    chosen = of[marked].intersection(named)
    counts = pd.Series(1, chosen) if len(chosen) else None
    note(f'{form}, {marked}')
    if form == 'mask by name':
        order = rng.permutation(len(of))
        if draw(odd) and draw(odd): return frame, pd.Series([True], ['nobody.png']), None
        return frame, pd.Series(marked, of).iloc[order], counts
    if draw(odd) and len({len(named), len(frame)} & {len(of) + 1}) == 0: return frame, [*marked, True], None # of another length
    return frame, draw(st.sampled_from(MASKED))(marked.tolist()), counts

@pytest.mark.long
@settings(deadline=None, max_examples=400 * MANY, suppress_health_check=[*HealthCheck])
@given(groups())
def test_a_group_weighs_its_images_or_is_refused(case):
    frame, group, counts = case
    try: found = query_losses(frame, False, {'own': group})
    except InputError as error:
        assert counts is None and '\n' not in str(error), f'{error} {frame} {counts}'
        return
    named = frame.index[frame.split == 'validation']
    assert counts is not None, (frame, group)
    right = counts.reindex(named, fill_value=0).to_numpy() / counts.sum()
    np.testing.assert_allclose(found['influence_own'], np.repeat(right[:, None], 2, axis=1), atol=1e-12)
    np.testing.assert_allclose(found['influence'], np.full((len(named), 2), 1 / len(named)))
