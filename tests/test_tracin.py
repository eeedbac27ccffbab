"The laws that scores must obey, on fresh random networks and inputs in float64; and captum's word for them."
import numpy as np
import pandas as pd
import psutil, pytest, torch, torchvision
from torch import nn

from cxr_influence.training.losses import FocalLoss
from cxr_influence.attribution import layerwise
from cxr_influence.data.files import InputError
from cxr_influence.attribution.layerwise import (UnknownLayer, gradient_scores, _known_layers,
    per_sample_gradients, self_influence)
from cxr_influence.attribution.tracin import (directional_scores, gradient, image_losses,
    plain_scores, vmap_gradients)

pytestmark = pytest.mark.filterwarnings('ignore:.*formed by vmap') # of the transformer; its own test is below

def densenet(): return torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=14)
class Narrow(torchvision.models.ResNet):
    "ResNet-18 with an eighth of the channels after its first convolution."
    def _make_layer(self, block, planes, *given, **settings): return super()._make_layer(block, planes//8, *given, **settings)
def resnet():
    model = Narrow(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])
    model.fc = nn.Linear(64, 14)
    return model
def transformer():
    return torchvision.models.VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16,
                                                mlp_dim=24, num_classes=14)

@pytest.fixture(params=[densenet, resnet, transformer], ids=lambda make: make.__name__)
def case(request):
    "A random network whose running statistics are not at their start, a loss, and random images."
    torch.seed()
    model = request.param().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=.1); nn.init.uniform_(module.running_var, .5, 2)
            nn.init.uniform_(module.weight, .5, 1.5); nn.init.normal_(module.bias, std=.1)
    loss = FocalLoss(gamma=float(torch.rand(()) * 3), class_weights=torch.rand(14) * 7 + 1)
    def images(n): return torch.randn(n, 3, 32, 32).double(), (torch.rand(n, 14) < .2).double()
    return model.eval(), loss, images

def close(a, b): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))

def whole(model, loss, x, y): return gradient(model, image_losses(model, loss, x, y).mean())
def by_finding(model, loss, x, y):
    parts = [gradient(model, part) for part in loss(model(x), y).mean(0)]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

def test_both_fast_ways_are_the_plain_one(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(6), images(5)
    plain = plain_scores(model, loss, x, y, whole(model, loss, x_val, y_val))
    close(directional_scores(model, loss, x, y, whole(model, loss, x_val, y_val))[0], plain)
    scores, squares, losses, layers = gradient_scores(model, loss, x, y, by_finding(model, loss, x_val, y_val))
    close(scores.sum(1), plain)
    close(sum(layers.values()), scores)
    close(losses, image_losses(model, loss, x, y).detach())
    own = [gradient(model, image_losses(model, loss, x[i:i+1], y[i:i+1]).sum()) for i in range(6)]
    close(squares, torch.stack([sum(g.square().sum() for g in one.values()) for one in own]))
    close(self_influence(model, loss, x, y), squares)
    for way in per_sample_gradients, vmap_gradients:
        found, losses = way(model, loss, x, y)
        for name in own[0]: torch.testing.assert_close(found[name], torch.stack([one[name] for one in own]), rtol=1e-8, atol=1e-10)

def test_a_score_depends_on_nothing_but_its_image(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(7), images(4)
    v, order = by_finding(model, loss, x_val, y_val), torch.randperm(7)
    scores, squares, *_ = gradient_scores(model, loss, x, y, v)
    close(torch.cat([gradient_scores(model, loss, x[i:i+1], y[i:i+1], v)[0] for i in range(7)]), scores)
    close(gradient_scores(model, loss, x[order], y[order], v)[0], scores[order])
    copied = gradient_scores(model, loss, torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), v)
    close(copied[0][-1], scores[0]); close(copied[1][-1], squares[0])
    assert len({round(float(s), 12) for s in scores.sum(1)}) == 7

def test_a_doubled_validation_set_changes_nothing(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(3), images(4)
    twice = whole(model, loss, torch.cat([x_val, x_val]), torch.cat([y_val, y_val]))
    close(plain_scores(model, loss, x, y, twice), plain_scores(model, loss, x, y, whole(model, loss, x_val, y_val)))

def test_the_mean_of_pairwise_scores_is_influence_and_their_diagonal_self_influence(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(4), images(3)
    flat = lambda x, y: torch.cat([g.flatten(1) for g in per_sample_gradients(model, loss, x, y)[0].values()], 1)
    pairs = flat(x, y) @ flat(x_val, y_val).T
    close(pairs.mean(1), directional_scores(model, loss, x, y, whole(model, loss, x_val, y_val))[0])
    close((flat(x, y) @ flat(x, y).T).diagonal(), gradient_scores(model, loss, x, y, by_finding(model, loss, x_val, y_val))[1])

class Summed(nn.Module):
    "A loss with the reduction that captum's fast way asks for."
    reduction = 'sum'
    def __init__(self, loss): super().__init__(); self.loss = loss
    def forward(self, z, y): return self.loss(z, y).sum()

@pytest.mark.filterwarnings('ignore:Since `loss_fn` has no')
def test_captum_agrees(case, tmp_path):
    captum = pytest.importorskip('captum.influence')
    model, loss, images = case
    (x, y), (x_val, y_val) = images(5), images(3)
    rates, paths = [1e-3, 4e-4], []
    for number in range(2):
        with torch.no_grad():
            for p in model.parameters(): p.add_(torch.randn_like(p) * .01)
        paths.append(tmp_path/f'{number}.pt'); torch.save(model.state_dict(), paths[-1])
    def load(model, path):
        model.load_state_dict(torch.load(path, weights_only=True))
        return rates[paths.index(path)]
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    given = model, torch.utils.data.TensorDataset(x, y), paths
    settings = dict(checkpoints_load_func=load, batch_size=1, loss_fn=lambda z, y: loss(z, y).sum(1))
    theirs, of_last = captum.TracInCP(*given, **settings), captum.TracInCP(*given, layers=[last], **settings)
    by_weight = captum.TracInCPFast(model, model.get_submodule(last), *given[1:], load, Summed(loss), batch_size=1)
    def ours(names): # pairs, and self-influence, over the checkpoints
        pairs, own = 0, 0
        for path in paths:
            rate = load(model, path)
            directions, _ = per_sample_gradients(model, loss, x_val, y_val, names)
            scores = gradient_scores(model, loss, x, y, directions)
            pairs, own = pairs + rate * scores.products, own + rate * scores.squares
        return pairs, own
    pairs, own = ours(None)
    close(pairs, theirs.influence((x_val, y_val)).detach().T)
    close(pairs.sum(1), theirs.influence((x_val, y_val), aggregate=True)[0].detach())
    close(own, theirs.self_influence(outer_loop_by_checkpoints=True).detach())
    close(ours([f'{last}.weight', f'{last}.bias'])[0], of_last.influence((x_val, y_val)).detach().T)
    close(ours([f'{last}.weight'])[0], by_weight.influence((x_val, y_val)).detach().T)

# Layers of every kind, one at a time, in a network of their own.

class Mean(nn.Module):
    def forward(self, x): return x.mean((2, 3))

def around(*layers, channels): return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, Mean(), nn.Linear(channels, 14)).double().eval()

KINDS = {
    'stride': lambda: around(nn.Conv2d(4, 6, 3, stride=2), channels=6),
    'padding': lambda: around(nn.Conv2d(4, 6, (3, 5), padding=(2, 1), bias=False), channels=6),
    'groups': lambda: around(nn.Conv2d(4, 6, 3, groups=2), channels=6),
    'depthwise, strided, dilated': lambda: around(nn.Conv2d(4, 8, 3, stride=(2, 1), padding=2, dilation=2, groups=4), channels=8),
    'dilation': lambda: around(nn.Conv2d(4, 6, 3, dilation=(1, 3)), channels=6),
    'rows left over by the stride': lambda: around(nn.Conv2d(4, 6, 3, stride=3), channels=6),
    'pointwise': lambda: around(nn.Conv2d(4, 6, 1), channels=6),
    'pointwise, strided': lambda: around(nn.Conv2d(4, 6, 1, stride=2), channels=6),
    'in-place ReLU after a convolution': lambda: around(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), channels=4),
    'in-place ReLU after BatchNorm': lambda: around(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), channels=4),
    'LayerNorm': lambda: around(nn.LayerNorm([4, 11, 11]), channels=4),
    'a linear layer on rows': lambda: around(nn.Linear(11, 5), channels=4),
}

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', KINDS)
def test_a_layer_of_any_kind(kind):
    torch.seed()
    model, loss = KINDS[kind](), FocalLoss(gamma=2.)
    x, y = torch.randn(5, 3, 11, 11).double(), (torch.rand(5, 14) < .3).double()
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    plain = plain_scores(model, loss, x, y, v)
    scores = gradient_scores(model, loss, x, y, {name: direction[None] for name, direction in v.items()})
    close(scores.products[:, 0], plain); close(directional_scores(model, loss, x, y, v)[0], plain)
    squares = sum(g.flatten(1).square().sum(1) for g in vmap_gradients(model, loss, x, y)[0].values())
    close(scores.squares, squares); close(self_influence(model, loss, x, y), squares)

class Twice(nn.Module):
    "One layer, called twice."
    def __init__(self): super().__init__(); self.layer, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 14)
    def forward(self, x): return self.head(self.layer(self.layer(x).relu()).mean((2, 3)))

class Tied(nn.Module):
    "Two layers, one weight."
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Linear(3, 14)
        self.two.weight = self.one.weight
    def forward(self, x): return self.head(self.two(self.one(x).relu()).mean((2, 3)))

class Own(nn.Module):
    "A parameter of no known layer."
    def __init__(self): super().__init__(); self.gain, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 14)
    def forward(self, x): return self.head(x.mean((2, 3)) * self.gain)

class Idle(nn.Module):
    "A layer that is not called."
    def __init__(self): super().__init__(); self.idle, self.head = nn.Linear(3, 3), nn.Linear(3, 14)
    def forward(self, x): return self.head(x.mean((2, 3)))

def reflecting(): return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'), Mean(), nn.Linear(4, 14))
def same(): return nn.Sequential(nn.Conv2d(3, 4, 3, padding='same'), Mean(), nn.Linear(4, 14))
def normed(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), Mean(), nn.Linear(4, 14))

@pytest.mark.filterwarnings('default:.*formed by vmap')
@pytest.mark.parametrize('make, word', [(Twice, 'used twice'), (Tied, 'shared by one and two'), (Own, 'a Own that is not known'),
                                        (Idle, 'idle is not called'), (reflecting, 'not known'), (same, 'not known'), (normed, 'GroupNorm')])
def test_what_is_not_known_is_scored_the_slow_way_with_a_word(make, word):
    torch.seed()
    model, loss = make().double().eval(), FocalLoss(gamma=2.)
    x, y = torch.randn(4, 3, 9, 9).double(), (torch.rand(4, 14) < .3).double()
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    plain = plain_scores(model, loss, x, y, v)
    with pytest.warns(UserWarning, match=word): scores = gradient_scores(model, loss, x, y, {name: t[None] for name, t in v.items()})
    close(scores.products[:, 0], plain); close(sum(scores.layers.values())[:, 0], plain)
    with pytest.warns(UserWarning, match=word): close(self_influence(model, loss, x, y), scores.squares)
    close(directional_scores(model, loss, x, y, v)[0], plain)

def test_only_the_parameters_asked_for_count(case):
    model, loss, images = case
    x, y = images(4)
    last = [name for name, _ in model.named_parameters()][-2:]
    v = {name: torch.randn_like(p) for name, p in model.named_parameters() if name in last}
    assert len(_known_layers(model, last)) == 1 # so the transformer's last layer goes the fast way
    plain = plain_scores(model, loss, x, y, v)
    close(directional_scores(model, loss, x, y, v)[0], plain)
    scores = gradient_scores(model, loss, x, y, {name: t[None] for name, t in v.items()})
    close(scores.products[:, 0], plain); close(self_influence(model, loss, x, y, last), scores.squares)
    with pytest.raises(UnknownLayer): _known_layers(transformer(), [name for name, _ in transformer().named_parameters()])

@pytest.mark.parametrize('score', [directional_scores, plain_scores, gradient_scores])
def test_training_mode_and_averaged_losses_are_refused(score):
    model, averaged = densenet(), lambda z, y: z.mean()
    x, y = torch.randn(3, 3, 32, 32), torch.zeros(3, 14)
    v = {name: torch.randn_like(p) if score is not gradient_scores else torch.randn(1, *p.shape) for name, p in model.named_parameters()}
    with pytest.raises(InputError, match='training mode.*model.eval'): score(model, FocalLoss(), x, y, v)
    with pytest.raises(InputError, match='one number per image'): score(model.eval(), averaged, x, y, v)

@pytest.mark.parametrize('score', [lambda *a: gradient_scores(*a, {name: torch.randn(1, *p.shape) for name, p in a[0].named_parameters()}),
                                   self_influence, per_sample_gradients], ids=['scores', 'self-influence', 'gradients'])
def test_passes_leave_no_memory_and_no_hooks_behind(score):
    model, loss = densenet().eval(), FocalLoss()
    x, y = torch.randn(32, 3, 64, 64), torch.zeros(32, 14)
    def used(passes):
        for _ in range(passes): score(model, loss, x, y)
        return psutil.Process().memory_info().rss
    before = used(3)
    assert used(12) - before < 100e6 # what a pass holds on to would be 50 MB each
    assert not any(module._forward_hooks for module in model.modules()) and all(p.requires_grad for p in model.parameters())

def test_large_layers_are_split_and_nothing_changes(case, monkeypatch):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(5), images(3)
    v = by_finding(model, loss, x_val, y_val)
    before, squares = gradient_scores(model, loss, x, y, v), self_influence(model, loss, x, y)
    split, real = [], layerwise._chunks
    monkeypatch.setattr(layerwise, '_chunks', lambda layer, a, d: split.append(parts := [*real(layer, a, d, 200)]) or parts)
    after = gradient_scores(model, loss, x, y, v)
    for one, other in zip(after[:3], before[:3]): close(one, other)
    close(self_influence(model, loss, x, y), squares)
    assert not split or {len(parts) for parts in split} >= {5} # the transformer has none
