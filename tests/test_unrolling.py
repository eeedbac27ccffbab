"The derivative of a whole run: against autograd, against itself forward, against the training that it derives, and against retraining."
import json, shutil
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
import numpy as np
import pandas as pd
import pytest, torch, torchvision
from torch import nn

from conftest import FORKS
from cxr_influence.attribution import every_step as every, whole_run
from cxr_influence.attribution.densenet import is_densenet
from cxr_influence.attribution.every_step import every_step
from cxr_influence.attribution.scoring import influence, score_checkpoint, verify
from cxr_influence.attribution.unrolling import (_Batch, _eval_losses, _final_adjoints, _forward_step, _gradient, _Network,
    _pure_step, _quicken, _reverse_quickly, _reverse_step, _State, _state_of, _Step)
from cxr_influence.attribution.whole_run import _Replay, along, smoothness, unroll
from cxr_influence.data.files import InputError
from cxr_influence.training.checkpoints import _LATER, Recipe, list_checkpoints
from cxr_influence.training.loop import _run_settings, _SmoothAdamW, _Training
from cxr_influence.training.losses import FocalLoss
from cxr_influence.training.networks import make_model, smooth_network
from cxr_influence.training.recipes import recipe
from cxr_influence.training.resume import fit

CPU, STEPS, SIZE = torch.device('cpu'), 4, 5

class Mixed(nn.Module):
    "Any loss that gives (b, findings); this one mixes the findings of an image."
    def forward(self, logits, targets):
        return (logits.log_softmax(1) * -targets.nan_to_num()) + .1 * logits.square()

def small_run(kind, clip, loss=None):
    "A random network, random batches with unknown labels, and the settings of each step."
    torch.seed()
    model = torchvision.models.DenseNet(4, (1, 1), 8, num_classes=14).double()
    if kind == 'smooth': model = smooth_network(model, logit_scale=.3)
    loss = loss or FocalLoss(gamma=float(torch.rand(()) * 2), class_weights=torch.rand(14) * 3 + 1)
    net = _Network(model, loss)
    def labels(n): return torch.where(torch.rand(n, 14) < .1, torch.nan, (torch.rand(n, 14) < .3).double())
    batches = [(torch.randn(SIZE, 3, 32, 32).double(), labels(SIZE)) for _ in range(STEPS)]
    decay = torch.cat([torch.full((shape.numel(),), .05 * (len(shape) > 1)).double() for shape in net.shapes])
    steps = [_Step(k + 1, 2e-3 * (STEPS - k), decay, (.9, .95), 1e-8, clip) for k in range(STEPS)]
    target = torch.randn(6, 3, 32, 32).double(), labels(6)
    return net, _state_of(net, model), batches, steps, target

def run_through(net, state, batches, steps, weights):
    states = [state]
    for (x, y), w, at in zip(batches, weights, steps): states.append(_pure_step(net, states[-1], _Batch(x, y, w), at))
    return states

def target_loss(net, state, target): return _eval_losses(net, state, *target).sum(1).mean()

def reverse(net, states, batches, steps, weights, target, k=1):
    query = torch.ones(1, 6, 14).double() / 6 if k == 1 else torch.eye(14).double()[:, None].repeat(1, 6, 1) / 6
    adjoint, found = _final_adjoints(net, states[-1], [target], query)[0], []
    for state, (x, y), w, at in reversed([*zip(states, batches, weights, steps)]):
        adjoint, share, _ = _reverse_step(net, state, _Batch(x, y, w), at, adjoint)
        found.insert(0, share)
    return torch.stack(found, 1) # (k, steps, b, ...)

def close(a, b, tolerance=1e-10): torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))

@pytest.mark.parametrize('clip', [.05, 1e9], ids=['clipped', 'not'])
@pytest.mark.parametrize('of', ['images', 'labels'])
@pytest.mark.parametrize('kind', ['smooth', 'relu'])
def test_backward_and_forward_are_autograd_through_the_whole_run(kind, of, clip):
    net, start, batches, steps, target = small_run(kind, clip)
    shape = (STEPS, SIZE) if of == 'images' else (STEPS, SIZE, 14)
    weights = (torch.rand(shape).double() + .5).requires_grad_()
    states = run_through(net, start, batches, steps, weights)
    exact, = torch.autograd.grad(target_loss(net, states[-1], target), weights)
    states = [_State(*(t.detach() for t in state)) for state in states]
    found = reverse(net, states, batches, steps, weights.detach(), target)[0]
    close(found, exact)
    many = reverse(net, states, batches, steps, weights.detach(), target, 14)
    close(many.sum(0), exact)
    change, tangent = torch.randn(shape).double(), _State(*map(torch.zeros_like, start))
    for state, (x, y), w, at, dw in zip(states, batches, weights.detach(), steps, change):
        after, tangent = _forward_step(net, state, _Batch(x, y, w), at, tangent, dw)
    close(after.p, states[-1].p)
    effect = torch.func.jvp(lambda p, r: target_loss(net, _State(p, None, None, r), target),
                            (after.p, after.r), (tangent.p, tangent.r))[1]
    scale = float((exact * change).abs().sum())
    assert abs(float(effect - (exact * change).sum())) < 1e-10 * scale

def test_labels_add_up_to_their_image_and_any_loss_will_do():
    net, start, batches, steps, target = small_run('smooth', .05, Mixed())
    ones = torch.ones(STEPS, SIZE, 14).double()
    states = [_State(*(t.detach() for t in state)) for state in run_through(net, start, batches, steps, ones)]
    found = reverse(net, states, batches, steps, ones, target)[0].sum(2)
    w = torch.ones(STEPS, SIZE).double().requires_grad_() # of images, in the loss alone
    again = run_through(net, start, batches, steps, w[..., None].expand(-1, -1, 14))
    exact, = torch.autograd.grad(target_loss(net, again[-1], target), w)
    close(found, exact)

def test_it_is_what_central_differences_give():
    net, start, batches, steps, target = small_run('smooth', 1e9)
    steps = [at._replace(rate=at.rate / 10, root_epsilon=1e-6) for at in steps]
    ones, change, h = torch.ones(STEPS, SIZE).double(), torch.randn(STEPS, SIZE).double(), 1e-5
    def loss(step): return target_loss(net, run_through(net, start, batches, steps, ones + step * change)[-1], target)
    states = [_State(*(t.detach() for t in state)) for state in run_through(net, start, batches, steps, ones)]
    products = reverse(net, states, batches, steps, ones, target)[0] * change
    actual = float((loss(h) - loss(-h)).detach()) / (2 * h)
    assert abs(actual - float(products.sum())) < 1e-3 * float(products.abs().sum())

# ---- the faster way back

@pytest.mark.parametrize('clip', [.05, 1e9], ids=['clipped', 'not'])
@pytest.mark.parametrize('of', ['ones', 'images', 'labels'])
@pytest.mark.parametrize('kind', ['smooth', 'relu'])
def test_the_faster_way_back_is_the_plain_one(kind, of, clip):
    net, state, batches, steps, _ = small_run(kind, clip, Mixed() if kind == 'smooth' and of == 'ones' else None)
    (x, y), at = batches[0], steps[1]
    w = {'ones': torch.ones(SIZE), 'images': torch.rand(SIZE) + .5, 'labels': torch.rand(SIZE, 14) + .5}[of].double()
    if of == 'images': w[2] = 0
    state = state._replace(m=torch.randn_like(state.p) * 1e-2, v=torch.rand_like(state.p) * 1e-3)
    after, batch = _State(*(torch.randn(3, len(t)).double() for t in state)), _Batch(x, y, w)
    plain, shares, m = _reverse_step(net, state, batch, at, after)
    g = _gradient(net, state.p, batch)[0]
    _quicken(net)
    again = _gradient(net, state.p, batch)[0] # quick layers are themselves where no tangent is wanted
    close(again, g, 1e-14)
    found, own, apart = _reverse_quickly(net, state, batch, at, after, g)
    for a, b in zip([*found, own], [*plain, shares]): close(a, b)
    assert apart < 1e-10 < 1e-3 < _reverse_quickly(net, state, batch, at, after, g + 10 * g.norm() * torch.randn_like(g))[2]
    close(_reverse_step(net, state, batch, at, after)[0].p, plain.p)

# ---- the training that it derives

@pytest.mark.parametrize('name', ['smooth', 'small'])
@pytest.mark.parametrize('of', [None, 'images', 'labels'])
def test_the_step_is_that_of_training(data, name, of):
    rng = np.random.default_rng()
    shape = (len(data), 14)[:1 + (of == 'labels')]
    weighted = data if of is None else data.weighted(rng.uniform(.5, 2, shape))
    training = _Training(weighted, _run_settings(weighted, recipe(name, batch_size=16, clip=.5), 0, CPU))
    training.model.double()
    net = _Network(training.model, training.loss)
    decay = torch.cat([torch.full((shape.numel(),), .01 * (len(shape) > 1)).double() for shape in net.shapes])
    state, run = _state_of(net, training.model), training.run
    for number, (x, y, i) in zip(range(1, 4), training._batches()):
        x, w = x.double(), training._weights_of(i)
        training._take_step(x, y.double(), len(x), w)
        w = torch.ones(len(x)).double() if w is None else w.double()
        at = _Step(number, training._rate, decay, run['betas'], run['root_epsilon'], run['clip'])
        state = _pure_step(net, state, _Batch(x, y.double(), w), at)
        now = _state_of(net, training.model)
        torch.testing.assert_close(state.p, now.p, rtol=0, atol=1e-6) # AdamW magnifies rounding of tiny gradients
        torch.testing.assert_close(state.r, now.r, rtol=1e-5, atol=1e-6)

def test_weight_0_is_training_without_the_image_in_the_same_batches(data):
    gone = np.random.default_rng().choice(data.rows('train'), 12, replace=False)
    weights = np.ones(len(data))
    weights[gone] = 0
    settings = recipe('smooth', batch_size=16)
    weighted = data.weighted(weights)
    ours, plain = (_Training(d, _run_settings(d, settings, 0, CPU)) for d in [weighted, data])
    ours.model.double(), plain.model.double()
    for _, (x, y, i) in zip(range(3), ours._batches()):
        stays = ~np.isin(i, gone)
        ours._take_step(x.double(), y.double(), len(x), ours._weights_of(i))
        plain._take_step(x[stays].double(), y[stays].double(), len(x))
    for p, q in zip(ours.model.state_dict().values(), plain.model.state_dict().values()):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)

def test_without_weights_the_layers_and_the_optimizer_are_those_of_before(data):
    usual = _Training(data, _run_settings(data, Recipe('densenet_small'), 0, CPU))
    assert {type(m) for m in usual.model.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}
    assert type(usual.optimizer) is torch.optim.AdamW and type(usual.model) is torchvision.models.DenseNet
    labels = data.weighted(np.full((len(data), 14), .5))
    assert type(_Training(labels, usual.run).model.features.norm0) is nn.BatchNorm2d
    smooth = _Training(data, _run_settings(data, recipe('smooth'), 0, CPU))
    assert type(smooth.optimizer) is _SmoothAdamW and smooth.optimizer.param_groups[0]['betas'] == (.95, .975)

def test_weights_are_checked_and_part_of_the_fingerprint(data):
    n = len(data)
    for weights, words in [(np.ones(n - 1), 'have the shape'), (np.full(n, np.nan), 'has the weight nan'),
                           (-np.ones((n, 14)), 'has the weight -1.0'), (['a'] * n, 'are no numbers')]:
        with pytest.raises(InputError, match=words): data.weighted(weights)
    half = data.weighted(np.full(n, .5))
    prints = {data.fingerprint, half.fingerprint, data.weighted(np.full((n, 14), .5)).fingerprint}
    assert len(prints) == 3 and data.weighted(np.ones(n)).fingerprint == data.fingerprint
    assert half.with_frame(data.frame).fingerprint == half.fingerprint and not half.matches(data.fingerprint)

def test_batches_that_lose_their_images_are_refused_before_training(data, tmp_path):
    weights = np.zeros(len(data))
    weights[data.rows('train')[:3]] = 1
    with pytest.raises(InputError, match='The weights of batch 1 of epoch 1 add up'):
        fit(data.weighted(weights), tmp_path/'run', recipe('smooth', batch_size=16))
    half = recipe('smooth', batch_size=16)._replace(mixed_precision='bf16')
    with pytest.raises(InputError, match="mixed_precision='no'"):
        fit(data.weighted(np.full(len(data), .5)), tmp_path/'run', half)
    assert not (tmp_path/'run').exists()

# ---- smooth networks

@pytest.mark.parametrize('backbone', ['densenet_small', 'densenet121', 'resnet18', 'mobilenet_v3_small', 'vgg11_bn'])
def test_a_smooth_network_has_no_kinks_and_the_same_weights(backbone):
    model, smooth = make_model(backbone), smooth_network(make_model(backbone), logit_scale=.5)
    assert model.state_dict().keys() == smooth.state_dict().keys()
    assert not {nn.ReLU, nn.MaxPool2d, nn.Hardswish, nn.Hardsigmoid} & {type(m) for m in smooth.modules()}
    x = torch.randn(2, 3, 64, 64)
    assert smooth.eval()(x).shape == (2, 14)
    p = [*smooth.parameters()][0]
    assert not torch.equal(smooth(x), .5 * model.eval()(x)) and p.shape == [*model.parameters()][0].shape

def test_the_fast_engine_leaves_smooth_and_scaled_networks_to_the_general_one(data, run):
    for changes in [dict(), dict(smooth=False, logit_scale=.1)]:
        model = smooth_network(make_model('densenet_small'), **changes).eval()
        assert not is_densenet(model)
    checkpoint = list_checkpoints(run)[-1]
    scores = influence(run, data, run.parent/'tracin.csv', device='cpu')
    assert json.loads((run.parent/'tracin.json').read_text())['difference_to_definition'] < 1e-3
    full = score_checkpoint(checkpoint, data, run.parent/'tracin.csv', device='cpu')
    assert verify(checkpoint, full, data) < 1e-3 and np.isfinite(scores).all().all()

# ---- a real run

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('unrolled')/'run'
    fit(data, folder, recipe('smooth', epochs=2, batch_size=48, logit_scale=.1), device='cpu')
    return folder

def test_the_settings_stand_in_the_checkpoint_and_earlier_ones_have_the_defaults(data, run, tmp_path):
    back = list_checkpoints(run)[-1].recipe()
    assert back._replace(loss=None) == recipe('smooth', epochs=2, batch_size=48, logit_scale=.1)
    model = list_checkpoints(run)[-1].model()
    assert type(model).__name__ == 'Scaled_SmoothDenseNet' and model.logit_scale == back.logit_scale
    old, settings = tmp_path/'old', Recipe('densenet_small', epochs=1, batch_size=24)
    history = fit(data, old, settings, device='cpu')
    path = old/'epoch_001/checkpoint.json'
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name not in _LATER}
    path.write_text(json.dumps(facts)); path.with_name('.checkpoint.json.crc32').unlink()
    assert fit(data, old, settings, device='cpu').equals(history)
    assert list_checkpoints(old)[0].recipe()._replace(loss=None) == settings._replace(mixed_precision='no')
    with pytest.raises(InputError, match=r'betas.* differ'): fit(data, old, settings._replace(betas=(.9, .99)))

@pytest.mark.long
def test_unroll_is_kept_adds_up_and_is_made_again_when_it_must(data, run, tmp_path, monkeypatch):
    group, out = list(data.validation.index[:3]), tmp_path/'scores.csv'
    only = dict(first_epoch=2, device='cpu')
    scores = unroll(run, data, out, per_finding=True, groups={'three': group}, **only)
    assert list(scores.index) == list(data.train.index) and sorted(scores['rank']) == [*range(1, len(scores) + 1)]
    assert scores.influence.idxmax() == scores['rank'].idxmin()
    findings = scores[[f'influence_{name}' for name in data.findings]]
    np.testing.assert_allclose(findings.sum(axis=1), scores.influence, atol=1e-6 * scores.influence.abs().max())
    plain = unroll(run, data, tmp_path/'plain.csv', memory=1e-9, **only) # other memory, the same numbers
    np.testing.assert_allclose(plain.influence, scores.influence, atol=1e-5 * scores.influence.abs().max())
    table = pd.read_csv(out, index_col='image')
    assert np.allclose(table.influence, scores.influence) and json.loads(out.with_suffix('.json').read_text())['steps'] == 2
    effect = along(run, data, data.train.index[:20], **only)
    assert list(effect.index.unique('epoch')) == [2]
    total = effect.loc[2]
    assert total.effect.mean() == pytest.approx(scores.influence[:20].sum(), rel=1e-3, abs=1e-6)
    assert total.effect[group].mean() == pytest.approx(scores.influence_three[:20].sum(), rel=1e-3, abs=1e-6)
    assert np.allclose(effect.filter(like='effect_').sum(axis=1), effect.effect)
    monkeypatch.setattr(_Replay, '_unroll', lambda *_, **__: pytest.fail('computed again'))
    assert unroll(run, data, out, per_finding=True, groups={'three': group}, **only).equals(scores)
    with pytest.raises(pytest.fail.Exception): unroll(run, data, out, groups={'three': group}, **only)

def test_it_predicts_training_with_other_weights(data, run, tmp_path):
    rng, base, rows = np.random.default_rng(0), list_checkpoints(run)[-1], data.rows('train')
    nudge = np.zeros(len(data))
    nudge[rows] = rng.choice([-1., 1.], len(rows))
    losses = [fit(data.weighted(1 + h * nudge), tmp_path/f'{h}', base.recipe(), device='cpu').validation_loss.iloc[-1]
              for h in [.03, -.03]]
    scores = unroll(run, data, tmp_path/'scores.csv', device='cpu')
    predicted = -(scores.influence * nudge[rows]).sum() * .06
    assert losses[0] - losses[1] == pytest.approx(predicted, rel=.1)

@pytest.mark.long
def test_a_whole_run_backward_is_forward(data, run, tmp_path):
    scores = unroll(run, data, tmp_path/'whole.csv', device='cpu').influence
    effect = along(run, data, data.train.index[:15], device='cpu')
    assert list(effect.index.unique('epoch')) == [1, 2]
    assert effect.loc[2].effect.mean() == pytest.approx(scores[:15].sum(), rel=1e-3, abs=1e-6)

def test_labels_of_a_real_run_add_up(data, run, tmp_path):
    scores = unroll(run, data, tmp_path/'labels.csv', per_label=True, first_epoch=2, device='cpu')
    labels = scores[[f'label_{name}' for name in data.findings]]
    np.testing.assert_allclose(labels.sum(axis=1), scores.influence, atol=1e-6 * scores.influence.abs().max())
    assert not {'label_influence'} & set(scores) and (labels.abs().sum() > 0).all()

def test_states_are_kept_within_the_memory_and_every_step_comes_once(data, tmp_path):
    fit(data, tmp_path/'run', recipe('smooth', epochs=1, batch_size=12), device='cpu')
    replay = _Replay(tmp_path/'run', data, 'cpu')
    moments = [*replay._walk(replay.start, 0, replay.steps)]
    replay._check_arrival(moments[-1])
    assert all(torch.equal(a, b) for a, b in zip(moments[-1].after, replay._at(1))) # to the bytes
    for room in [1, 2, 3, 4, 100]:
        again = [*replay._backward(replay.start, 0, replay.steps, room)]
        assert [m.number for m in again] == [*range(replay.steps)][::-1]
        for a, b in zip(again, moments[::-1]):
            assert torch.equal(a.before.p, b.before.p) and torch.equal(a.after.v, b.after.v) and torch.equal(a.batch.x, b.batch.x)

def test_a_room_bounds_the_states_that_are_held():
    class Walked(_Replay):
        def __init__(self): self.held, self.most, self.walked = 0, 0, 0
        def _walk(self, state, first, last):
            for number in range(first, last):
                self.walked += 1
                yield type('Moment', (), {'number': number, 'after': number + 1})
    replay = Walked()
    for count, room in [(640, 30), (1000, 12), (17, 4)]:
        replay.walked = 0
        assert [m.number for m in replay._backward(0, 0, count, room)] == [*range(count)][::-1]
        assert replay.walked < count * (2 + np.log2(count))

def facts_of(out): return json.loads(out.with_suffix('.json').read_text())

@pytest.mark.long
def test_scores_carry_the_smoothness_of_their_run_which_is_measured_once(data, run, tmp_path, monkeypatch, capsys):
    copy, only = shutil.copytree(run, tmp_path/'run'), dict(first_epoch=2, device='cpu')
    effect = along(copy, data, data.train.index[:5], **only)
    assert effect.attrs['smoothness'] is None and 'call smoothness(run, data)' in capsys.readouterr().err
    assert 'not measured' in effect.attrs['warning']
    scores = unroll(copy, data, tmp_path/'first.csv', **only)
    found = scores.attrs['smoothness']
    assert -1 <= found <= 1 and not (tmp_path/'run.smoothness').exists()
    monkeypatch.setattr(whole_run, 'fit', lambda *_, **__: pytest.fail('trained again'))
    assert smoothness(copy, data, device='cpu') == found == facts_of(tmp_path/'first.csv')['smoothness']
    for level, warned in [(found + .1, True), (found - .1, False)]:
        monkeypatch.setattr(whole_run, '_SMOOTH_ENOUGH', level)
        capsys.readouterr()
        scores = unroll(copy, data, tmp_path/'first.csv', **only) # read, not made
        effect = along(copy, data, data.train.index[:5], **only)
        for text in [scores.attrs['warning'], facts_of(tmp_path/'first.csv')['warning'], effect.attrs['warning']]:
            assert (f'{copy} is {found:.2f}' in text and "recipe('smooth')" in text) if warned else text is None
        assert capsys.readouterr().err.count('does not reliably predict') == 2 * warned

def measure(run, data): return smoothness(run, data, device='cpu')

@pytest.mark.long
def test_two_processes_that_measure_one_run_do_not_disturb_each_other(data, run, tmp_path, monkeypatch):
    "The second waits and reads what the first found; before, it removed the first one's runs."
    copy = shutil.copytree(run, tmp_path/'run')
    with ProcessPoolExecutor(2, FORKS) as pool:
        first, second = [pool.submit(measure, copy, data) for _ in range(2)]
        assert first.result() == second.result()
    monkeypatch.setattr(whole_run, 'fit', lambda *_, **__: pytest.fail('trained again'))
    assert smoothness(copy, data, device='cpu') == first.result()

def test_scores_of_an_unfinished_run_say_that_its_smoothness_is_not_measured(data, run, tmp_path, capsys):
    half = shutil.copytree(run, tmp_path/'run')
    shutil.rmtree(half/'epoch_002')
    scores = unroll(half, data, tmp_path/'s.csv', device='cpu')
    assert scores.attrs['smoothness'] is None and facts_of(tmp_path/'s.csv')['smoothness'] is None
    assert 'is not measured' in facts_of(tmp_path/'s.csv')['warning'] and 'is not measured' in capsys.readouterr().err

@pytest.mark.long
def test_an_interrupted_unrolling_resumes_at_its_epoch(data, run, tmp_path, monkeypatch):
    out, whole = tmp_path/'cut.csv', unroll(run, data, tmp_path/'whole.csv', per_finding=True, device='cpu')
    back, taken = _Replay._step_back, []
    def cut(self, moment, *rest):
        if moment.number < self.steps: raise KeyboardInterrupt
        return back(self, moment, *rest)
    monkeypatch.setattr(_Replay, '_step_back', cut)
    with pytest.raises(KeyboardInterrupt): unroll(run, data, out, per_finding=True, device='cpu')
    assert not out.exists() and [path.name for path in tmp_path.glob('.cut.unrolling')]
    monkeypatch.setattr(_Replay, '_step_back', lambda self, moment, *rest: (taken.append(moment.number), back(self, moment, *rest))[1])
    unroll(run, data, tmp_path/'cut2.csv', first_epoch=2, device='cpu') # another pass does not take it up
    taken.clear()
    again = unroll(run, data, out, per_finding=True, device='cpu')
    assert max(taken) < len(taken) and 2 * len(taken) == facts_of(out)['steps'] and not [*tmp_path.glob('.cut.unrolling')]
    np.testing.assert_allclose(again, whole, rtol=1e-6, atol=1e-9)

@pytest.mark.long
def test_a_network_that_the_faster_way_does_not_fit_takes_the_plain_one(data, run, tmp_path, monkeypatch, capsys):
    only = dict(first_epoch=2, device='cpu')
    scores, quickly = unroll(run, data, tmp_path/'fast.csv', **only).influence, whole_run._reverse_quickly
    def fails(*_): raise NotImplementedError('no forward mode for this layer')
    def differs(*given):
        found, shares, apart = quickly(*given)
        return found, 2 * shares, apart
    for number, (way, why) in enumerate([(fails, 'no forward mode'), (differs, 'it differs by 1')]):
        monkeypatch.setattr(whole_run, '_reverse_quickly', way)
        plain = unroll(run, data, tmp_path/f'{number}.csv', **only).influence
        assert f'does not fit this network ({why}' in capsys.readouterr().err
        np.testing.assert_allclose(plain, scores, atol=1e-3 * scores.abs().max())

# ---- TracIn at every step

def naively(run, data, weights, first_epoch):
    "In float64, one image and one target at a time."
    replay, found = _Replay(run, data, 'cpu'), np.zeros((len(data), 2 * len(weights)))
    model, loss = replay.training.model, replay.training.loss
    wide = deepcopy(model).double()
    def images(rows):
        x, y, _ = next(iter(whole_run._Loader(data, rows, len(rows))))
        return x.double(), y.double()
    def gradient(value): return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*wide.parameters()])])
    vx, vy = images(data.rows('validation'))
    for epoch in range(first_epoch, replay.epochs + 1):
        begin = (epoch - 1) * replay.steps
        for moment in replay._walk(replay._at(epoch - 1), begin, begin + replay.steps):
            tensors = replay.net.named(moment.before.p) | whole_run._buffers(replay.net, moment.before.r)
            wide.load_state_dict({name: t.double() for name, t in tensors.items()}, strict=False)
            wide.eval()
            own = [gradient(loss(wide(x[None]), y[None]).sum()) for x, y in zip(*images(moment.rows))]
            facts = replay.facts
            root = (moment.after.v.double() / (1 - facts['betas'][1]**(moment.number + 1)) + facts['root_epsilon']).sqrt() + 1e-8
            targets = [gradient((w.double() * loss(wide(vx), vy)).sum()) for w in weights]
            for place, v in enumerate([*targets, *(v / root for v in targets)]):
                found[moment.rows, place] += [moment.at.rate / len(own) * float(g @ v) for g in own]
    return found[data.rows('train')]

@pytest.mark.long
def test_tracin_at_every_step_is_the_plain_sum_kept_by_epoch(data, run, tmp_path, monkeypatch):
    group, n = list(data.validation.index[:3]), len(data.validation)
    out, whole = tmp_path/'steps.csv', torch.full((n, 14), 1 / n)
    three = torch.zeros(n, 14)
    three[:3] = 1 / 3
    late = every_step(run, data, out, groups={'three': group}, first_epoch=2, device='cpu')
    names = ['influence', 'influence_three', 'optimiser_aware', 'optimiser_aware_three']
    assert list(late) == ['influence', 'rank', *names[1:]] and list(late.index) == list(data.train.index)
    plain = naively(run, data, torch.stack([whole, three]), 2)
    for name, own in zip(names, plain.T): np.testing.assert_allclose(late[name], own, atol=1e-3 * np.abs(own).max())
    every_epoch = every_step(run, data, out, groups={'three': group}, device='cpu')
    first = every_epoch[names] - late[names]
    assert (first.abs().sum() > 0).all() and facts_of(out)['first_epoch'] == 1
    monkeypatch.setattr(every, '_score_step', lambda *_: pytest.fail('computed again'))
    again = every_step(run, data, out, groups={'three': group}, device='cpu')
    assert again.equals(every_epoch)
    with pytest.raises(pytest.fail.Exception): every_step(run, data, out, device='cpu') # another question
    for changes, words in [(dict(first_epoch=0), 'first_epoch is 0'), (dict(memory=1), 'memory is no setting'),
                           (dict(against='nobody'), 'No image is of split nobody')]:
        with pytest.raises(InputError, match=words): every_step(run, data, out, device='cpu', **changes)

def test_findings_of_every_step_add_up(data, run, tmp_path):
    scores = every_step(run, data, tmp_path/'s.csv', per_finding=True, first_epoch=2, device='cpu')
    for kind in ['influence', 'optimiser_aware']:
        parts = scores[[f'{kind}_{name}' for name in data.findings]]
        np.testing.assert_allclose(parts.sum(axis=1), scores[kind], atol=1e-6 * scores[kind].abs().max())

# ---- refusals

@pytest.mark.parametrize('changes, words', [(dict(ema=.9), 'with ema 0.9'), (dict(mixed_precision='bf16'), 'mixed_precision bf16')])
def test_runs_that_cannot_be_unrolled_are_refused(data, tmp_path, changes, words):
    fit(data, tmp_path/'run', recipe('smooth', epochs=1)._replace(**changes), device='cpu')
    for call in [lambda: unroll(tmp_path/'run', data, tmp_path/'s.csv'), lambda: smoothness(tmp_path/'run', data)]:
        with pytest.raises(InputError, match=words): call()
    assert not (tmp_path/'s.csv').exists()

def test_invalid_requests_are_refused_before_the_work(data, run, tmp_path, monkeypatch):
    monkeypatch.setattr(_Replay, '_unroll', lambda *_, **__: pytest.fail('computed'))
    for changes, words in [(dict(first_epoch=3), 'first_epoch is 3: give 1 to 2'), (dict(memory=-1), 'memory is -1'),
                           (dict(against='nobody'), 'No image is of split nobody'),
                           (dict(groups={'Mass': list(data.validation.index)}), 'name of a finding')]:
        with pytest.raises(InputError, match=words): unroll(run, data, tmp_path/'s.csv', device='cpu', **changes)
    for group, words in [(['x.png'], 'x.png is no training image'), ([], 'has no image'),
                         (list(data.validation.index[:1]), 'is no training image')]:
        with pytest.raises(InputError, match=words): along(run, data, group, device='cpu')
    other = data.with_frame(data.frame.assign(Mass=0.))
    with pytest.raises(InputError, match='trained on other images'): unroll(run, other, tmp_path/'s.csv', device='cpu')

def test_steps_that_lead_elsewhere_are_refused(data, run, tmp_path, monkeypatch):
    rate = _Training._set_rate
    def other(self):
        rate(self)
        for group in self.optimizer.param_groups: group['lr'] *= 1.5
    monkeypatch.setattr(_Training, '_set_rate', other)
    with pytest.raises(InputError, match='Taken again, the steps of epoch 2 end'): unroll(run, data, tmp_path/'s.csv', device='cpu')

def test_a_layer_that_the_equations_leave_out_is_refused(data, run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r'\(Dropout\) is random'):
        whole_run._check_layers(make_model('vgg11'))
    original = whole_run._Network
    def scaled(model, loss): # a network that is not the one trained
        net = original(model, loss)
        net.loss = lambda z, y: loss(2 * z if net.model.training else z, y)
        return net
    monkeypatch.setattr(whole_run, '_Network', scaled)
    with pytest.raises(InputError, match='by the equations differs'): unroll(run, data, tmp_path/'s.csv', device='cpu')
