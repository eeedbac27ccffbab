"Classes that exclude each other: the softmax loss, and a run with it, from its table to scores, valuations, subsets and commands."
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score

from conftest import refused
from test_brought_models import near, reference
from cxr_influence.attribution.densenet import densenet_directional_scores, watch_densenet
from cxr_influence.attribution.layerwise import gradient_scores
from cxr_influence.attribution.pairwise import pairwise
from cxr_influence.attribution.pools import score_images
from cxr_influence.attribution.scoring import influence
from cxr_influence.attribution.tracin import directional_scores
from cxr_influence.data.batches import Data, batches
from cxr_influence.data.labels import FINDINGS, _check_classes
from cxr_influence.evidence.faithfulness import subset_losses
from cxr_influence.evidence.label_errors import LabelNoise, inject_label_noise, noisy_run
from cxr_influence.evidence.subsets import run_subsets, subset_grid
from cxr_influence.evidence.valuations import valuations
from cxr_influence.measures.calibration import Temperature, fit_temperature, held_out_scaling
from cxr_influence.training.checkpoints import Recipe, list_checkpoints
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.imports import import_checkpoint
from cxr_influence.training.loop import predict
from cxr_influence.training.losses import FocalLoss, SoftmaxLoss, _loss_of, training_loss
from cxr_influence.training.model_card import write_model_card
from cxr_influence.training.networks import make_model
from cxr_influence.training.resume import fit

CLASSES = ['Normal', 'Effusion alone', 'Other']
SMALL = Recipe('densenet_small', epochs=2, batch_size=16, learning_rate=2e-3)

def classes_of(frame, names=CLASSES):
    "Turn a table of the fourteen into exclusive classes."
    count = frame[list(FINDINGS)].sum(axis=1)
    first, alone = count == 0, (frame.Effusion == 1) & (count == 1)
    columns = dict(zip(names, [first, alone, ~first & ~alone]))
    own = frame.drop(columns=list(FINDINGS)).assign(**{name: one.astype('float32') for name, one in columns.items()})
    own.attrs['findings'] = list(names)
    return own

@pytest.fixture(scope='module')
def made(data, tmp_path_factory):
    "Data of three classes, one image of training unknown, and a run."
    frame = classes_of(data.frame)
    frame.loc[frame.index[frame.split == 'train'][3], CLASSES] = np.nan
    own, folder = Data(frame, data.store), tmp_path_factory.mktemp('softmax')/'run'
    fit(own, folder, SMALL._replace(loss=SoftmaxLoss(.1, [1., 2, .5])), device='cpu')
    return own, folder

def drawn(n, count):
    torch.seed()
    return torch.randn(n, count).double() * 3, F.one_hot(torch.randint(0, count, (n,)), count).double()

@pytest.mark.parametrize('count', [2, 3, 14, 40])
@pytest.mark.parametrize('smoothing', [0., .2])
def test_the_shares_add_up_to_pytorchs_cross_entropy(count, smoothing):
    z, y = drawn(20, count)
    weights = torch.rand(count).double() * 4 + .1
    loss = SoftmaxLoss(smoothing, weights)
    weights = loss.class_weights.double() # float32, as a checkpoint keeps them
    whole = F.cross_entropy(z, y.argmax(1), weights, reduction='none', label_smoothing=smoothing)
    torch.testing.assert_close(loss(z, y).sum(1), whole)
    if not smoothing: assert ((loss(z, y) != 0) == (y == 1)).all()
    equal = F.cross_entropy(z, y.argmax(1), reduction='none', label_smoothing=smoothing)
    torch.testing.assert_close(SoftmaxLoss(smoothing)(z, y).sum(1), equal)
    again = _loss_of(json.loads(json.dumps(loss.settings())))
    assert type(again) is SoftmaxLoss and torch.equal(again(z, y), loss(z, y))
    y[4] = float('nan')
    assert loss(z, y)[4].eq(0).all() and torch.equal(loss(z, y)[5], loss(z[5:6], y[5:6])[0])
    y[5, 0] = float('nan') # partly known is nothing, and never a number
    assert loss(z, y)[5].sum().isnan()
    with refused('(20, 1)'): loss(z[:, :1], y)

def test_old_facts_are_of_the_focal_loss():
    old = FocalLoss(gamma=1., class_weights=[1., 2.]).settings()
    assert 'kind' not in old and type(_loss_of(old)) is FocalLoss
    for wrong in [{'kind': 'hinge'}, {'kind': 'softmax', 'gamma': 1.}, {'kind': 3}]:
        with pytest.raises((TypeError, ValueError)): _loss_of(wrong)

@pytest.mark.parametrize('scale', [1., 30., 3000.])
def test_log_odds_are_those_of_the_softmax(scale):
    z, y = drawn(50, 5)
    odds = SoftmaxLoss().log_odds(z * scale)
    assert odds.isfinite().all()
    torch.testing.assert_close(odds.sigmoid(), (z * scale).softmax(1), rtol=1e-6, atol=1e-300)
    assert torch.equal(FocalLoss().log_odds(z), z)

@pytest.mark.parametrize('backbone', ['densenet_small', 'shufflenet_v2_x0_5'])
@pytest.mark.parametrize('count', [2, 5])
def test_every_engine_is_one_backward_pass_an_image_in_float64(backbone, count):
    torch.seed()
    model, (_, y) = make_model(backbone, findings=[f'c{i}' for i in range(count)]).double().eval(), drawn(4, count)
    x, loss = torch.randn(4, 3, 40, 40).double(), SoftmaxLoss(.1, torch.rand(count) + .5)
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scores, squares = reference(model, loss, x, y, v)
    one = {name: p[None] for name, p in v.items()}
    found = gradient_scores(model, loss, x, y, one)
    near(found.products[:, 0], scores), near(found.squares, squares), near(directional_scores(model, loss, x, y, v)[0], scores)
    if backbone == 'densenet_small':
        near(densenet_directional_scores(model, loss, x, y, v)[0], scores)
        near(gradient_scores(model, loss, x, y, one, watch_densenet).products[:, 0], scores)

def definition(run, data, rows, columns):
    "Scores of rows by one backward pass an image in float64, with cross-entropy as PyTorch has it."
    total = np.zeros((len(rows), len(columns)))
    for checkpoint in list_checkpoints(run):
        model, facts = checkpoint.model().double(), checkpoint.facts['loss']
        weights = torch.tensor(facts['class_weights']).double()
        def losses(rows):
            x, y, _ = next(iter(batches(data, rows, 1000)))
            return F.cross_entropy(model(x.double()), y.argmax(1), weights, reduction='none', label_smoothing=facts['label_smoothing']), y
        of, y = losses(data.rows('validation'))
        assert facts['label_smoothing'] == .1
        targets = {'influence': of.mean()}
        x, y, _ = next(iter(batches(data, data.rows('validation'), 1000)))
        log_p = model(x.double()).log_softmax(1)
        soft = y.double() * .9 + .1 / y.shape[1]
        for j, name in enumerate(data.findings): targets[f'influence_{name}'] = (-soft * log_p * weights)[:, j].mean()
        parameters = [*model.parameters()]
        vs = [torch.autograd.grad(targets[name], parameters, retain_graph=True) for name in columns]
        for i, row in enumerate(rows):
            g = torch.autograd.grad(losses([row])[0].sum(), parameters)
            total[i] += [checkpoint.facts['learning_rate'] * float(sum((a * b).sum() for a, b in zip(g, v))) for v in vs]
    return total

def close(a, b): return np.abs(np.asarray(a) - np.asarray(b)).max() <= 2e-3 * np.abs(np.asarray(b)).max()

def test_scores_of_a_run_are_those_of_the_definition(made, tmp_path):
    data, run = made
    scores = influence(run, data, tmp_path/'s.csv', device='cpu')
    columns, rows = ['influence', *(f'influence_{name}' for name in CLASSES)], data.rows('train')[[0, 1, -1]]
    right = definition(run, data, rows, columns)
    assert close(scores.loc[data.frame.index[rows], columns], right)
    assert close(scores[columns[1:]].sum(axis=1), scores.influence)
    unknown = data.train.index[3]
    assert scores.influence[unknown] == scores.loss[unknown] == 0
    some = score_images(run, data, data, tmp_path/'p.csv', data.frame.index[rows], device='cpu')
    assert close(some[columns], right)
    pairs = pairwise(run, data, tmp_path/'pairs', images=data.validation.index[:2], top=2, finding='Other', device='cpu')
    assert np.isfinite(pairs.score).all()

def test_probabilities_are_of_the_softmax_everywhere(made, tmp_path):
    data, run = made
    checkpoint = list_checkpoints(run)[-1]
    found = evaluate_checkpoint(checkpoint, data, 'cpu')
    z = predict(checkpoint.model(), data, data.rows('test')).double().numpy()
    assert np.allclose(found.unscaled, softmax(z, axis=1), atol=1e-6) and np.allclose(found.probabilities.sum(axis=1), 1)
    assert np.allclose(found.held_out.sum(axis=1), 1) and isinstance(found.scaling, Temperature)
    assert np.allclose(found.probabilities, softmax(z / found.scaling.temperature, axis=1), atol=1e-6)
    y = data.test[CLASSES].to_numpy()
    for j, name in enumerate(CLASSES):
        if 0 < y[:, j].sum() < len(y): assert np.isclose(found.unscaled_table.auroc[name], roc_auc_score(y[:, j], softmax(z, axis=1)[:, j]))
    rows = data.rows('validation')
    p, y = softmax(predict(checkpoint.model(), data, rows).double().numpy(), axis=1), data.validation[CLASSES].to_numpy()
    each = [roc_auc_score(y[:, j], p[:, j]) for j in range(3) if 0 < y[:, j].sum() < len(y)]
    assert np.isclose(checkpoint.facts['validation_auroc'], np.mean(each), atol=1e-4)
    card = write_model_card(checkpoint.facts, found.table, data, tmp_path).read_text()
    assert '3 exclusive classes' in card and '--loss softmax' in card and 'independent' not in card

def test_a_class_is_ranked_by_its_probability_and_not_by_its_logit():
    z = torch.tensor([[3., 9, 0], [1., -5, -5], [2., 8, 0], [0., -6, -6]]) # the first class: by logit 1 of 4 pairs, by probability all
    y = np.array([0, 1, 0, 1])
    assert roc_auc_score(y, z[:, 0]) == 0 and roc_auc_score(y, SoftmaxLoss().log_odds(z)[:, 0]) == 1

def test_one_temperature_is_the_minimum_of_the_cross_entropy():
    rng = np.random.default_rng()
    z = rng.normal(size=(3000, 4)) * 1.5
    y = np.eye(4)[[rng.choice(4, p=p) for p in softmax(z, axis=1)]]
    for factor in [.3, 1, 4]:
        found = fit_temperature(y, z * factor).temperature
        assert abs(found / factor - 1) < .25
        def value(t): return np.log(t)**2 / 2 - (y * log_softmax(z * factor / t, axis=1)).sum()
        assert value(found) <= min(value(found * 1.01), value(found / 1.01)) + 1e-6
    y[:2000] = np.nan
    assert np.isclose(fit_temperature(y, z).temperature, fit_temperature(y[2000:], z[2000:]).temperature)
    assert fit_temperature(y[:9], z[:9]) == Temperature(1.) and np.isfinite(fit_temperature(np.eye(4), np.eye(4) * 50).temperature)
    assert np.isnan(held_out_scaling(y, z, np.zeros(3000), fit=fit_temperature)).all()

def test_valuations_of_classes_are_the_papers(made, tmp_path):
    data, run = made
    names = ['loss', 'worst_loss', 'standardised_loss', 'el2n', 'aum', 'forgetting', 'grand', 'knn_shapley', 'influence', 'last_layer', 'confident']
    values = valuations(run, data, tmp_path, names, folds=2, device='cpu')
    assert values.notna().all(axis=None) and values.shape == (len(data.train), len(names))
    rows, y = data.rows('train'), data.train[CLASSES].to_numpy()
    logits = np.stack([predict(one.model(), data, rows).double().numpy() for one in list_checkpoints(run)])
    known = ~np.isnan(y).any(1)
    right = [z.argmax(1) == y.argmax(1) for z in logits]
    events = np.where(~right[0] & ~right[1], 2, right[0] & ~right[1])
    assert (values.forgetting[known] == events[known]).all() and values.forgetting[~known].eq(0).all()
    p = softmax(logits[0] / fit_temperature(y, logits[0]).temperature, axis=1)
    assert np.allclose(values.el2n[known], np.linalg.norm(p - y, axis=1)[known], atol=1e-5)
    margin = np.mean([[row[own] - np.delete(row, own).max() for row, own in zip(z / fit_temperature(y, z).temperature, np.nan_to_num(y).argmax(1))]
                      for z in logits], axis=0)
    assert np.allclose(values.aum[known], margin[known], atol=1e-4)
    own = pd.Series(values.loss[known].to_numpy()).groupby(y[known].argmax(1)).transform(lambda part: (part - part.mean()) / part.std())
    assert np.allclose(values.standardised_loss[known], own, atol=1e-3)

def test_subsets_retrainings_and_imports(made, tmp_path):
    data, run = made
    grid = subset_grid(pd.DataFrame({'s': np.arange(len(data.train)) * 1.}, data.train.index), data.frame, {'remove': [.5]}, ['random'], [0])
    rows = run_subsets(run, data, grid, tmp_path/'r')
    assert {f'auroc_{name}' for name in CLASSES} <= {*rows} and rows.auroc.between(0, 1).all()
    for path in (tmp_path/'r').glob('*.parquet'): assert np.allclose(pd.read_parquet(path).sum(axis=1), 1)
    losses = subset_losses(data, SMALL._replace(epochs=1, loss=SoftmaxLoss()), np.arange(len(data.train))[None] % 2 == 0, [0], tmp_path/'f')
    assert losses.shape == (1, 1, len(data.validation), 3) and ((losses[0, 0] != 0) == (data.validation[CLASSES] == 1)).all(axis=None)
    weights = list_checkpoints(run)[-1].folder/'model.safetensors'
    brought = import_checkpoint(weights, 'densenet_small', 'softmax', 1e-3, data, tmp_path/'brought')
    assert brought.facts['loss'] == dict(kind='softmax', label_smoothing=0., class_weights=[1.] * 3)
    scores = influence(tmp_path/'brought', data, tmp_path/'b.csv', per_finding=False, device='cpu')
    assert np.isfinite(scores.influence).all()
    again = fit(data, run, list_checkpoints(run)[0].recipe(), device='cpu') # finds it done
    assert len(again) == 2 and len(list_checkpoints(run)) == 2

def test_labels_that_are_no_classes_are_refused_at_every_door(made, data, tmp_path):
    own, run = made
    before = {path: path.stat().st_mtime_ns for path in run.rglob('*')}
    row, cases = own.frame.index[7], {}
    for words, values in {'the classes Normal, Other,': [1, 0, 1], 'no class,': [0, 0, 0], 'the classes Other and others that are not known': [np.nan, 0, 1],
                          'no class and others': [0, 0, np.nan], 'the classes Normal, Effusion alone, Other': [1, 1, 1]}.items():
        frame = own.frame.copy()
        frame.loc[row, CLASSES] = values
        cases[words] = Data(frame, own.store)
    checkpoint, recipe = list_checkpoints(run)[0], SMALL._replace(loss=SoftmaxLoss())
    weights = checkpoint.folder/'model.safetensors'
    for words, wrong in cases.items():
        for call in [lambda: training_loss('softmax', wrong.frame), lambda: fit(wrong, tmp_path/'x', recipe, device='cpu'),
                     lambda: influence(run, wrong, tmp_path/'a.csv'), lambda: score_images(run, wrong, own, tmp_path/'a.csv', own.train.index[:2]),
                     lambda: pairwise(run, wrong, tmp_path/'p'), lambda: valuations(run, wrong, tmp_path/'v', ['loss']),
                     lambda: evaluate_checkpoint(checkpoint, wrong, 'cpu'), lambda: import_checkpoint(weights, 'densenet_small', SoftmaxLoss(), 1e-3, wrong, tmp_path/'i'),
                     lambda: run_subsets(run, wrong, subset_grid(pd.DataFrame({'s': 0.}, wrong.train.index), wrong.frame), tmp_path/'r')]:
            with refused(row, words, 'exactly one', 'Normal'): call()
    with refused('exclude each other'): fit(data, tmp_path/'x', recipe, device='cpu') # NIH's: No Finding is no class
    with refused('3 class weights', '14 findings'): fit(data, tmp_path/'x', SMALL._replace(loss=SoftmaxLoss(0., [1., 2, 3])), device='cpu')
    alone = own.frame.drop(columns=CLASSES[1:])
    alone.attrs['findings'] = CLASSES[:1]
    with refused('Normal', 'at least two'): _check_classes(alone)
    with refused('one_finding', 'swapped'): noisy_run(own, recipe, LabelNoise('one_finding', 'Other'), 0, tmp_path/'n')
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob('*')} and not [*tmp_path.glob('[axvpri]*')]

def test_swapped_labels_are_classes_again(made, tmp_path):
    own, _ = made
    noisy, truth = inject_label_noise(own.frame, LabelNoise('swapped', share=.3), 1)
    _check_classes(noisy)
    with refused('exclude each other'): _check_classes(inject_label_noise(own.frame, LabelNoise('one_of_fourteen', share=.3), 1)[0])
