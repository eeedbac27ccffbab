"Images that were not trained on are scored by the same formula, kept under names of their own, and refused where a score would deceive."
import gc, json, random, shutil, weakref

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from test_scoring import double, near # a fixture, and a comparison in float64

from cxr_influence.attribution.every_step import every_step
from cxr_influence.attribution.pairwise import (_pairs_key, _plan_pairs, _strongest,
    _sum_over_checkpoints, pairwise)
from cxr_influence.attribution.pools import load_pool, score_images
from cxr_influence.attribution.scoring import _Loader, influence
from cxr_influence.attribution.tracin import gradient, plain_scores
from cxr_influence.data.batches import Data, batches
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.phantom.dataset import make_phantom
from cxr_influence.training.checkpoints import Checkpoint, list_checkpoints

@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    "Images of another phantom each time, with labels of their own."
    folder = tmp_path_factory.mktemp('pool')
    root = make_phantom(folder/'phantom', n=40, size=64, seed=random.randrange(10**6))
    frame = read_nih(root)
    return Data(frame, decode(frame, root, 64, folder/'store'))

def by_definition(checkpoints, pool, rows, data, targets):
    "One backward pass an image and one for the targets, at each checkpoint."
    total = 0
    for checkpoint in list_checkpoints(checkpoints):
        model, loss = checkpoint.model(), checkpoint.loss()
        (x, y, _), (x_of, y_of, _) = next(batches(pool, rows, 1000)), next(batches(data, targets, 1000))
        v = gradient(model, loss(model(x_of), y_of).sum(1).mean())
        total = total + checkpoint.facts['learning_rate'] * plain_scores(model, loss, x, y, v)
    return total.detach().numpy()

@pytest.mark.parametrize('per_finding', [True, False])
def test_other_images_have_the_scores_of_the_definition(data, pool, checkpoints, tmp_path, double, per_finding):
    scores = score_images(checkpoints, pool, data, tmp_path/'pool.csv', per_finding=per_finding, device='cpu')
    assert scores.index.tolist() == pool.frame.index.tolist()
    near(scores.influence, by_definition(checkpoints, pool, np.arange(len(pool)), data, data.rows('validation')))
    facts = json.loads((tmp_path/'pool.json').read_text())
    assert facts['difference_to_definition'] < 1e-8 and facts['data'] == pool.fingerprint
    kept = pd.read_csv(tmp_path/'pool.csv', index_col='image')
    np.testing.assert_allclose(kept.influence, scores.influence)

def test_any_targets_and_any_names(data, pool, checkpoints, tmp_path, double):
    rows = np.random.default_rng().permutation(len(pool))[:3]
    names = pool.frame.index[rows]
    some = score_images(checkpoints, pool, data, tmp_path/'some.csv', names, against='test', per_finding=False, device='cpu')
    assert some.index.equals(names.rename('image')) # in the order asked for
    near(some.influence, by_definition(checkpoints, pool, rows, data, data.rows('test')))
    single = score_images(checkpoints, data, pool, tmp_path/'single.csv', data.train.index[0], per_finding=False, device='cpu')
    near(single.influence, by_definition(checkpoints, data, data.rows('train')[:1], pool, pool.rows('validation')))
    assert single['rank'].tolist() == [1]

def test_training_images_as_a_pool_have_their_own_scores(data, checkpoints, tmp_path, double):
    whole = influence(checkpoints, data, tmp_path/'whole.csv', device='cpu')
    again = score_images(checkpoints, data, data, tmp_path/'again.csv', data.train.index[::-1], device='cpu')
    for column in ['influence', 'self_influence', 'loss', 'influence_Effusion']: near(again[column], whole[column][::-1])

def test_nothing_of_other_images_or_targets_is_kept_as_theirs(data, pool, checkpoints, tmp_path):
    out = tmp_path/'scores.csv'
    def score(names=None, of=data, against='validation'):
        return score_images(checkpoints, pool, of, out, names, against, per_finding=False, device='cpu').influence
    fresh = lambda *given, **more: score_images(checkpoints, pool, more.pop('of', data), tmp_path/f'{random.random()}.csv', *given, per_finding=False,
                                                device='cpu', **more).influence
    whole = influence(checkpoints, data, out, per_finding=False, device='cpu')
    assert score().equals(fresh())
    first, last = pool.frame.index[:4], pool.frame.index[-4:]
    assert score(first).equals(fresh(first)) and score(last).equals(fresh(last)) and score(first[::-1]).equals(fresh(first[::-1]))
    assert score(first, against='test').equals(fresh(first, against='test'))
    flipped = data.with_frame(data.frame.assign(Mass=1 - data.frame.Mass))
    assert score(first, of=flipped).equals(fresh(first, of=flipped)) and not score(first, of=flipped).equals(score(first))
    pd.testing.assert_frame_equal(influence(checkpoints, data, out, per_finding=False, device='cpu'), whole)

def test_what_would_deceive_is_refused(data, pool, checkpoints, tmp_path, phantom):
    out, some = tmp_path/'out.csv', pool.frame.index[:3]
    with refused(data.validation.index[0], 'also a target image'): score_images(checkpoints, data, data, out, data.validation.index)
    with refused('also a target image'): score_images(checkpoints, data, data, out)
    with refused('nobody', 'no image of the pool'): score_images(checkpoints, pool, data, out, [some[0], 'nobody'])
    with refused(some[0], 'twice'): score_images(checkpoints, pool, data, out, [some[0], some[0]])
    with refused('names is empty'): score_images(checkpoints, pool, data, out, [])
    with refused('No image is of split train_only'): score_images(checkpoints, pool, data, out, against='train_only')
    unlabeled = pool.with_frame(pool.frame.assign(Mass=np.where(pool.frame.index == some[1], np.nan, pool.frame.Mass)))
    with refused(some[1], 'not known'): score_images(checkpoints, unlabeled, data, out)
    small = Data(pool.frame, decode(pool.frame, pool.root, 32, tmp_path/'small'))
    with refused('at 32', 'trained at 64'): score_images(checkpoints, small, data, out)
    with refused('at 32', 'trained at 64'): score_images(checkpoints, pool, small, out)
    assert not out.exists() and not out.with_suffix('.checkpoints').exists() # before the work

def test_a_patient_on_both_sides_is_named(data, checkpoints, tmp_path, capsys):
    patient = data.validation.patient.iloc[0]
    frame = data.frame.copy()
    frame.loc[data.train.index[0], 'patient'] = patient
    shared = data.with_frame(frame)
    score_images(checkpoints, shared, data, tmp_path/'out.csv', data.train.index[:2], per_finding=False, device='cpu')
    said = capsys.readouterr().err
    assert f'Images of patient {patient} are in the pool and among the targets' in said

@pytest.mark.parametrize('described', [False, True])
def test_a_pool_of_one_patient(data, phantom, checkpoints, tmp_path, described):
    "All images are candidates: a pool needs no three splits, and its lists and column of splits are not asked."
    patient = data.frame.patient.value_counts().index[0]
    names = data.frame.index[data.frame.patient == patient]
    root = tmp_path/'pool'
    (root/'images').mkdir(parents=True)
    for name in names: shutil.copy(phantom/'images'/name, root/'images')
    if described:
        frame = data.frame.loc[names].assign(split=[*['train', 'holdout'] * len(names)][:len(names)])
        frame.to_csv(root/'own.csv')
        (root/'dataset.json').write_text(json.dumps(dict(table='own.csv', image='image', patient='patient', findings=data.findings, split='split')))
    else:
        for name in ['Data_Entry_2017_v2020.csv', 'test_list.txt']: shutil.copy(phantom/name, root)
        (root/'train_val_list.txt').write_text(data.train.index[-1]) # nobody of the pool
    pool = load_pool(root, checkpoints, tmp_path)
    assert [*pool.frame.index] == [*names] and (pool.frame.split == 'train').all() and (pool.frame[data.findings] == data.frame.loc[names, data.findings]).all(axis=None)
    assert 'all images are candidates' in str(pool.report)
    targets = data.validation.index[data.validation.patient != patient][:3]
    apart = data.with_frame(data.frame.assign(split=data.frame.split.mask(~data.frame.index.isin(targets), 'unused')))
    found = score_images(checkpoints, pool, apart, tmp_path/'found.csv', per_finding=False, device='cpu')
    same = score_images(checkpoints, data, apart, tmp_path/'same.csv', names, per_finding=False, device='cpu')
    np.testing.assert_allclose(found.influence, same.influence, rtol=1e-4, atol=1e-6 * same.influence.abs().max())
    score_images(checkpoints, data, pool, tmp_path/'targets.csv', targets, against='train', per_finding=False, device='cpu')

def test_a_setting_that_is_none_is_named(data, checkpoints, tmp_path):
    for score in [pairwise, every_step]:
        with refused('batchsize is no setting', 'device'): score(checkpoints, data, tmp_path/'out.csv', batchsize=4)
    with refused('batchsize is no setting', 'batch_size'): score_images(checkpoints, data, data, tmp_path/'out.csv', batchsize=4)
    assert not [*tmp_path.iterdir()]

def test_pairwise_keeps_one_model_at_a_time(data, checkpoints, monkeypatch):
    made, alive, make = [], [], Checkpoint.model
    def model(self):
        gc.collect()
        alive.append(sum(one() is not None for one in made))
        found = make(self)
        made.append(weakref.ref(found))
        return found
    monkeypatch.setattr(Checkpoint, 'model', model)
    pairs, _ = _plan_pairs(list_checkpoints(checkpoints), data, data.rows('validation')[:2], None, 'cpu')
    _pairs_key(pairs, [])
    _sum_over_checkpoints(pairs._replace(images=_Loader(data, data.rows('train')[:3])), data.rows('validation')[:2])
    gc.collect()
    assert len(made) == 5 and max(alive) <= 1 and not any(one() for one in made)

def test_the_strongest_by_sorting_each_row():
    rng = np.random.default_rng()
    for top in [1, 3, 50]:
        products = rng.integers(-3, 4, (4, 9)).astype(float) # with ties
        queries, images = pd.Index([*'abcd']), pd.Index([f'{n}.png' for n in range(9)])
        found = _strongest(products, queries, images, top).set_index(['image', 'rank'])
        for name, row in zip(queries, products):
            order = sorted(range(9), key=lambda n: -row[n])
            for rank in range(1, min(top, 9) + 1):
                assert tuple(found.loc[(name, rank)]) == (images[order[rank - 1]], row[order[rank - 1]])
                assert tuple(found.loc[(name, -rank)]) == (images[order[-rank]], row[order[-rank]])
        assert len(found) == 8 * min(top, 9)
