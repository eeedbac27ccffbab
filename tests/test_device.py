"No tensor is made on another device than the model's: on `meta`, which stands for an accelerator, and on an accelerator where there is one."
import pandas as pd
import pytest, torch

from cxr_influence.attribution import densenet, layerwise, tracin
from cxr_influence.attribution.densenet import fastest
from cxr_influence.attribution.layerwise import gradient_scores, per_sample_gradients, self_influence
from cxr_influence.attribution.scoring import influence
from cxr_influence.attribution.tracin import directional_scores, gradient, image_losses
from cxr_influence.attribution.unrolling import (_Batch, _eval_losses, _final_adjoints, _forward_step, _Network, _pure_step, _reverse_step,
    _State, _state_of, _Step)
from cxr_influence.attribution.whole_run import unroll
from cxr_influence.data.batches import load_data
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Recipe, list_checkpoints
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.losses import FocalLoss, training_loss
from cxr_influence.training.networks import best_device, make_model, smooth_network
from cxr_influence.training.recipes import recipe
from cxr_influence.training.resume import fit

META, HERE = torch.device('meta'), best_device()
needs_accelerator = pytest.mark.skipif(HERE.type == 'cpu', reason='no accelerator')
needs_float64 = pytest.mark.skipif(HERE.type == 'mps', reason='Apple\'s GPUs have no float64')

@pytest.fixture
def unchecked(monkeypatch):
    "A meta tensor has no values, so what looks at values is left out; all else is as it runs."
    for module in tracin, layerwise, densenet: monkeypatch.setattr(module, '_check_images', lambda *_: None)
    for module in tracin, layerwise: monkeypatch.setattr(module, '_doubt', lambda *_, **__: '')

def network(backbone, device):
    with device: return make_model(backbone).eval(), FocalLoss(class_weights=torch.ones(14)).to(device)

def images(device, n=4, size=64): return torch.zeros(n, 3, size, size, device=device), torch.zeros(n, 14, device=device)

def scores_of(model, loss, x, y):
    "Each way to score a batch."
    v = gradient(model, image_losses(model, loss, x, y).mean())
    fused, watch = fastest(model)
    for name, way in {'general': layerwise._watch_layers, 'fused': watch}.items():
        own, losses = per_sample_gradients(model, loss, x, y, watch=way)
        yield f'gradients, {name}', own['classifier.weight']
        yield f'products, {name}', gradient_scores(model, loss, x, y, own, way).products
        yield f'self-influence, {name}', self_influence(model, loss, x, y, watch=way)
    yield 'one direction, general', directional_scores(model, loss, x, y, v)[0]
    yield 'one direction, fused', fused(model, loss, x, y, v)[0]

@pytest.mark.parametrize('backbone', ['densenet_small', 'densenet121'])
def test_scores_are_made_where_the_model_is(backbone, unchecked):
    found = dict(scores_of(*network(backbone, META), *images(META)))
    assert len(found) == 8 and {one.device for one in found.values()} == {META}

def test_a_stray_tensor_would_be_found(unchecked):
    "What the tests above rest on: a batch elsewhere is an error, not a copy."
    model, loss = network('densenet_small', META)
    with pytest.raises(Exception, match='(?i)meta|device'): dict(scores_of(model, loss, *images(torch.device('cpu'))))

def run_on(device, smooth):
    with device:
        model, loss = make_model('densenet_small'), FocalLoss()
        if smooth: model = smooth_network(model)
        net = _Network(model.to(device), loss)
        state, (x, y) = _state_of(net, model), images(device)
        decay = torch.zeros_like(state.p)
    return net, state, _Batch(x, y, torch.ones(4, device=device)), _Step(1, 1e-3, decay, (.9, .95), 1e-8, 0.), (x, y)

@pytest.mark.parametrize('clipped', [False, True])
@pytest.mark.parametrize('smooth', [False, True])
def test_a_run_is_unrolled_where_it_is(smooth, clipped, monkeypatch):
    monkeypatch.setattr(torch.Tensor, '__bool__', lambda _: clipped) # the one question to values: is the step clipped?
    net, state, batch, at, target = run_on(META, smooth)
    after = _pure_step(net, state, batch, at)
    adjoint = _final_adjoints(net, after, [target], torch.ones(1, 4, 14, device=META))[0]
    plain, share, _ = _reverse_step(net, state, batch, at, adjoint)
    moved = _forward_step(net, state, batch, at, _State(*map(torch.zeros_like, state)), torch.ones(4, device=META))
    losses = _eval_losses(net, after, *target)
    assert {t.device for t in [*after, *adjoint, *plain, share, *moved[0], *moved[1], losses]} == {META}

@needs_accelerator
@needs_float64
@pytest.mark.parametrize('backbone', ['densenet_small', 'densenet121'])
def test_an_accelerator_gives_the_scores_of_the_processor(backbone):
    model, loss = network(backbone, torch.device('cpu'))
    model, (x, y) = model.double(), (torch.randn(6, 3, 64, 64).double(), (torch.rand(6, 14) < .3).double())
    loss = loss.double()
    exact = {name: one.detach() for name, one in scores_of(model, loss, x, y)}
    there = dict(scores_of(model.to(HERE), loss.to(HERE), x.to(HERE), y.to(HERE)))
    for name, one in there.items():
        assert one.device.type == HERE.type
        assert (one.detach().cpu() - exact[name]).abs().max() < 1e-8 * exact[name].abs().max(), name

@needs_accelerator
def test_a_study_runs_on_an_accelerator(tmp_path):
    "Train, evaluate, score, unroll: the scores of the same checkpoints agree with the processor's."
    data = load_data(make_phantom(tmp_path/'phantom', n=120, size=64), 64, stores=tmp_path)
    usual = Recipe('densenet_small', loss=training_loss('focal', data.frame), epochs=2, batch_size=16, learning_rate=1e-3)
    fit(data, tmp_path/'run', usual)
    assert 0 <= evaluate_checkpoint(list_checkpoints(tmp_path/'run')[-1], data).table.loc['macro', 'auroc'] <= 1
    there, here = (influence(tmp_path/'run', data, tmp_path/f'{device}.csv', device=device) for device in [HERE, 'cpu'])
    assert there.influence.corr(here.influence, method='spearman') > .999
    soft = recipe('smooth', epochs=2, batch_size=32, loss=usual.loss)
    fit(data, tmp_path/'soft', soft)
    scores = unroll(tmp_path/'soft', data, tmp_path/'unrolled.csv')
    assert isinstance(scores, pd.DataFrame) and scores.influence.notna().all()
