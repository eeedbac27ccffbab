"Scores of other libraries: against their plain formulas, in double precision, with fresh random inputs."
import copy, importlib.util, sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from conftest import sentence
from cxr_influence.attribution.scoring import query_losses
from cxr_influence.data.batches import load_data
from cxr_influence.evidence import peers as module
from cxr_influence.evidence.peers import peer_scores
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.losses import FocalLoss, SoftmaxLoss
from cxr_influence.training.recipes import recipe
from cxr_influence.training.resume import fit

@pytest.fixture
def kronfluence(): pytest.importorskip('kronfluence', reason='kronfluence is not installed here')

@pytest.fixture
def dattri(): pytest.importorskip('dattri.algorithm.trak', reason='dattri is not installed here')

def network():
    "A convolution, BatchNorm with statistics of its own, and a linear layer with a bias."
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))
    net.train()(torch.randn(8, 1, 6, 6))
    return net.double().eval()

def problem_of(nets, n=24, targets=5, k=2, times=None):
    "A random problem: images, targets and weights."
    x, y = torch.randn(n + targets, 1, 6, 6).double(), torch.randint(2, (n + targets, 3)).double()
    loss = FocalLoss(float(torch.rand(()) * 2), .1, 1 + torch.rand(3))
    return module._Problem([lambda net=net: copy.deepcopy(net) for net in nets], times or [1.] * len(nets), loss, TensorDataset(x[:n], y[:n]),
                           [(x[n:], y[n:])], torch.rand(k, targets, 3).double(), batch_size=7)

def jacobian(net, values, names): # (len(values), parameters)
    parameters = [p for name, p in net.named_parameters() if name in names]
    rows = [torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True, materialize_grads=True) for v in values.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

def gradients(problem, net, names): # of every image's loss, of every target
    x, y = problem.images.tensors
    (a, b), = problem.queries
    targets = (problem.loss(net(a), b) * problem.weights[:, :]).sum((1, 2))
    return jacobian(net, problem.loss(net(x), y).sum(1), names), jacobian(net, targets, names)

LAYERS = ['0.weight', '5.weight', '5.bias']

def by_layer(net, flat): # (k, parameters) of LAYERS -> the matrices kronfluence makes of them
    conv, weight, bias = flat.split([18, 24, 3], 1)
    return {'0': conv.view(-1, 2, 9), '5': torch.cat([weight.view(-1, 3, 8), bias[..., None]], 2)}

def dense(factors): # layer -> the whole matrix of its curvature
    return {layer: torch.einsum('or,is,rs,pr,js->oipj', own.back, own.inside, own.curvature, own.back, own.inside).flatten(2).flatten(0, 1)
            for layer, own in factors.items()}

def test_the_sampled_gradients_have_the_losses_curvature():
    for loss in [FocalLoss(0., .2, 1 + torch.rand(3)), SoftmaxLoss(.1), FocalLoss(2.)]:
        z, y = torch.randn(1, 3).double(), torch.tensor([[0., 1., 0.]]).double()
        many = z.repeat(40_000, 1).requires_grad_()
        value = module._sampled_loss(loss, many, y.expand(len(many), -1), torch.Generator().manual_seed(torch.seed() % 2**32))
        g, = torch.autograd.grad(value, many)
        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(lambda z: loss(z, y).sum(), z).view(3, 3))
        wanted = vectors @ torch.diag(values.clamp(min=0)) @ vectors.T # what curves down counts as 0
        assert torch.allclose(g.T @ g / len(g), wanted, atol=.05 * float(values.abs().max()) + 1e-9)

def test_factors_measure_second_derivatives_in_the_basis_of_covariances(kronfluence, monkeypatch):
    problem = problem_of([network()])
    def one_gradient(loss, z, y, generator): return loss(z, y).sum() # instead of sampled ones: the empirical Fisher matrix
    monkeypatch.setattr(module, '_sampled_loss', one_gradient)
    net, factors = problem.models[0](), module._fit_factors(problem, problem.models)
    own, _ = gradients(problem, net, LAYERS)
    for layer, g in by_layer(net, own).items():
        f = factors[layer]
        assert torch.allclose(f.curvature, (f.back.T @ g @ f.inside).square().mean(0))
        assert torch.allclose(f.back @ f.back.T, torch.eye(len(f.back)).double(), atol=1e-8)
    x, y = problem.images.tensors
    back = jacobian(net, problem.loss(net(x), y).sum(), LAYERS) # the linear layer's covariances, written out
    a = torch.cat([net[:5](x), torch.ones(len(x), 1).double()], 1)
    z = net(x).detach().requires_grad_()
    d, = torch.autograd.grad(problem.loss(z, y).sum(), z)
    for basis, rows in [(factors['5'].inside, a), (factors['5'].back, d)]:
        turned = basis.T @ (rows.T @ rows / len(rows)) @ basis
        assert torch.allclose(turned, torch.diag(turned.diag()), atol=1e-8 * float(turned.detach().max())) and len(back) == 1

@pytest.mark.long
def test_ekfac_is_its_formula_and_kronfluences_score(kronfluence, tmp_path):
    from kronfluence.arguments import FactorArguments, ScoreArguments
    problem = problem_of([network()])
    net, found = problem.models[0](), module._ekfac(problem)
    own, targets = (by_layer(net, g) for g in gradients(problem, net, LAYERS))
    curvature, plain = dense(module._fit_factors(problem, problem.models)), 0
    for layer, h in curvature.items():
        damped = h + .1 * h.diag().mean() * torch.eye(len(h)).double()
        plain += targets[layer].flatten(1) @ torch.linalg.solve(damped, own[layer].flatten(1).T) / len(problem.images)
    assert torch.allclose(found, plain)
    generator = torch.Generator().manual_seed(0)
    analyzer = module._analyzer(problem.models[0](), problem.loss, torch.device('cpu'), tmp_path, generator)
    exact = ['activation_covariance_dtype', 'gradient_covariance_dtype', 'per_sample_gradient_dtype', 'lambda_dtype']
    analyzer.fit_all_factors('all', problem.images, 7, factor_args=FactorArguments(**dict.fromkeys(exact, torch.float64)))
    args = ScoreArguments(damping_factor=None, **dict.fromkeys(['per_sample_gradient_dtype', 'precondition_dtype', 'score_dtype'], torch.float64))
    analyzer.compute_pairwise_scores('all', 'all', TensorDataset(*problem.queries[0]), problem.images, 5, 7, score_args=args)
    each = problem._replace(weights=torch.eye(5).double()[..., None].expand(5, 5, 3)) # a target per validation image
    theirs = analyzer.load_pairwise_scores('all')['all_modules'] / len(problem.images)
    assert torch.allclose(module._ekfac(each), theirs, rtol=1e-5, atol=1e-7 * float(theirs.abs().max()))

@pytest.mark.long
def test_source_adds_up_its_segments(kronfluence):
    nets = [network() for _ in range(4)] # segments of 2, 1 and 1 epochs
    problem = problem_of(nets, times=torch.rand(4).mul(20).tolist())
    found, plain = module._source(problem), 0
    _, targets = gradients(problem, nets[-1], LAYERS)
    vectors = {layer: g.flatten(1) for layer, g in by_layer(nets[-1], targets).items()}
    for part in [[3], [2], [0, 1]]:
        time, curvature = sum(problem.times[i] for i in part), dense(module._fit_factors(problem, [problem.models[i] for i in part]))
        for i in part:
            own, _ = gradients(problem, nets[i], LAYERS)
            for layer, g in by_layer(nets[i], own).items():
                values, basis = torch.linalg.eigh(curvature[layer])
                moved = torch.where(values * time > 1e-9, (1 - torch.exp(-time * values)) / values, time)
                plain += vectors[layer] @ basis @ torch.diag(moved) @ basis.T @ g.flatten(1).T / len(part) / len(problem.images)
        vectors = {layer: v @ torch.matrix_exp(-time * curvature[layer]) for layer, v in vectors.items()}
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-7 * float(plain.abs().max()))

def test_source_of_little_curvature_is_tracin_and_of_much_an_influence_function(kronfluence):
    h = torch.rand(4, 3).double() + .1
    assert torch.allclose(module._moving(1e-9)(h), torch.full_like(h, 1e-9)) and torch.allclose(module._moving(1e6)(h), 1 / h)
    assert torch.equal(module._moving(3.)(torch.zeros(2)), torch.full((2,), 3.))
    problem = problem_of([network()], times=[1e-7])
    own, targets = gradients(problem, problem.models[0](), LAYERS)
    assert torch.allclose(module._source(problem), 1e-7 * targets @ own.T / len(problem.images), rtol=1e-4)

@pytest.mark.parametrize('loss', [FocalLoss(2., .1), FocalLoss(0., 0.), SoftmaxLoss()])
def test_trak_is_its_formula_and_leaves_unknown_labels_out(dattri, loss):
    net = network()
    problem = problem_of([net], n=100)._replace(loss=loss)
    x, y = problem.images.tensors
    if type(loss) is FocalLoss: y[3, 1] = torch.nan
    names = [name for name, _ in net.named_parameters()]
    count = sum(p.numel() for p in net.parameters()) # with as many dimensions, projecting changes nothing
    found = module._trak(problem, dimensions=count)
    rows = jacobian(net, net(x), names)
    if type(loss) is FocalLoss: rows[3 * 3 + 1] = 0
    own, targets = gradients(problem, net, names)
    plain = targets @ torch.linalg.solve(rows.T @ rows, own.T)
    assert torch.allclose(found, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
    few = module._trak(problem, dimensions=20)
    assert torch.equal(few, module._trak(problem, dimensions=20)) and not torch.allclose(few, found, rtol=.1)

@pytest.mark.long
def test_weights_of_labels_move_a_linear_network_as_scores_say(kronfluence, dattri):
    "A logistic regression is the case that all of them are exact for, up to terms of higher order, which a tenth of a weight keeps small."
    n, loss = 60, FocalLoss(0., 0.)
    x, net = torch.randn(n + 15, 1, 1, 4).double(), nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
    y = (x.view(-1, 4)[:, :1] + torch.randn(n + 15, 1).double() > 0).double()
    def train(net, w): # to its minimum
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0., line_search_fn='strong_wolfe')
        def closure():
            optimizer.zero_grad()
            value = (w * loss(net(x[:n]), y[:n])[:, 0]).mean()
            value.backward()
            return value
        optimizer.step(closure)
        return net
    def targets(net): return loss(net(x[n:]), y[n:]).detach().view(5, 3).mean(1).numpy() # of three images each
    train(net, torch.ones(n).double())
    actual = [targets(train(copy.deepcopy(net), torch.ones(n).double().index_fill(0, torch.tensor(i), .9))) - targets(net) for i in range(n)]
    problem = module._Problem([lambda: copy.deepcopy(net.eval())], [1e6], loss, TensorDataset(x[:n], y[:n]), [(x[n:], y[n:])],
                              (torch.eye(5).repeat_interleave(3, 1) / 3)[:, :, None].double())
    for scores in [module._ekfac(problem), module._source(problem), module._trak(problem, dimensions=5)]:
        found = [np.corrcoef(*pair)[0, 1] for pair in zip(scores.detach(), np.transpose(actual))]
        assert np.median(found) > .7 # and the sign: positive helps

@pytest.fixture(scope='module')
def data(phantom): # 40 training images
    data = load_data(phantom, 32, stores=phantom.parent/'peers-stores')
    spare = data.frame.index.isin(data.train.index[40:])
    return data.with_frame(data.frame.assign(split=data.frame.split.mask(spare, 'unused')))

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('peers')/'run'
    fit(data, out, recipe('smooth', epochs=2, batch_size=16), seed=3, device='cpu')
    return out

@pytest.fixture(scope='module')
def weights(data): return np.stack([*query_losses(data.frame, True).values()])

@pytest.mark.long
def test_a_run_is_scored_once_and_read_afterwards(data, run, weights, tmp_path, monkeypatch, kronfluence):
    monkeypatch.chdir(tmp_path)
    names = ['EK-FAC', 'SOURCE']
    state = torch.get_rng_state()
    both = np.stack([weights[0], weights[2], weights[0] + weights[2]])
    scores, seconds = peer_scores(run, data, 'kept', both, names, device='cpu')
    assert torch.equal(state, torch.get_rng_state()) # nobody's random numbers change
    assert [*scores] == names and all(own.shape == (3, len(data.train)) and own.any() for own in scores.values())
    left = {path.name for path in tmp_path.rglob('*') if not path.name.startswith('.')}
    assert left == {'kept', 'ek-fac.parquet', 'source.parquet'} # none of kronfluence's own
    for own in scores.values(): # a sum of targets has the sum of their scores
        np.testing.assert_allclose(own[2], own[0] + own[1], rtol=1e-2, atol=1e-3 * np.abs(own).max())
    late, _ = peer_scores(run, data, 'late', both, 'SOURCE', first_epoch=2, device='cpu')
    assert not np.allclose(late['SOURCE'], scores['SOURCE'], rtol=.05)
    made = []
    monkeypatch.setattr(module, '_problem_of', lambda *given: made.append(given))
    again, same = peer_scores(run, data, 'kept', both, names, device='cpu')
    peer_scores(run, data, 'kept', both, 'EK-FAC', first_epoch=2, device='cpu') # of the end, whatever the window
    assert not made and same == seconds and all(np.array_equal(again[name], scores[name]) for name in names)

def test_refusals_are_one_sentence(data, run, weights, tmp_path, kronfluence, monkeypatch):
    def said(*given, **settings): return sentence(peer_scores, run, *given, **settings)
    assert 'no peer KFAC: use EK-FAC, SOURCE, TRAK' in said(data, tmp_path, weights, ['KFAC'])
    assert 'give finite numbers' in said(data, tmp_path, weights[:, 1:], 'EK-FAC') and 'give finite numbers' in said(data, tmp_path, weights[0], 'EK-FAC')
    assert 'give finite numbers' in said(data, tmp_path, weights * np.nan, 'EK-FAC')
    assert 'first_epoch from 1' in said(data, tmp_path, weights, 'EK-FAC', first_epoch=3)
    assert 'have weights' in said(data.weighted(np.linspace(.5, 1.5, len(data))), tmp_path, weights, 'EK-FAC')
    other = data.with_frame(data.frame.assign(Hernia=1 - data.frame.Hernia))
    assert 'trained on other images' in said(other, tmp_path, weights, 'EK-FAC')
    with monkeypatch.context() as patch: # as of a version that did not count its steps
        patch.setattr(module, '_epochs_to_sum', lambda run: [one for one in list_checkpoints(run) if one.facts.pop('updates')])
        assert 'SOURCE needs the number of steps' in said(data, tmp_path, weights, 'SOURCE')
    assert not [*tmp_path.iterdir()]

@pytest.mark.parametrize('name, package', [('EK-FAC', 'kronfluence'), ('SOURCE', 'kronfluence'), ('TRAK', 'dattri')])
def test_a_missing_library_is_named_with_what_to_do(data, run, weights, tmp_path, monkeypatch, name, package):
    for known in [known for known in sys.modules if known.split('.')[0] == package]: monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, package, None)
    spec = importlib.util.spec_from_file_location('cxr_influence.evidence.peers_again', module.__file__) # imports without it
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert sentence(again.peer_scores, run, data, tmp_path, weights, name) == f'{package} is missing: pip install {package}.'
    assert not [*tmp_path.iterdir()]

def test_trak_of_a_run_is_that_of_its_last_model(data, run, weights, tmp_path, dattri):
    scores, _ = peer_scores(run, data, tmp_path, weights[[0, 2]], 'TRAK', first_epoch=2, device='cpu')
    problem = module._problem_of(list_checkpoints(run)[-1:], data, weights[[0, 2]], torch.device('cpu'))
    model = problem.models[0]().eval()
    dimensions = len(data.train) * 14 // 4 # a fourth of the labels
    rows, pulls = module._project_all(problem._replace(batch_size=80), model, dimensions) # in other batches
    targets = module._project(module._flat(module._target_gradients(problem)), dimensions)
    plain = -targets @ torch.linalg.pinv(rows) * pulls # (XᵀX)⁻¹ Xᵀ is X's pseudoinverse
    plain = plain.view(2, len(data.train), -1).sum(2)
    assert np.corrcoef(scores['TRAK'].ravel(), plain.ravel())[0, 1] > .99
