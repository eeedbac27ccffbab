"Data valuation methods: their laws, KNN-Shapley by its definition, what is kept, and every refusal in one sentence."
import importlib, itertools, json, os, re, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest, torch
from PIL import Image
from conftest import Script, rewrite, sentence

from cxr_influence.data.batches import Data, batches
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.store import decode
from cxr_influence.training.checkpoints import Recipe, list_checkpoints
from cxr_influence.training.weights import _head_name
from cxr_influence.training.networks import make_model
from cxr_influence.attribution.scoring import influence
from cxr_influence.attribution.layerwise import self_influence
from cxr_influence.attribution.pairwise import open_pairwise, pairwise
from cxr_influence.evidence import retraining
from cxr_influence.evidence.retraining import retrain
from cxr_influence.evidence.subsets import run_subsets, subset_grid
from cxr_influence.evidence.valuations import (VALUATIONS, _margins, _neighbour_agreement,
    _patient_folds, _scale_logits, _targets_of, _training_logits, aum, average_ranks,
    cross_validated_probabilities, el2n, forgetting, gradient_norms, knn_shapley,
    label_error_scores, label_quality, last_layer_features, sla, standardised_loss, valuations)

methods = importlib.import_module('cxr_influence.evidence.valuations') # a function has its name

CHEAP = ['random', 'loss', 'worst_loss', 'standardised_loss', 'el2n', 'aum', 'forgetting', 'knn_shapley']

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture(scope='module')
def all_of_them(data, checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp('valuations')
    return valuations(checkpoints, data, out, VALUATIONS.index, folds=2, device='cpu'), out

def course(rng, checkpoints=5, n=30): return rng.normal(size=(checkpoints, n, 14)), (rng.random((n, 14)) < .3).astype('float32')

def with_gaps(rng, targets): return np.where(rng.random(targets.shape) < .2, np.nan, targets)

# The history

def by_hand(z, y):
    "AUM, forgetting and EL2N of one image, finding by finding, by their definitions."
    known = [k for k in range(14) if not np.isnan(y[k])]
    signed = {k: [(1 if y[k] else -1) * step for step in z[:, k]] for k in known}
    events = 0
    for steps in signed.values():
        right = [step > 0 for step in steps]
        events += sum(a and not b for a, b in zip(right, right[1:])) if any(right) else len(right)
    lengths = [sum((1 / (1 + np.exp(-step[k])) - y[k])**2 for k in known)**.5 for step in z]
    return min(np.mean(steps) for steps in signed.values()), events, np.mean(lengths)

def test_history_valuations_are_their_definitions(rng):
    z, y = course(rng)
    y = with_gaps(rng, y)
    y[:, 0] = 1 # something is known of every image
    expected = np.array([by_hand(z[:, i], y[i]) for i in range(len(y))]).T
    np.testing.assert_allclose([aum(z, y), forgetting(z, y), el2n(z, y)], expected, rtol=1e-6)

def test_history_valuations_do_not_depend_on_the_findings_order(rng):
    z, y = course(rng)
    order = rng.permutation(14)
    for value in [aum, forgetting, el2n]: np.testing.assert_allclose(value(z[:, :, order], y[:, order]), value(z, y))
    assert np.array_equal(_margins(z, 1 - y), -_margins(z, y))

def test_a_flipped_label_never_scores_lower_where_the_model_is_right(rng):
    _, y = course(rng)
    z, k = 3 * (2 * y - 1)[None].repeat(4, 0), rng.integers(14)
    wrong = y.copy()
    wrong[:, k] = 1 - wrong[:, k]
    assert (aum(z, wrong) < aum(z, y)).all() and (el2n(z, wrong) > el2n(z, y)).all() and (forgetting(z, wrong) == 4).all()
    assert (forgetting(z, y) == 0).all()

def test_standardised_loss_is_its_definition(rng):
    losses, y = rng.exponential(rng.uniform(.1, 5, 14), size=(50, 14)), with_gaps(rng, rng.integers(2, size=(50, 14)).astype(float))
    y[0], y[1:, 3] = np.nan, np.nan # nothing is known of an image, nothing of a finding
    known = [[i for i in range(50) if not np.isnan(y[i, k])] for k in range(14)]
    plain = [max(((losses[i, k] - np.mean(losses[known[k], k])) / np.std(losses[known[k], k], ddof=1)
                  for k in range(14) if i in known[k]), default=-np.inf) for i in range(50)]
    np.testing.assert_allclose(standardised_loss(losses, y), plain)
    assert standardised_loss(losses, y)[0] == -np.inf
    scale = rng.uniform(.1, 10, 14)
    np.testing.assert_allclose(standardised_loss(losses * scale + scale, y), plain) # a finding's unit does not matter

def test_scaling_keeps_order_and_meets_the_frequencies(rng):
    y = (rng.random((4000, 14)) < rng.uniform(.05, .5, 14)).astype('float32')
    z = (rng.normal(size=(2, 4000, 14)) + y) * rng.uniform(.3, 3, 14) + rng.normal(0, 2, 14)
    scaled = _scale_logits(z, y)
    np.testing.assert_allclose((1 / (1 + np.exp(-scaled))).mean(1), np.stack([y.mean(0)] * 2), atol=.005)
    for k in range(14): assert np.array_equal(z[0, :, k].argsort(), scaled[0, :, k].argsort())

def test_logits_are_the_checkpoints_and_resume_one_by_one(data, checkpoints, tmp_path, monkeypatch):
    rows, seen = data.rows('train'), []
    found = _training_logits(checkpoints, data, tmp_path, 'cpu')
    x, _, _ = next(batches(data, rows, 1000))
    for z, checkpoint in zip(found, list_checkpoints(checkpoints), strict=True):
        with torch.no_grad(): np.testing.assert_allclose(z, checkpoint.model()(x).numpy(), rtol=1e-3, atol=1e-4)
    (tmp_path/'epoch_002.parquet').unlink()
    before = methods.predict
    monkeypatch.setattr(methods, 'predict', lambda *given: seen.append(given) or before(*given))
    assert np.array_equal(_training_logits(checkpoints, data, tmp_path, 'cpu'), found) and len(seen) == 1
    other = data.frame.assign(Hernia=1 - data.frame.Hernia)
    _training_logits(checkpoints, data.with_frame(other), tmp_path, 'cpu') # other labels, other key
    assert len(seen) == 3 and not list(tmp_path.glob('*.part'))

# Gradients

def test_gradient_lengths_are_roots_of_squares_and_are_shared_with_influence(data, checkpoints, tmp_path, monkeypatch):
    rows = data.rows('train')
    found = gradient_norms(checkpoints, data, tmp_path, 2, 'cpu').grand
    x, y, _ = next(batches(data, rows, 1000))
    expected = np.mean([self_influence(c.model(), c.loss(), x, y).sqrt().numpy() for c in list_checkpoints(checkpoints)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    monkeypatch.setattr('cxr_influence.attribution.scoring._score_rows', lambda *_: pytest.fail('scored twice'))
    scores = influence(checkpoints, data, tmp_path/'influence.csv', device='cpu')
    assert scores.index.equals(data.train.index)

# Confident learning

def test_folds_keep_patients_whole_and_deal_every_image(rng):
    n = int(rng.integers(200, 400))
    frame = pd.DataFrame((rng.random((n, 14)) < .1).astype(float), columns=list(FINDINGS))
    frame['patient'], frame['split'] = rng.integers(0, n // 3, n), 'train'
    frame.loc[frame.patient % 5 == 0, 'split'] = 'validation'
    for folds in [2, 5]:
        numbers = pd.Series(_patient_folds(frame, folds, seed=int(rng.integers(99))), frame.index)
        assert (numbers[frame.split != 'train'] == -1).all() and set(numbers[frame.split == 'train']) == set(range(folds))
        assert (numbers.groupby(frame.patient).nunique() == 1).all()
        assert numbers[numbers >= 0].value_counts().max() < 1.5 * numbers[numbers >= 0].value_counts().min()
    assert not np.array_equal(_patient_folds(frame, 5, 0), _patient_folds(frame, 5, 1))
    assert 'folds is 1: give 2 to' in sentence(_patient_folds, frame, 1)
    few = pd.DataFrame(np.eye(7, 14), columns=list(FINDINGS)).assign(patient=range(7), split='train')
    few.iloc[3:, :14] = 0. # of seven images three have a finding of their own, and four none
    most = int(re.search(r'give 2 to (\d+), for 7 training patients', sentence(_patient_folds, few, 6))[1])
    assert set(_patient_folds(few, most)) == set(range(most)) # what it advises works

def test_a_fold_is_predicted_by_a_model_that_had_none_of_its_patients(data, checkpoints, tmp_path, monkeypatch):
    trained, before, frame = [], retraining.fit, data.frame
    def watched(part, folder, recipe, seed, *given, **settings):
        trained.append((part.frame, recipe, seed))
        if len(trained) == 2: raise KeyboardInterrupt
        return before(part, folder, recipe, seed, *given, **settings)
    monkeypatch.setattr(retraining, 'fit', watched)
    with pytest.raises(KeyboardInterrupt): cross_validated_probabilities(checkpoints, data, tmp_path, 2, device='cpu')
    found = cross_validated_probabilities(checkpoints, data, tmp_path, 2, device='cpu') # the first fold is there
    assert len(trained) == 3 and found.index.equals(data.train.index) and found.notna().all().all()
    numbers, facts = _patient_folds(frame, 2), list_checkpoints(checkpoints)[0].facts
    for number, (part, recipe, seed) in zip([0, 1], [trained[0], trained[2]]):
        held_out = numbers == number
        assert (part.split[held_out] == 'unused').all() and (part.split[~held_out] == frame.split[~held_out]).all()
        assert not set(part.patient[part.split == 'train']) & set(frame.patient[held_out])
        assert recipe.loss.settings() == facts['loss'] and recipe.epochs == facts['epochs'] and seed == facts['seed']
    assert not [path for path in tmp_path.iterdir() if path.is_dir()] # the folds' checkpoints are gone
    assert cross_validated_probabilities(checkpoints, data, tmp_path, 2, device='cpu').equals(found) and len(trained) == 3

def test_a_checkpoint_that_does_not_state_how_it_was_trained(data, checkpoints):
    checkpoint = list_checkpoints(checkpoints)[0]
    del checkpoint.facts['peak_learning_rate']
    assert 'learning_rate' in sentence(checkpoint.recipe)

def test_label_quality_is_the_probability_of_the_label(rng):
    p, y = rng.random((40, 14)), (rng.random((40, 14)) < .3).astype('float32')
    np.testing.assert_allclose(label_quality(p, y), np.where(y == 1, p, 1 - p))
    gaps = with_gaps(rng, y)
    np.testing.assert_allclose(label_quality(p, gaps)[np.isnan(gaps)], 1)
    np.testing.assert_allclose(label_quality(p, gaps)[~np.isnan(gaps)], np.where(y == 1, p, 1 - p)[~np.isnan(gaps)])

# KNN-Shapley

def worth(shares, members, K): return sum(shares[i] for i in sorted(members)[:K]) / K

def by_all_subsets(shares, K): # nearest first
    n = len(shares)
    return np.array([np.mean([np.mean([worth(shares, {*s, i}, K) - worth(shares, s, K) for s in map(set, itertools.combinations(set(range(n)) - {i}, size))])
                              for size in range(n)]) for i in range(n)])

@pytest.mark.parametrize('n', [1, 2, 3, 6, 8])
@pytest.mark.parametrize('K', [1, 2, 5, 12])
def test_knn_shapley_is_shapley(rng, n, K):
    x, y = torch.tensor(rng.normal(size=(n, 4))), torch.tensor(with_gaps(rng, rng.integers(0, 2, (n, 5)).astype(float)))
    x_val, y_val = torch.tensor(rng.normal(size=(5, 4))), torch.tensor(with_gaps(rng, rng.integers(0, 2, (5, 5)).astype(float)))
    expected = np.zeros(n)
    for place, label in zip(x_val.numpy(), y_val.numpy()):
        order = np.linalg.norm(x.numpy() - place, axis=1).argsort()
        expected[order] += by_all_subsets([np.mean(y.numpy()[i] == label) for i in order], K) / 5
    np.testing.assert_allclose(knn_shapley(x, y, x_val, y_val, K, block=2), expected, atol=1e-12)

def test_fourteen_games_are_one(rng):
    x, x_val = torch.tensor(rng.normal(size=(50, 6))), torch.tensor(rng.normal(size=(9, 6)))
    y, y_val = (torch.tensor(rng.integers(0, 2, (n, 14))).double() for n in [50, 9])
    whole = knn_shapley(x, y, x_val, y_val, 5)
    games = torch.stack([knn_shapley(x, y[:, [k]], x_val, y_val[:, [k]], 5) for k in range(14)])
    np.testing.assert_allclose(whole, games.mean(0), atol=1e-12)

def test_knn_values_add_up_do_not_depend_on_blocks_and_move_with_the_images(rng):
    x, x_val = torch.tensor(rng.normal(size=(60, 6)) + 100), torch.tensor(rng.normal(size=(20, 6)) + 100)
    y, y_val = (torch.tensor(rng.integers(0, 2, (n, 14))).double() for n in [60, 20])
    values, order = knn_shapley(x, y, x_val, y_val, 7), rng.permutation(60)
    near = torch.cdist(x_val, x).topk(7, largest=False).indices
    np.testing.assert_allclose(values.sum(), _neighbour_agreement(y_val, y).gather(1, near).mean(), rtol=1e-6)
    for block in [1, 3, 64]: np.testing.assert_allclose(knn_shapley(x, y, x_val, y_val, 7, block), values, atol=1e-12)
    np.testing.assert_allclose(knn_shapley(x[order], y[order], x_val, y_val, 7), values[order], atol=1e-12)
    same = knn_shapley(x, torch.ones(60, 14), x_val, torch.ones(20, 14), 100)
    np.testing.assert_allclose(same, 1 / 100) # all right, and more places than images

@pytest.mark.parametrize('backbone', ['densenet_small', 'resnet18', 'mobilenet_v3_small'])
def testlast_layer_features_are_what_the_head_turns_into_logits(data, backbone):
    model = make_model(backbone, image_size=64).eval()
    features, head = last_layer_features(model, data, [3, 0, 7]), model.get_submodule(_head_name(model))
    x, _, _ = next(batches(data, [3, 0, 7]))
    with torch.no_grad(): torch.testing.assert_close(head(features), model(x), rtol=1e-3, atol=1e-3)
    assert not head._forward_hooks

# Repeated folds

def test_sla_is_the_sum_of_standardised_losses(rng):
    n, findings = int(rng.integers(8, 20)), ['a', 'b', 'c']
    images, total, tables = pd.Index([f'{i}.png' for i in range(n)], name='image'), np.zeros((n, 3)), []
    counted = np.zeros((n, 3), bool)
    unknown = rng.random((n, 3)) < .1
    unknown[0] = True
    for _ in range(3):
        order = rng.permutation(n)
        for rows in [order[:n // 2], order[n // 2:]]:
            losses = np.where(unknown[rows], np.nan, rng.gamma(1, 3, (len(rows), 3)))
            tables.append(pd.DataFrame(losses, images[rows], findings))
            with np.errstate(all='ignore'): standard = (losses - np.nanmean(losses, 0)) / np.nanstd(losses, 0, ddof=1)
            total[rows] += np.nan_to_num(standard, nan=0.) # a finding that one image of a half is labelled for has no spread there
            counted[rows] |= ~np.isnan(standard)
    worst = np.where(counted, total, -np.inf).max(1)
    found = sla(tables).loc[images]
    np.testing.assert_allclose(found, worst, rtol=1e-9)
    assert found.iloc[0] == -np.inf and found.name == 'sla'

# All of them

def test_one_table_of_all_training_images(data, checkpoints, all_of_them):
    table, out = all_of_them
    assert list(table) == list(VALUATIONS.index) and table.index.equals(data.train.index) and table.index.name == 'image'
    assert np.isfinite(table).all().all() and (table.drop(columns=['forgetting', 'label_count']).nunique() == len(table)).all()
    scores, targets = pd.read_parquet(out/'influence.parquet'), torch.tensor(_targets_of(data.frame))
    for name in ['influence', 'cosine', 'optimiser_aware', 'self_influence']: pd.testing.assert_series_equal(table[name], scores[name])
    assert (table.worst_influence == scores[[f'influence_{f}' for f in FINDINGS]].min(axis=1)).all()
    np.testing.assert_allclose(table.loss, scores.loss, rtol=1e-3)
    assert (table.worst_loss < table.loss).all()
    assert json.loads((out/'last_layer.json').read_text())['layers'] == 'classifier'
    pd.testing.assert_frame_equal(pd.read_csv(out/'valuations.csv', index_col='image'), table)
    facts = json.loads((out/'valuations.json').read_text())
    assert facts['folds'] == 2 and facts['early'] == 1
    assert {name for part in facts['seconds'] for name in part['valuations']} == set(table)

def test_a_second_call_computes_nothing(data, checkpoints, all_of_them, monkeypatch):
    table, out = all_of_them
    for module, name in [(retraining, 'fit'), (methods, 'predict'), (methods, 'knn_shapley')]:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('computed twice'))
    monkeypatch.setattr('cxr_influence.attribution.scoring._score_rows', lambda *_: pytest.fail('scored twice'))
    pd.testing.assert_frame_equal(valuations(checkpoints, data, out, VALUATIONS.index, folds=2, device='cpu'), table)

def test_names_choose_columns_and_only_their_work(data, checkpoints, all_of_them, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, 'fit', lambda *_, **__: pytest.fail('trained for nothing'))
    monkeypatch.setattr(methods, 'influence', lambda *_, **__: pytest.fail('scored for nothing'))
    some = valuations(checkpoints, data, tmp_path, names=CHEAP[::-1], device='cpu')
    pd.testing.assert_frame_equal(some, all_of_them[0][CHEAP], rtol=1e-4)
    one = valuations(checkpoints, data, tmp_path, names='random', seed=5, device='cpu')
    assert list(one) == ['random'] and not one.random.equals(some.random)

def test_default_is_the_nine_of_the_table(data, checkpoints, all_of_them):
    table, out = all_of_them
    names = list(VALUATIONS.index[VALUATIONS.default])
    assert len(names) == 9 and {'random', 'label_count'} <= {*names}
    pd.testing.assert_frame_equal(valuations(checkpoints, data, out, folds=2, device='cpu'), table[names])
    valuations(checkpoints, data, out, VALUATIONS.index, folds=2, device='cpu') # the folder is as it was

def test_refusals_are_one_sentence(data, checkpoints, tmp_path):
    def said(**settings): return sentence(valuations, checkpoints, data, tmp_path, **settings)
    def early(count): return sentence(gradient_norms, checkpoints, data, tmp_path, count)
    assert 'no valuation method beauty' in said(names=['beauty']) and 'last_layer' in said(names=['beauty'])
    assert 'early is 3: give 1 to 2' in early(3) and 'early is 0' in early(0)
    x, y = torch.randn(5, 3), torch.ones(5, 14)
    assert 'neighbours is 0' in sentence(knn_shapley, x, y, x, y, 0)
    assert 'folds is 1' in said(names=['confident'], folds=1)
    before = methods._gather # refused before anything is computed
    methods._gather = lambda *given: pytest.fail('computed')
    try:
        for folds in [1, 2.5, 10**6]: assert f'folds is {folds}' in said(names=['loss', 'confident'], folds=folds)
    finally: methods._gather = before
    assert 'No valuation method is named' in said(names=[])
    assert 'No checkpoints' in sentence(valuations, tmp_path/'none', data, tmp_path)
    other = data.with_frame(data.frame.assign(Hernia=1 - data.frame.Hernia))
    assert 'trained on other images' in sentence(valuations, checkpoints, other, tmp_path)

def test_label_error_scores_turn_and_ranks_average(all_of_them, rng):
    table, _ = all_of_them
    turned = label_error_scores(table)
    high = VALUATIONS.label_errors == 'high'
    assert turned.loc[:, high].equals(table.loc[:, high]) and (turned.loc[:, ~high] == -table.loc[:, ~high]).all().all()
    assert 'no valuation method hat' in sentence(label_error_scores, table.assign(hat=0))
    other = table.sample(frac=1, random_state=int(rng.integers(99))).set_axis(table.index)
    assert average_ranks([table]).equals(table.rank())
    pd.testing.assert_frame_equal(average_ranks([table, other]), (table.rank() + other.rank()) / 2)
    assert 'same data' in sentence(average_ranks, [table, table[::-1]]) and 'other rows' in sentence(average_ranks, [table, table[['loss']]])
    assert 'No tables' in sentence(average_ranks, [])

# Several processes

SCRIPT = '''
import sys
from cxr_influence.data.batches import load_data
from cxr_influence.evidence.valuations import VALUATIONS, valuations
if __name__ == '__main__':
    root, checkpoints, out = sys.argv[1:]
    valuations(checkpoints, load_data(root, 64), out, VALUATIONS.index, folds=2, device='cpu')
'''

@pytest.mark.long
def test_two_processes_value_as_one(phantom, checkpoints, all_of_them, tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    environment = os.environ | {'TQDM_DISABLE': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    call = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes=2', '--num_machines=1',
            '--main_process_port=0', '--mixed_precision=no', '--dynamo_backend=no', tmp_path/'script.py', phantom, checkpoints]
    done = subprocess.run([*map(str, call), str(tmp_path/'out')], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = all_of_them[0], pd.read_parquet(tmp_path/'out/valuations.parquet')
    assert two.index.equals(one.index) and list(two) == list(one)
    for name in one.columns.drop(['confident', 'sla']): # whose folds are trained by two, and rounded otherwise
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=5e-3 * one[name].abs().max(), err_msg=name)
    assert two.confident.corr(one.confident, method='spearman') > .7

# Runs one can trust

@pytest.mark.long
def test_every_score_knows_the_pixels(phantom, data, checkpoints, tmp_path, monkeypatch):
    "One image of each split is replaced, at the same path. Nothing that was kept of the old ones is used."
    root = shutil.copytree(phantom, tmp_path/'phantom')
    for split in 'train', 'validation', 'test':
        name = data.frame.index[data.frame.split == split][0]
        path, = root.rglob(name)
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    other = Data(data.frame, decode(data.frame, root, 64, tmp_path/'store'))
    assert other.fingerprint != data.fingerprint
    assert 'trained on other images' in sentence(influence, checkpoints, other, tmp_path/'a.csv', device='cpu')
    run = shutil.copytree(checkpoints, tmp_path/'run') # as if the same weights had been trained on the new images
    for path in run.glob('epoch_*/checkpoint.json'):
        rewrite(path, json.dumps(json.loads(path.read_text()) | {'data': other.fingerprint}))
    monkeypatch.setattr('cxr_influence.attribution.scoring._check_loss', lambda *given: None) # it would refuse: other images
    recipe, names = Recipe('densenet_small', epochs=1, batch_size=32), list(VALUATIONS.index.drop(['random', 'label_count', 'forgetting', 'sla']))
    query, scores = data.validation.index[:1], pd.Series(range(len(data.train)), data.train.index, name='influence')
    grid = subset_grid(scores, data.frame, {'select': [.3]}, ['random'], [1])[1:]
    def everything(data, run, out):
        with ThreadPoolExecutor(1) as executor: rows = run_subsets(run, data, grid, out/'retrained', 'epochs', executor)
        pairwise(run, data, out/'pairs', query, top=3, matrix=True, device='cpu')
        return {'influence': influence(run, data, out/'influence.csv', device='cpu').influence, 'pairwise': open_pairwise(out/'pairs').iloc[0],
                **valuations(run, data, out/'valuations', names, folds=2, device='cpu'),
                'retrain': retrain(data, recipe, 0, data.rows('test'), out/'retrained', device='cpu').iloc[:, 0],
                'run_subsets': rows.drop(columns=['seconds', 'retrained']).select_dtypes('number').iloc[0]}
    old = everything(data, checkpoints, tmp_path/'one')
    again, fresh = everything(other, run, tmp_path/'one'), everything(other, run, tmp_path/'two')
    for name in old:
        np.testing.assert_array_equal(again[name].to_numpy(), fresh[name].to_numpy(), err_msg=name)
        assert not np.array_equal(again[name].to_numpy(), old[name].to_numpy()), name

@pytest.mark.long
def test_two_that_value_at_once_share_the_work(phantom, checkpoints, all_of_them, tmp_path):
    (tmp_path/'script.py').write_text(SCRIPT)
    two = [Script(tmp_path/'script.py', phantom, checkpoints, tmp_path/'out') for _ in range(2)]
    assert [process.wait() for process in two] == [0, 0], [process.said() for process in two]
    found = pd.read_parquet(tmp_path/'out/valuations.parquet')
    for name in found: assert found[name].corr(all_of_them[0][name], method='spearman') > .99, name
    assert not [*(tmp_path/'out').rglob('*.part')]
