"The passes written for DenseNet are the general ones, and the definition, in float64, on fresh random networks and inputs."
import copy
import psutil, pytest, torch
from torch import nn
from torchvision.models import DenseNet

from test_tracin import by_finding, close, resnet, transformer, whole
from cxr_influence.attribution.densenet import (densenet_directional_scores, fastest,
    is_densenet, watch_densenet)
from cxr_influence.data.files import InputError
from cxr_influence.training.losses import FocalLoss
from cxr_influence.training.networks import make_model
from cxr_influence.attribution.scoring import _scoring
from cxr_influence.attribution.tracin import directional_scores, plain_scores, vmap_gradients
from cxr_influence.attribution.layerwise import (gradient_scores, per_sample_gradients,
    self_influence, _watch_layers)

SIZES = {'two blocks': dict(growth_rate=4, block_config=(2, 2), num_init_features=8),
         'one layer a block': dict(growth_rate=2, block_config=(1, 1, 1), num_init_features=6, bn_size=2),
         'dropout': dict(growth_rate=4, block_config=(2, 1, 2), num_init_features=4, drop_rate=.3)}

@pytest.fixture(params=SIZES)
def case(request):
    "A random DenseNet whose running statistics are not at their start, a loss, and images of odd and unequal sides."
    torch.seed()
    model = DenseNet(**SIZES[request.param], num_classes=14).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=.1); nn.init.uniform_(module.running_var, .5, 2)
            nn.init.normal_(module.weight); nn.init.normal_(module.bias, std=.1)
    loss = FocalLoss(gamma=float(torch.rand(()) * 3), class_weights=torch.rand(14) * 7 + 1)
    height, width = (int(side) for side in torch.randint(33, 75, (2,)))
    def images(n): return torch.randn(n, 3, height, width).double(), (torch.rand(n, 14) < .2).double()
    assert is_densenet(model)
    return model.eval(), loss, images

def test_one_direction_is_the_definition(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(5), images(3)
    v = whole(model, loss, x_val, y_val)
    plain = plain_scores(model, loss, x, y, v)
    ours, losses = densenet_directional_scores(model, loss, x, y, v)
    close(ours, plain)
    close(losses, directional_scores(model, loss, x, y, v)[1])
    close(torch.cat([densenet_directional_scores(model, loss, x[i:i+1], y[i:i+1], v)[0] for i in range(5)]), ours)

def test_the_way_back_sees_what_the_general_one_sees(case):
    model, loss, images = case
    (x, y), (x_val, y_val) = images(5), images(3)
    v = by_finding(model, loss, x_val, y_val)
    ours, general = (gradient_scores(model, loss, x, y, v, watch) for watch in [watch_densenet, _watch_layers])
    for mine, other in zip(ours[:3], general[:3]): close(mine, other)
    assert ours.layers.keys() == general.layers.keys()
    scale = max(share.abs().max() for share in general.layers.values())
    for name in general.layers: torch.testing.assert_close(ours.layers[name], general.layers[name], rtol=1e-8, atol=1e-9 * float(scale))
    close(self_influence(model, loss, x, y, watch=watch_densenet), general.squares)
    mine, reference = per_sample_gradients(model, loss, x, y, watch=watch_densenet)[0], vmap_gradients(model, loss, x, y)[0]
    for name in reference: torch.testing.assert_close(mine[name], reference[name], rtol=1e-8, atol=1e-10)

def test_only_the_parameters_asked_for_count_and_the_way_ends_there(case):
    model, loss, images = case
    x, y = images(4)
    names = [name for name, _ in model.named_parameters()]
    some = [names[i] for i in torch.randperm(len(names))[:5]]
    v = {name: torch.randn_like(model.get_parameter(name)) for name in some}
    plain = plain_scores(model, loss, x, y, v)
    close(densenet_directional_scores(model, loss, x, y, v)[0], plain)
    close(gradient_scores(model, loss, x, y, {name: t[None] for name, t in v.items()}, watch_densenet).products[:, 0], plain)
    seen = []
    watch_densenet(model, loss, x, y, ['classifier.bias'], lambda name, *_: seen.append(name))
    assert seen == ['classifier']

def test_nothing_of_the_model_changes_and_nothing_is_held(case):
    model, loss, images = case
    x, y = images(2)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    with _scoring(model): # raises if a byte changed
        densenet_directional_scores(model, loss, x, y, v)
        self_influence(model, loss, x, y, watch=watch_densenet)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

def test_checkpointed_layers_are_scored_too(): # which hooks cannot watch, as they run twice
    torch.seed()
    usual, checkpointed = (DenseNet(4, (2, 2), 8, num_classes=14, memory_efficient=saving).double().eval() for saving in [False, True])
    checkpointed.load_state_dict(usual.state_dict())
    x, y, loss = torch.randn(3, 3, 40, 40).double(), torch.zeros(3, 14).double(), FocalLoss()
    close(self_influence(checkpointed, loss, x, y, watch=fastest(checkpointed)[1]), self_influence(usual, loss, x, y))

def test_passes_leave_no_memory_behind():
    model, loss = make_model('densenet_small').eval(), FocalLoss()
    x, y = torch.randn(32, 3, 64, 64), torch.zeros(32, 14)
    def used(passes):
        for _ in range(passes): self_influence(model, loss, x, y, watch=watch_densenet)
        return psutil.Process().memory_info().rss
    before = used(3)
    assert used(12) - before < 100e6

def test_training_mode_and_averaged_losses_are_refused():
    model, x, y = make_model('densenet_small').train(), torch.randn(3, 3, 64, 64), torch.zeros(3, 14)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for call in [lambda loss: densenet_directional_scores(model, loss, x, y, v),
                 lambda loss: watch_densenet(model, loss, x, y, list(v), lambda *_: None)]:
        with pytest.raises(InputError, match='training mode.*model.eval'): call(FocalLoss())
        model.eval()
        with pytest.raises(InputError, match='one number per image'): call(lambda z, y: z.mean())
        model.train()

def changed(change):
    model = make_model('densenet_small')
    change(model, model.features.denseblock1.denselayer2)
    return model

@pytest.mark.parametrize('change', [
    lambda model, layer: setattr(layer, 'conv2', nn.Conv2d(64, 16, 5, padding=2, bias=False)),
    lambda model, layer: setattr(layer, 'norm2', nn.BatchNorm2d(64, eps=1e-3)),
    lambda model, layer: setattr(layer, 'relu1', nn.LeakyReLU()),
    lambda model, layer: setattr(model, 'classifier', nn.Sequential(nn.Linear(*model.classifier.weight.shape[::-1]))),
    lambda model, layer: setattr(layer.norm1, 'weight', copy.copy(model.features.denseblock2.denselayer1.norm1.weight)) or
                         setattr(model.features.norm0, 'weight', layer.norm1.weight),
    lambda model, layer: layer.register_forward_hook(lambda *_: None)])
def test_what_is_built_otherwise_takes_the_general_way(change):
    assert is_densenet(make_model('densenet_small'))
    assert fastest(changed(change)) == (directional_scores, _watch_layers)

def test_other_networks_take_the_general_way():
    for make in resnet, transformer: assert fastest(make()) == (directional_scores, _watch_layers)
    for backbone in 'densenet121', 'densenet161': assert is_densenet(make_model(backbone))
