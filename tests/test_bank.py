"The bank of retrainings: weight 0 is removal, the bank is whole, resumed and compared rightly."
import numpy as np
import pandas as pd
import pytest, torch
from scipy.stats import spearmanr

from conftest import sentence
from cxr_influence.attribution.scoring import query_losses, score_checkpoint
from cxr_influence.data.batches import load_data
from cxr_influence.evidence import bank as module
from cxr_influence.evidence.bank import Bank, compare_with_bank, group_removals, random_removals, retrain_bank, scores_to_compare
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.recipes import recipe
from cxr_influence.training.resume import fit

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture(scope='module')
def data(phantom): return load_data(phantom, 32, stores=phantom.parent/'bank-stores')

@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('bank')/'run'
    fit(data, out, recipe('smooth', epochs=3, batch_size=16), seed=3, device='cpu')
    return out

def random_bank(rng, sets=12, seeds=1, n=30, targets=5, findings=3):
    images = pd.Index([f'{i}.png' for i in range(n)])
    chosen = {f's{k}': list(images[rng.random(n) < .2]) or [images[0]] for k in range(sets)}
    whole = rng.random((seeds, targets, findings))
    return Bank(images, chosen, whole + rng.normal(size=(sets, *whole.shape)), whole)

def test_changes_are_weighted_rises(rng):
    bank, weights = random_bank(rng, seeds=2), rng.random((4, 5, 3))
    found = bank.changes(weights)
    s, e, k = (int(rng.integers(size)) for size in found.shape)
    assert np.isclose(found[s, e, k], ((bank.losses[s, e] - bank.whole[e]) * weights[k]).sum())
    members = bank.members()
    assert [list(bank.images[row]) for row in members] == list(bank.sets.values())

def test_a_linear_truth_is_predicted_perfectly(rng):
    bank, factor = random_bank(rng), float(rng.uniform(.5, 2))
    scores = rng.normal(size=(1, len(bank.images)))
    weights = np.full((1, 5, 3), 1.)
    rises = factor * (bank.members() @ scores[0])
    losses = bank.whole + rises[:, None, None, None] / 15
    found = compare_with_bank(scores, bank._replace(losses=losses), weights)
    assert np.isclose(found.lds, 1) and np.isclose(found.slope, factor) and found.ceiling == 1
    noise = rng.normal(size=(1, len(bank.images)))
    actual = bank.changes(weights)[:, 0, 0]
    assert np.isclose(compare_with_bank(noise, bank, weights).lds, spearmanr(bank.members() @ noise[0], actual).statistic)

def test_several_seeds_have_a_ceiling_below_one(rng):
    found = compare_with_bank(rng.normal(size=30), random_bank(rng, sets=30, seeds=3), np.ones((1, 5, 3)))
    assert 0 <= found.ceiling < 1

@pytest.mark.long
def test_the_bank_is_this_run_without_the_images(data, run, tmp_path, monkeypatch):
    images, whole = list(data.train.index[:4]), list_checkpoints(run)[-1].facts['validation_loss']
    bank = retrain_bank(run, data, {'a': images[:2], 'b': images}, tmp_path)
    mean = np.stack([*query_losses(data.frame, False).values()])
    assert np.isclose((bank.whole * mean).sum(), whole, rtol=1e-4) and bank.losses.shape[:2] == (2, 1)
    weights = np.where(data.frame.index.isin(images), 0., 1.)
    fit(data.weighted(weights), tmp_path/'plain', recipe('smooth', epochs=3, batch_size=16), seed=3, device='cpu')
    there = list_checkpoints(tmp_path/'plain')[-1].facts['validation_loss']
    assert np.isclose(there - whole, bank.changes(mean)[1, 0, 0], rtol=1e-2, atol=1e-5)
    made = []
    monkeypatch.setattr(module, '_losses_without', lambda *given: made.append(given))
    again = retrain_bank(run, data, {'b': images[::-1]}, tmp_path) # of a set, and read
    assert np.array_equal(again.losses[0], bank.losses[1]) and not made

@pytest.mark.long
def test_a_window_starts_from_a_kept_state_and_other_seeds_from_none(data, run, tmp_path):
    sets = {'a': list(data.train.index[:6])}
    late = retrain_bank(run, data, sets, tmp_path, first_epoch=3)
    early = retrain_bank(run, data, sets, tmp_path)
    assert np.allclose(late.whole, early.whole, atol=1e-4) and not np.allclose(late.losses, early.losses, atol=1e-5)
    others = retrain_bank(run, data, sets, tmp_path, seeds=[None, 4, (3, 5)])
    assert np.allclose(others.whole[0], early.whole[0]) and not np.allclose(others.whole[1], others.whole[2], atol=1e-3)
    fit(data, tmp_path/'four', recipe('smooth', epochs=3, batch_size=16), seed=4, device='cpu')
    assert np.isclose(others.whole[1].sum(-1).mean(), list_checkpoints(tmp_path/'four')[-1].facts['validation_loss'], rtol=1e-3)

@pytest.mark.long
def test_a_bank_with_gaps_is_refused(data, run, tmp_path, monkeypatch):
    sets, real = {'a': [data.train.index[0]], 'b': [data.train.index[1]]}, module._losses_without
    def fails(run, data, images, *rest):
        if data.train.index[1] in images: raise MemoryError('no room')
        return real(run, data, images, *rest)
    monkeypatch.setattr(module, '_losses_without', fails)
    monkeypatch.setattr('cxr_influence.evidence.retraining.cpu_count', lambda: 1)
    with pytest.raises(MemoryError): retrain_bank(run, data, sets, tmp_path)
    monkeypatch.setattr(module, '_losses_without', real)
    assert len(retrain_bank(run, data, sets, tmp_path).sets) == 2

def test_refusals_are_one_sentence(data, run, tmp_path):
    def said(sets, **settings): return sentence(retrain_bank, run, data, sets, tmp_path, **settings)
    some = {'a': [data.train.index[0]]}
    assert 'is no training image' in said({'a': ['nobody.png']}) and 'The set b' in said(some | {'b': data.test.index[:1]})
    assert 'The set a has nothing' in said({'a': []}) and 'No sets' in said({})
    assert 'first_epoch from 1' in said(some, first_epoch=4) and 'give first_epoch=1' in said(some, first_epoch=2, seeds=[7])
    assert 'share is 2' in sentence(random_removals, data, 2) and 'trained on other images' in sentence(
        retrain_bank, run, data.with_frame(data.frame.assign(Hernia=1 - data.frame.Hernia)), some, tmp_path)
    assert 'No sets' in said([data.train.index[0]]) and "A seed is 'x'" in said(some, seeds=['x']) and 'A seed is (1,)' in said(some, seeds=[(1,)])
    groups = group_removals(data, 2)
    assert all(len(images) >= 2 and images.isin(data.train.index).all() for images in groups.values())
    drawn = random_removals(data, .1, 3, seed=1)
    assert len({tuple(images) for images in drawn.values()}) == 3 and {len(images) for images in drawn.values()} == {round(.1 * len(data.train))}

@pytest.mark.long
def test_tracin_of_a_window_adds_up_its_epochs(data, run, tmp_path):
    from cxr_influence.attribution.scoring import influence
    whole, _ = scores_to_compare(run, data, tmp_path, ['influence', 'influence_Effusion'], device='cpu')
    scores = influence(run, data, tmp_path/'plain.csv', device='cpu')
    np.testing.assert_allclose(whole['TracIn'], scores[['influence', 'influence_Effusion']].T, rtol=1e-4, atol=1e-7)
    late, _ = scores_to_compare(run, data, tmp_path, ['influence'], first_epoch=3, device='cpu')
    last = list_checkpoints(run)[2]
    part = score_checkpoint(last, data, tmp_path/'one.csv', device='cpu').influence
    np.testing.assert_allclose(late['TracIn'][0], last.facts['learning_rate'] * part, rtol=1e-4, atol=1e-7)
    assert all(own.shape == (1, len(data.train)) for own in late.values())

def test_a_set_is_not_ranked_by_its_size(data, run, tmp_path):
    found, _ = scores_to_compare(run, data, tmp_path, ['influence'], device='cpu')
    for name in ['loss', 'gradient norm', 'findings', 'random']: assert abs(found[name].mean()) < 1e-6*np.abs(found[name]).max()

def test_one_other_seed_has_no_ceiling(rng):
    bank = random_bank(rng)
    assert compare_with_bank(rng.normal(size=30), bank, np.ones((1, 5, 3))).ceiling == 1
    assert np.isnan(compare_with_bank(rng.normal(size=30), bank._replace(own=False), np.ones((1, 5, 3))).ceiling)

def test_a_retraining_leaves_the_generators_alone(data, run, tmp_path):
    state = torch.get_rng_state()
    module._losses_without(run, data, list(data.train.index[:2]), 3, (3, 3), 'cpu')
    assert torch.equal(state, torch.get_rng_state())
