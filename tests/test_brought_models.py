"Models and losses that people bring: every way of scoring gives the definition's number in float64, or all refuse in a sentence."
import warnings

import numpy as np
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint as recomputed

from conftest import refused, sentence
from cxr_influence.attribution import tracin
from cxr_influence.attribution.densenet import (densenet_directional_scores, fastest,
    watch_densenet)
from cxr_influence.attribution.layerwise import (gradient_scores, per_sample_gradients,
    self_influence)
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.scoring import influence, score_checkpoint, verify
from cxr_influence.attribution.tracin import (directional_scores, gradient, image_losses,
    plain_scores, vmap_gradients, _check_once, _full_precision)
from cxr_influence.evidence.valuations import gradient_norms
from cxr_influence.training.checkpoints import Checkpoint, list_checkpoints
from cxr_influence.training.losses import FocalLoss, focal_loss
from cxr_influence.training.networks import make_model

pytestmark = pytest.mark.filterwarnings('ignore') # of the slower ways and of PyTorch's own; a test below expects ours

def bce(z, y): return F.binary_cross_entropy_with_logits(z, y, reduction='none')
def net(norm=None, head=None): # a small network; `norm` and `head` replace its own
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm or nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         head or nn.Linear(8, 14))
def images(n=5, side=9):
    x, y = torch.randn(n, 3, side, side).double(), (torch.rand(n, 14) < .3).double()
    y[0, 0], y[-1, 0] = 0, 1 # all images alike would hide that a loss mixes them
    return x, y

# One backward pass an image, of the parameters that take steps

def reference(model, loss, x, y, v):
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = []
    for i in range(len(x)):
        value = loss(model(x[i:i+1].clone()), y[i:i+1]).sum()
        grads = torch.autograd.grad(value, list(own.values()), allow_unused=True, materialize_grads=True)
        found.append(torch.stack([sum((g.to_dense() * v[name]).sum() for g, name in zip(grads, own)),
                                  sum(g.to_dense().square().sum() for g in grads)]))
    return torch.stack(found).T # scores, squares

def dot(gradients, v): return sum((g * v[name]).flatten(1).sum(1) for name, g in gradients.items())
def one(v): return {name: direction[None] for name, direction in v.items()}
WAYS = {
    'definition': lambda *a: plain_scores(*a),
    'forward': lambda *a: directional_scores(*a)[0],
    'layers': lambda *a: gradient_scores(*a[:4], one(a[4])).products[:, 0],
    'per sample': lambda *a: dot(per_sample_gradients(*a[:4])[0], a[4]),
    'vmap': lambda *a: dot(vmap_gradients(*a[:4])[0], a[4]),
    'self-influence': lambda *a: self_influence(*a[:4]),
}

def near(found, expected):
    largest = float(expected.abs().nan_to_num().max())
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7 * largest + 1e-12, equal_nan=True)

def check_right(make, loss, x, y):
    "Every way gives the reference's scores, and leaves the model as it was."
    torch.seed()
    model = make()
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scores, squares = reference(model, loss, x, y, v)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, way in WAYS.items(): near(way(model, loss, x, y, v), squares if name == 'self-influence' else scores)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    near(reference(model, loss, x, y, v)[0], scores) # no hook and no attribute is left behind

def check_refused(make, loss, x, y, *words):
    "Every way refuses with the same sentence."
    torch.seed()
    said = set()
    for way in WAYS.values():
        model = make()
        v = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
        said.add(sentence(way, model, loss, x.clone(), y.clone(), v))
    assert len(said) == 1 and all(word in said.copy().pop() for word in words), said

class Net(nn.Module):
    "A network whose forward pass is a function of it."
    def __init__(self, forward, **parts):
        super().__init__()
        self.pass_on = forward
        for name, part in ({'net': net()} | parts).items(): setattr(self, name, part)
    def forward(self, x): return self.pass_on(self, x)

def changed(change, **settings):
    "A small network, changed."
    def make():
        model = net(**settings)
        return change(model) or model
    return make
def built(forward, **parts): return lambda: Net(forward, **{name: part() for name, part in parts.items()})
def between(function): return built(lambda self, x: self.net[1:](function(self.net[0](x))))

class Legacy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x.exp()
    @staticmethod
    def backward(ctx, d): return d * ctx.saved_tensors[0].exp()

class Rounded(torch.autograd.Function):
    "The gradient of another function than its value's: straight through."
    generate_vmap_rule = True
    @staticmethod
    def forward(x): return x.round()
    @staticmethod
    def setup_context(ctx, inputs, output): pass
    @staticmethod
    def backward(ctx, d): return d

class OtherForward(Rounded):
    "A forward derivative that is not that of the way back."
    @staticmethod
    def jvp(ctx, t): return torch.zeros_like(t)

class Coupled(Rounded):
    "A way back that mixes images, though the value does not."
    @staticmethod
    def forward(x): return x * 1.
    @staticmethod
    def backward(ctx, d): return d / d.norm()
    @staticmethod
    def jvp(ctx, t): return t

class Standardised(nn.Conv2d):
    def forward(self, x): return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, padding=1)

def freeze(model): [p.requires_grad_(False) for p in model[0].parameters()]
def override(model):
    conv = model[0]
    conv.forward = lambda x: F.conv2d(x, conv.weight * 2, conv.bias, padding=1)
def through(model, kept): model.__dict__['kept'] = [model.net[5].weight]; return model
def without_gradient(self, x):
    with torch.no_grad(): features = self.net[:5](x)
    return self.net[5](features)
def by_expert(self, x):
    chosen = (x.mean((1, 2, 3)) > 0).long()
    return torch.stack([self.experts[int(k)](row[None])[0] for row, k in zip(x.mean((2, 3)), chosen)])
def tokens(x): return (x[:, 0] * 3).round().long().clamp(-5, 5) + 5
def head(): return nn.Linear(8, 14)

RIGHT = {
    'frozen layers': changed(freeze), 'a frozen head': changed(lambda model: model[5].requires_grad_(False) and None),
    'pruned': changed(lambda model: prune.l1_unstructured(model[0], 'weight', .3) and None),
    'pruned for good': changed(lambda model: prune.remove(prune.l1_unstructured(model[0], 'weight', .3), 'weight') and None),
    'structured pruning of the head': changed(lambda model: prune.ln_structured(model[5], 'weight', .5, 2, 0) and None),
    'weight norm': changed(lambda model: parametrizations.weight_norm(model[0]) and None),
    'spectral norm': changed(lambda model: parametrizations.spectral_norm(model[0]) and None),
    'orthogonal': changed(lambda model: parametrizations.orthogonal(model[5]) and None),
    'weight norm of old': changed(lambda model: nn.utils.weight_norm(model[0]) and None),
    'spectral norm of old': changed(lambda model: nn.utils.spectral_norm(model[0]) and None),
    'GroupNorm': lambda: net(nn.GroupNorm(2, 8)), 'InstanceNorm': lambda: net(nn.InstanceNorm2d(8, affine=True)),
    'InstanceNorm that tracks': lambda: net(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    'BatchNorm1d': lambda: nn.Sequential(net(), nn.BatchNorm1d(14)),
    'PReLU': changed(lambda model: model.__setitem__(2, nn.PReLU())),
    'ConvTranspose2d': changed(lambda model: model.__setitem__(0, nn.ConvTranspose2d(3, 8, 3))),
    'a function of autograd': between(lambda h: Legacy.apply(h * .1)), 'straight through': between(lambda h: Rounded.apply(h * 3)),
    'straight through by detach': between(lambda h: h * 3 + ((h * 3).round() - h * 3).detach()),
    'another forward derivative': between(lambda h: OtherForward.apply(h * 3)), 'a way back that mixes': between(Coupled.apply),
    'through NumPy': between(lambda h: torch.from_numpy(h.detach().numpy())),
    'DataParallel': lambda: nn.DataParallel(net()), 'compiled': lambda: torch.compile(net(), backend='eager'),
    'traced by fx': lambda: torch.fx.symbolic_trace(net()), 'scripted': lambda: torch.jit.script(net()),
    'a layer called twice': built(lambda self, x: self.net(x) + self.net(-x)),
    'two crops in one batch': built(lambda self, x: self.net(torch.cat([x[..., :7, :7], x[..., 2:, 2:]])).view(2, len(x), -1).mean(0)),
    'a weight used beside its layer': built(lambda self, x: self.net(x) + self.net[5].weight.square().sum(1)),
    'a weight under another name': lambda: through(Net(lambda self, x: F.linear(self.net[:5](x), self.kept[0])), 'kept'),
    'a weight by .data': built(lambda self, x: F.linear(self.net[:5](x), self.net[5].weight.data, self.net[5].bias)),
    'features without gradient': built(without_gradient), 'a forward of its own': changed(override),
    'a standardised convolution': changed(lambda model: model.__setitem__(0, Standardised(3, 8, 3))),
    'a hook that doubles': changed(lambda model: model[0].register_forward_hook(lambda m, i, o: o * 2) and None),
    'a hook before': changed(lambda model: model[0].register_forward_pre_hook(lambda m, i: (i[0] * 2,)) and None),
    'a hook on the way back': changed(lambda model: model[2].register_full_backward_hook(lambda m, i, o: (i[0] * .5,)) and None),
    'a hook that wants gradients': changed(lambda model: model[0].register_forward_hook(lambda m, i, o: o.register_hook(lambda d: d * .5) and None) and None),
    'a layer called by keyword': built(lambda self, x: self.net[1:](self.net[0](input=x))),
    'recomputed': built(lambda self, x: self.net[1:](recomputed(self.net[0], x, use_reentrant=False))),
    'in place': built(lambda self, x: self.net[3:](self.net[1](self.net[0](x)).mul_(2).relu_())),
    'an idle layer': built(lambda self, x: self.net(x), idle=lambda: nn.Linear(3, 3)),
    'experts': built(by_expert, experts=lambda: nn.ModuleList([nn.Linear(3, 14), nn.Linear(3, 14)])),
    'bilinear': built(lambda self, x: self.both(self.net(x), self.net(x * .5)), both=lambda: nn.Bilinear(14, 14, 14)),
    'LSTM': built(lambda self, x: self.head(self.rnn(x[:, 0])[0][:, -1]), rnn=lambda: nn.LSTM(9, 8, batch_first=True), head=head),
    'GRU': built(lambda self, x: self.head(self.rnn(x[:, 0])[0][:, -1]), rnn=lambda: nn.GRU(9, 8, batch_first=True), head=head),
    'attention': built(lambda self, x: self.head(self.attend(*[self.up(x[:, 0])] * 3)[0].mean(1)), up=lambda: nn.Linear(9, 8),
                       attend=lambda: nn.MultiheadAttention(8, 2, batch_first=True), head=head),
    'an encoder': built(lambda self, x: self.head(self.encode(self.up(x[:, 0])).mean(1)), up=lambda: nn.Linear(9, 8),
                        encode=lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1), head=head),
    'embedding': built(lambda self, x: self.head(self.embed(tokens(x)).mean((1, 2))), embed=lambda: nn.Embedding(11, 8), head=head),
    'sparse embedding': built(lambda self, x: self.head(self.embed(tokens(x)).mean((1, 2))), embed=lambda: nn.Embedding(11, 8, sparse=True), head=head),
    'positions first': built(lambda self, x: self.head(self.up(x[:, 0].transpose(0, 1)).transpose(0, 1).mean(1)),
                             up=lambda: nn.Linear(9, 8), head=head),
}

@pytest.mark.parametrize('kind', RIGHT)
def test_a_model_of_any_kind_is_scored_right(kind):
    check_right(lambda: RIGHT[kind]().double().eval(), bce, *images())

@pytest.mark.parametrize('n', [1, 2, 4, 9]) # 4 images are tried first; 9 positions
def test_positions_are_not_taken_for_images(n):
    check_right(lambda: RIGHT['positions first']().double().eval(), bce, *images(n))

PACKED = {'tuple': (lambda z: (z, z.detach()), 0), 'dict': (lambda z: {'logits': z, 'mean': z.mean()}, 'logits'),
          'list': (lambda z: [None, z], 1), 'nested': (lambda z: ({'logits': z},), None)}

@pytest.mark.parametrize('kind', PACKED)
def test_outputs_that_the_loss_takes_apart(kind):
    pack, key = PACKED[kind]
    def loss(z, y): return bce(z[0]['logits'] if key is None else z[key], y)
    make = lambda: Net(lambda self, x: pack(self.net(x))).double().eval()
    check_right(make, loss, *images())
    check_refused(make, bce, *images(), 'The loss fails on what the model gives')

# What mixes images, is random, or keeps a state

def carried(self, x):
    z = self.net(x) + self.state.mean()
    self.state = z.detach()
    return z
def counted(self, x):
    self.calls += 1
    return self.net(x) * (1 + .1 * self.calls)
def cropped(self, x):
    i = int(torch.randint(0, 4, ()))
    return self.net(x[..., i:i+5, i:i+5])
def cropped_by_numpy(self, x): return self.net(x * np.random.rand())
def across(z): return (z @ z.mT).softmax(1) @ z

MIXING = {
    'BatchNorm without statistics': lambda: net(nn.BatchNorm2d(8, track_running_stats=False)),
    'statistics taken away': lambda: net(nn.BatchNorm2d(8)).apply(lambda m: isinstance(m, nn.BatchNorm2d) and vars(m).update(
        _buffers={'running_mean': None, 'running_var': None, 'num_batches_tracked': None})),
    'statistics by hand': between(lambda h: (h - h.mean((0, 2, 3), keepdim=True)) / h.std((0, 2, 3), keepdim=True)),
    'divided by the largest of the batch': built(lambda self, x: self.net(x / x.abs().amax())),
    'sorted': built(lambda self, x: self.net(x[x.mean((1, 2, 3)).argsort()])),
    'ranked': built(lambda self, x: self.net(x) + .1 * x.mean((1, 2, 3)).argsort().argsort()[:, None]),
    'attention over the batch': built(lambda self, x: across(self.net(x))),
    'attention with the batch second': built(lambda self, x: self.head(self.attend(*[self.up(x[:, 0])] * 3)[0].mean(1)),
                                             up=lambda: nn.Linear(9, 8), attend=lambda: nn.MultiheadAttention(8, 2), head=head),
    'neighbours in the batch': built(lambda self, x: self.net(x + .1 * x.roll(1, 0))),
    'mixed by halves': built(lambda self, x: self.net((x + x.flip(0)) / 2)),
    'quantised by the batch': lambda: torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear}, dtype=torch.qint8),
    'a counter': built(counted, calls=lambda: 0), 'a state carried on': built(carried, state=lambda: torch.zeros(1)),
    'NumPy\'s random numbers': built(cropped_by_numpy),
}
RANDOM = {'dropout left on': built(lambda self, x: F.dropout(self.net(x))),
          'rare dropout': between(lambda h: F.dropout(h, 1e-6)), 'a random crop': built(cropped),
          'noise': built(lambda self, x: self.net(x + torch.randn_like(x)))}

@pytest.mark.parametrize('kind', MIXING)
def test_a_model_that_mixes_images_is_refused(kind):
    x, y = images(6)
    x[0] += 1 # not in order by chance
    if kind == 'quantised by the batch': return check_refused(lambda: MIXING[kind]().eval(), bce, x.float(), y.float(), 'alone than in its batch')
    check_refused(lambda: MIXING[kind]().double().eval(), bce, x, y, 'alone than in its batch')

@pytest.mark.parametrize('kind', RANDOM)
@pytest.mark.parametrize('n', [1, 5])
def test_a_model_that_is_random_is_refused(kind, n):
    check_refused(lambda: RANDOM[kind]().double().eval(), bce, *images(n), 'random', 'training=self.training')

class Stateful(nn.Module):
    "A loss that grows at every call."
    def __init__(self): super().__init__(); self.calls = 0
    def forward(self, z, y): self.calls += 1; return bce(z, y) * self.calls

def supervised_contrast(z, y): # of images with the same findings
    near = F.normalize(z, dim=1) @ F.normalize(z, dim=1).mT
    same = (y[:, None] == y).all(2).to(z)
    return (near.exp() @ same.mT).diagonal().log() - near.exp().sum(1).log()
def smoothed_in_place(z, y): return bce(z, y.mul_(.9).add_(.05))
def hardest(z, y): # of the batch
    values = bce(z, y).sum(1)
    return values * (values >= values.max())
def mixup(z, y): return bce(z, .7 * y + .3 * y.roll(1, 0))
def focal_alpha(z, y): return bce(z, y) * torch.where(y == 1, 1 - y.mean(), y.mean())

MIXING_LOSSES = {
    'divided by the positives': lambda z, y: bce(z, y) / y.sum().clamp(min=1), 'weighted by the batch': focal_alpha,
    'standardised': lambda z, y: (lambda values: (values - values.mean(0)) / (values.std(0) + 1))(bce(z, y)),
    'the mean, repeated': lambda z, y: bce(z, y).mean().expand(len(y)), 'contrast': supervised_contrast, 'mixup': mixup,
    'the hardest image': hardest, 'a softmax over the batch': lambda z, y: -(z.log_softmax(0) * y).sum(1),
    'a mean over the batch': lambda z, y: bce(z, y).sum(1) + z.mean(), 'all pairs': lambda z, y: (z[:, None] - y[None]).square().sum(2),
    'findings first': lambda z, y: bce(z, y).mT if len(z) == 14 else bce(z, y), 'a state': Stateful(),
    'targets of the batch by findings': lambda z, y: by_hand(z, y[:, 0]),
}

@pytest.mark.parametrize('kind', [kind for kind in MIXING_LOSSES if 'findings' not in kind])
def test_a_loss_that_mixes_images_is_refused(kind):
    check_refused(lambda: net().double().eval(), MIXING_LOSSES[kind], *images(7), 'alone than in its batch')

@pytest.mark.parametrize('kind', ['findings first', 'targets of the batch by findings'])
def test_as_many_images_as_findings(kind):
    check_refused(lambda: net().double().eval(), MIXING_LOSSES[kind], *images(14), 'alone than in its batch')

def by_hand(z, t): return -(t * F.logsigmoid(z) + (1 - t) * F.logsigmoid(-z))

def test_shapes_are_equal_and_never_broadcast():
    x, y = images(6)
    single = lambda: net(head=nn.Linear(8, 1)).double().eval()
    check_refused(single, by_hand, x, y[:, 0], 'alone than in its batch') # (6, 1) and (6,): all pairs
    check_refused(single, by_hand, x, y, '(6, 1)', '(6, 14)')
    check_refused(lambda: net().double().eval(), by_hand, x, y[:, :1], '(6, 14)', '(6, 1)')
    check_refused(single, bce, x, y[:, 0], 'The loss fails on what the model gives', 'must be the same')
    check_refused(single, FocalLoss(), x, y, '(6, 1)', '(6, 14)')
    check_right(single, by_hand, x, y[:, :1])
    check_right(single, lambda z, t: by_hand(z.squeeze(1), t), x, y[:, 0])
    for shape in [(8, 1), (8,), (14,), (1, 14), (8, 13)]:
        with refused('(8, 14)', 'shape'): FocalLoss()(torch.zeros(shape), torch.zeros(8, 14))
        with refused('(8, 14)', 'shape'): focal_loss(torch.zeros(8, 14), torch.zeros(shape))
    with refused('14 class weights', '(8, 3)'): FocalLoss(class_weights=torch.ones(14))(torch.zeros(8, 3), torch.zeros(8, 3))

@pytest.mark.parametrize('loss, word', [
    (nn.BCEWithLogitsLoss(), 'one number per image'), (nn.BCEWithLogitsLoss(reduction='sum'), 'one number per image'),
    (lambda z, y: bce(z, y).mean(0), 'one number per image'), (lambda z, y: bce(z, y).sum(1).tolist(), 'gives a list'),
    (lambda z, y: (z > 0) == (y > 0), 'torch.bool'), (lambda z, y: None, 'NoneType'), (lambda z, y: 1 / 0, 'division by zero'),
    (lambda z, y: bce(z, y).half(), 'too coarse'), (lambda z, y: bce(z.detach(), y), 'no parameter'), (smoothed_in_place, 'overwrites')])
def test_what_is_not_a_loss_of_each_image_is_refused(loss, word):
    check_refused(lambda: net().double().eval(), loss, *images(), word)

def autocast(self, x):
    with torch.autocast('cpu', dtype=torch.bfloat16): return self.net(x)

@pytest.mark.parametrize('make, change, words', [
    (lambda: net().double(), lambda x, y: (x, y), 'model.eval()'),
    (lambda: nn.Sequential(net(), nn.Dropout()).double().apply(lambda m: setattr(m, 'training', isinstance(m, nn.Dropout))), lambda x, y: (x, y), 'model.eval()'),
    (lambda: net().eval(), lambda x, y: (x, y), 'The model fails on these images'),
    (lambda: net().half().eval(), lambda x, y: (x.half(), y.half()), 'too coarse for gradients'),
    (lambda: net().bfloat16().eval(), lambda x, y: (x, y), 'too coarse for gradients'),
    (lambda: nn.Sequential(net()[:5], nn.Linear(8, 14).bfloat16()).eval(), lambda x, y: (x.float(), y.float()), '1.weight is torch.bfloat16'),
    (lambda: Net(autocast).eval(), lambda x, y: (x.float(), y.float()), 'too coarse for gradients'),
    (lambda: Net(lambda self, x: autocast(self, x).float()).eval(), lambda x, y: (x.float(), y.float()), 'too coarse for gradients'),
    (lambda: net().to('meta').eval(), lambda x, y: (x, y), 'load the weights'),
    (lambda: net().double().eval(), lambda x, y: (x.to('meta'), y), 'fail'),
    (lambda: net(head=nn.Linear(9, 14)).double().eval(), lambda x, y: (x, y), 'The model fails on these images'),
    (lambda: net().double().eval(), lambda x, y: (x[:, :1], y), 'to have 3 channels'),
    (lambda: net().double().eval(), lambda x, y: (x, y[:3]), '5 images have 3 targets'),
    (lambda: net().double().eval(), lambda x, y: (x[:0], y[:0]), '0 images'),
    (lambda: net().double().eval().requires_grad_(False), lambda x, y: (x, y), 'None of the parameters takes steps'),
    (lambda: Net(lambda self, x: self.net(x).detach()).double().eval(), lambda x, y: (x, y), 'no parameter that takes steps'),
    (lambda: Net(lambda self, x: self.net(x.sub_(.1))).double().eval(), lambda x, y: (x, y), 'overwrites its input')])
def test_what_cannot_be_scored_is_refused_by_every_way_alike(make, change, words):
    check_refused(make, bce, *change(*images()), words)

def test_what_is_no_tensor_is_refused():
    x, y = images()
    model = net().double().eval()
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for way in WAYS.values():
        with refused('images are a ndarray'): way(model, bce, x.numpy(), y, v)
        with refused('targets are a dict'): way(model, bce, x, {'y': y}, v)
    with refused('torch.nn.Module'): image_losses(lambda x: x, bce, x, y)

def test_a_direction_of_another_network_is_refused():
    x, y = images()
    model, other = net().double().eval(), nn.DataParallel(net())
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name in 'definition', 'forward', 'layers':
        with refused('no parameter module.0.bias', '0.weight'): WAYS[name](model, bce, x, y, {n: p for n, p in other.named_parameters()})
        with refused('2, 8)', '0.bias', '(8,)'): WAYS[name](model, bce, x, y, v | {'0.bias': torch.zeros(2, 8)})
        near(WAYS[name](model, bce, x, y, {'0.bias': v['0.bias'].float()}), # in the model's precision
             reference(model, bce, x, y, {n: t * (n == '0.bias') for n, t in (v | {'0.bias': v['0.bias'].float().double()}).items()})[0])

def test_frozen_parameters_do_not_count_and_others_are_named():
    x, y = images()
    model = changed(freeze)().double().eval()
    found = gradient(model, image_losses(model, bce, x, y).mean())
    assert [*found] == [name for name, p in model.named_parameters() if p.requires_grad] and '0.weight' not in found
    assert gradient(model, image_losses(model, bce, x, y).mean(), '5.bias').keys() == {'5.bias'}
    near(found['5.bias'], torch.autograd.grad(bce(model(x), y).sum(1).mean(), model[5].bias)[0])
    assert '0.weight' not in vmap_gradients(model, bce, x, y)[0] and '0.weight' not in per_sample_gradients(model, bce, x, y)[0]
    with refused('None of the parameters takes steps'): gradient(model, image_losses(model, bce, x, y).mean(), ['0.weight'])
    with refused('no parameter 6.weight'): gradient(model, image_losses(model, bce, x, y).mean(), ['6.weight'])
    with refused('depends on no parameter'): gradient(model, image_losses(model, bce, x, y).mean().detach())
    with refused('The gradient cannot be computed'): gradient(model, image_losses(model, bce, x, y))

# Several classes, one an image

def by_class(z, c): return F.cross_entropy(z, c, reduction='none')
CLASSES = {'integers': lambda c, n: c, 'one-hot': lambda c, n: F.one_hot(c, n).double(),
           'shares': lambda c, n: F.one_hot(c, n).double() * .8 + .2 / n}

@pytest.mark.parametrize('targets', CLASSES)
@pytest.mark.parametrize('loss', [by_class, nn.CrossEntropyLoss(reduction='none', label_smoothing=.1),
                                  nn.CrossEntropyLoss(reduction='none', weight=torch.arange(1., 6).double())])
def test_softmax_over_classes(targets, loss):
    x, _ = images()
    check_right(lambda: net(head=nn.Linear(8, 5)).double().eval(), loss, x, CLASSES[targets](torch.randint(0, 5, (len(x),)), 5))

def test_softmax_refuses_what_is_no_class():
    x, y = images()
    def make(): return net(head=nn.Linear(8, 5)).double().eval()
    check_refused(make, by_class, x, torch.full((5,), 7), 'The loss fails', 'out of bounds')
    check_refused(make, by_class, x, y, 'The loss fails')
    check_refused(make, nn.CrossEntropyLoss(), x, torch.randint(0, 5, (5,)), 'one number per image')

def test_softmax_in_the_passes_written_for_densenet():
    torch.seed()
    model, (x, _) = make_model('densenet_small').double().eval(), images(4, 40)
    assert fastest(model) == (densenet_directional_scores, watch_densenet)
    y, v = torch.randint(0, 14, (4,)), {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scores, squares = reference(model, by_class, x, y, v)
    near(densenet_directional_scores(model, by_class, x, y, v)[0], scores)
    near(gradient_scores(model, by_class, x, y, one(v), watch_densenet).products[:, 0], scores)
    near(self_influence(model, by_class, x, y, watch=watch_densenet), squares)

# The passes for DenseNet, and the doors of a run

def test_the_passes_written_for_densenet_refuse_and_freeze_alike():
    torch.seed()
    model, (x, y) = make_model('densenet_small').double().eval(), images(4, 40)
    model.features.conv0.requires_grad_(False)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scores, squares = reference(model, bce, x, y, v)
    near(densenet_directional_scores(model, bce, x, y, v)[0], scores)
    near(gradient_scores(model, bce, x, y, one(v), watch_densenet).products[:, 0], scores)
    near(self_influence(model, bce, x, y, watch=watch_densenet), squares)
    for loss in [MIXING_LOSSES['divided by the positives'], mixup]:
        with refused('alone than in its batch'): densenet_directional_scores(model, loss, x, torch.ones_like(y).tril(), v)
        with refused('alone than in its batch'): watch_densenet(model, loss, x, torch.ones_like(y).tril(), list(v), None)

@pytest.mark.parametrize('loss', [MIXING_LOSSES['divided by the positives'], Stateful()], ids=['positives', 'state'])
def test_a_run_with_a_loss_that_mixes_images_is_refused_at_every_door(data, checkpoints, tmp_path, monkeypatch, loss):
    first = list_checkpoints(checkpoints)[0]
    scores = score_checkpoint(first, data, tmp_path / 'right.csv', device='cpu')
    monkeypatch.setattr(Checkpoint, 'loss', lambda self: Named(loss))
    for door in [lambda out: influence(checkpoints, data, out, device='cpu'),
                 lambda out: influence(checkpoints, data, out, per_finding=False, device='cpu'),
                 lambda out: score_checkpoint(first, data, out, device='cpu'), lambda out: pairwise(checkpoints, data, out, device='cpu'),
                 lambda out: gradient_norms(checkpoints, data, out.with_suffix(''), device='cpu')]:
        with refused('alone than in its batch'): door(tmp_path / 'wrong.csv')
    with refused('alone than in its batch'): verify(first, scores, data)

class Named(nn.Module):
    def __init__(self, loss): super().__init__(); self.loss = loss
    def forward(self, z, y): return self.loss(z, y)

def test_a_loop_is_checked_once_and_a_call_by_itself_each_time(data, checkpoints, tmp_path, monkeypatch):
    seen, real = [], tracin._compare_alone
    monkeypatch.setattr(tracin, '_compare_alone', lambda *given: seen.append(given) or real(*given))
    score_checkpoint(list_checkpoints(checkpoints)[0], data, tmp_path / 'scores.csv', batch_size=4, device='cpu')
    assert len(seen) == 2 # of the validation and of the training images
    model, (x, y) = net().double().eval(), images()
    for _ in range(2): self_influence(model, bce, x, y)
    assert len(seen) == 4
    with _check_once():
        for _ in range(2): self_influence(model, bce, x, y)
    assert len(seen) == 5
    model[1] = nn.BatchNorm2d(8, track_running_stats=False).double().eval() # changed between two calls
    with refused('alone than in its batch'): self_influence(model, bce, x, y)

def test_the_slower_ways_warn():
    torch.seed()
    x, y = images()
    def warned(way, model):
        model = model.double().eval()
        v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            WAYS[way](model, bce, x, y, v)
        return ' '.join(str(one.message) for one in found if 'takes more' in str(one.message) or 'take more' in str(one.message))
    assert 'backward pass of its own' in warned('forward', RIGHT['a weight under another name']())
    assert 'another score' in warned('vmap', RIGHT['a weight under another name']())
    assert 'a Conv2d that is not known' in warned('layers', RIGHT['pruned']()) and 'another score' in warned('layers', RIGHT['a hook that doubles']())
    for way in WAYS: assert not warned(way, net())

def test_unknown_labels_and_images_without_a_gradient_are_scored():
    x, y = images(6)
    y[0], y[3, 2:] = float('nan'), float('nan')
    check_right(lambda: net().double().eval(), FocalLoss(), x, y) # the first image has no gradient
    check_right(lambda: net().double().eval(), FocalLoss(), x[:1], y[:1])

def test_random_numbers_are_left_as_they_were():
    model, (x, y) = net().double().eval(), images()
    v, state = {name: torch.randn_like(p) for name, p in model.named_parameters()}, torch.get_rng_state()
    for way in WAYS.values(): way(model, bce, x, y, v)
    assert torch.equal(torch.get_rng_state(), state)
    with _full_precision(): assert torch.get_float32_matmul_precision() == 'highest'
