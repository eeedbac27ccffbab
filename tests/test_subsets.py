"Choosing subsets, retraining on them, and what the retrainings may be said to show."
import json, os, shutil, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from conftest import FORKS, LAUNCH, Script, hurt, in_a_new_process, refused, sentence
from cxr_influence.attribution.scoring import influence
from cxr_influence.data.files import InputError
from cxr_influence.data.labels import FINDINGS
from cxr_influence.evidence import retraining, subsets
from cxr_influence.evidence.comparison import (_KEYS, _minus, _weighted_ece, _weighted_f1,
    compare, compressibility, plot_differences, plot_finding_differences, plot_subsets,
    redundancy, subset_draws, verdict)
from cxr_influence.evidence.subsets import (_FRACTIONS, _LABELS, MODES, RULES, _budget_epochs,
    _evaluate_logits, _nearest_count, _retraining_name, _subset_logits, kept_images,
    read_scores, run_subsets, subset_grid)
from cxr_influence.measures.calibration import calibration_error
from cxr_influence.measures.intervals import percentile_interval, seed_means
from cxr_influence.training.checkpoints import best_checkpoint, list_checkpoints
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.resume import fit
from cxr_influence.training.losses import training_loss

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture
def made(rng): return random_frame(rng)

def random_frame(rng):
    "A frame of 600 training images with rare and common findings, patients of one to five images."
    patient = np.repeat(np.arange(400), rng.integers(1, 6, 400))[:600]
    common = rng.uniform(.01, .2, 14)
    frame = pd.DataFrame((rng.random((600, 14)) < common).astype('float32'), [f'{i:04}.png' for i in range(600)], list(FINDINGS))
    return frame.assign(patient=patient, split='train')

def valuation(frame, rng): return pd.Series(rng.normal(size=len(frame)), frame.index)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('whole', [False, True])
def test_the_number_is_right_and_the_order_that_of_the_scores(made, rng, mode, rule, whole):
    scores, fraction = valuation(made, rng), rng.uniform(.05, .95)
    kept = kept_images(scores, mode, rule, fraction, 3, made, whole)
    wanted = (fraction if mode == 'select' else 1 - fraction) * len(scores)
    assert abs(len(kept) - wanted) <= (2.5 if whole else 1) and kept.is_unique
    assert kept.equals(scores.index[scores.index.isin(kept)])
    if whole: assert not set(made.patient[kept]) & set(made.patient.drop(kept))

def deviation(frame, scores, mode, rule, fraction, whole):
    "The largest number of images by which a finding misses its share."
    kept = frame.loc[kept_images(scores, mode, rule, fraction, 0, frame, whole), list(FINDINGS)].sum()
    return (kept - (fraction if mode == 'select' else 1 - fraction) * frame[list(FINDINGS)].sum()).abs().max()

@pytest.mark.parametrize('rule', [rule for rule in RULES if rule.startswith('stratified')])
@pytest.mark.parametrize('whole, share', [(False, .5), (True, 1)])
def test_a_stratified_choice_keeps_the_share_of_every_finding(rng, rule, whole, share):
    found = []
    for mode in list(MODES) * 10: # a new frame each time: on one frame of whole patients random is sometimes better
        frame = random_frame(rng)
        for fraction in rng.uniform(.1, .9, 3):
            scores = valuation(frame, rng)
            found.append([deviation(frame, scores, mode, one, fraction, whole) for one in (rule, 'random')])
    ours, random = np.mean(found, axis=0)
    assert ours < share * random

def test_stratified_without_findings_is_the_plain_rule(made, rng):
    scores, bare = valuation(made, rng), made.assign(**dict.fromkeys(FINDINGS, 0.))
    for plain, stratified in [('top', 'stratified_top'), ('bottom', 'stratified_bottom'), ('random', 'stratified')]:
        assert kept_images(scores, 'remove', plain, .3, 1).equals(kept_images(scores, 'remove', stratified, .3, 1, bare))

def test_within_a_finding_the_better_are_chosen(made, rng):
    one = made.assign(**dict.fromkeys(FINDINGS, 0.) | {'Hernia': (rng.random(len(made)) < .2) * 1.})
    scores = valuation(made, rng)
    kept = kept_images(scores, 'select', 'stratified_top', .5, 0, one)
    for part in (one.index[one.Hernia == 1], one.index[one.Hernia == 0]):
        inside = part.isin(kept)
        assert scores[part[inside]].min() >= scores[part[~inside]].max()

def test_unknown_labels_count_for_nothing(made, rng):
    scores, unknown = valuation(made, rng), made.assign(Mass=np.nan)
    assert kept_images(scores, 'select', 'stratified', .3, 0, unknown).equals(
        kept_images(scores, 'select', 'stratified', .3, 0, made.assign(Mass=0.)))

def test_to_select_the_top_is_to_remove_the_bottom_ties_or_not(made, rng):
    for scores in (valuation(made, rng), valuation(made, rng).round()):
        assert kept_images(scores, 'select', 'top', .3, 5).equals(kept_images(scores, 'remove', 'bottom', .7, 5))
        assert kept_images(scores, 'remove', 'top', .3, 5).equals(kept_images(scores, 'select', 'bottom', .7, 5))

def test_equal_values_are_ordered_by_chance_not_by_place(made):
    equal = pd.Series(1., made.index)
    places = [made.index.get_indexer(kept_images(equal, 'select', 'top', .2, seed)).mean() for seed in range(20)]
    assert 200 < np.mean(places) < 400 and np.std(places) > 1

def test_nearest_count_is_the_nearest(rng):
    images, wanted = rng.integers(1, 6, 30), rng.uniform(0, 60)
    reached = np.append(0, images.cumsum())
    assert abs(reached[_nearest_count(images, wanted)] - wanted) == abs(reached - wanted).min()

def test_the_grid_has_every_cell_once_and_chance_once(made, rng):
    scores = pd.DataFrame({name: valuation(made, rng) for name in ['influence', 'loss']})
    grid = subset_grid(scores, made, seeds=[0, 1])
    assert not grid.duplicated(_LABELS).any()
    counts = grid.groupby(['valuation', 'mode']).size()
    for mode in MODES:
        assert counts['influence', mode] == counts['loss', mode] == counts['chance', mode] == 2 * 2 * len(_FRACTIONS[mode])
    assert counts['all', 'all'] == 2 and (grid.kept[grid.rule == 'all'].map(len) == 600).all()
    series = subset_grid(scores.influence, made, {'remove': [.2]}, ['top'], [0], reference=None)
    assert list(series.valuation) == ['all', 'influence']

def test_the_fractions_are_those_of_before():
    assert _FRACTIONS == {'remove': (.05, .15, .35, .6), 'select': (.02, .05, .1, .2, .4, .8)}

def test_scores_that_are_missing_or_others(made, tmp_path):
    with refused('scores.csv', 'cxr_influence --output'): read_scores(tmp_path/'scores.csv')
    pd.DataFrame({'image': made.index, 'influence': np.nan}).to_csv(tmp_path/'scores.csv')
    with refused('scores.csv', made.index[0]): read_scores(tmp_path/'scores.csv')
    pd.DataFrame({'image': made.index, 'loss': 1.}).to_csv(tmp_path/'scores.csv')
    with refused('scores.csv lacks the columns aum; it has', 'image, loss'): read_scores(tmp_path/'scores.csv', ['loss', 'aum'])
    assert len(read_scores(tmp_path/'scores.csv', ['loss'])) == 600
    with refused('loss has no value for', made.index[7]):
        subset_grid(pd.DataFrame({'aum': 1., 'loss': pd.Series(1., made.index).mask(made.index == made.index[7])}), made)
    with refused('3 training images have no score'): subset_grid(pd.Series(1., made.index[:-3]), made)

def test_choices_that_make_no_sense(made):
    equal = pd.Series(1., made.index)
    for words, arguments in [("mode 'drop'", ('drop', 'top', .5)), ("rule 'best'", ('remove', 'best', .5)), ('fraction is 1', ('remove', 'top', 1)),
                             ('frame is missing', ('remove', 'stratified', .5))]:
        with refused(words): kept_images(equal, *arguments)
    with refused('frame is missing'): kept_images(equal, 'remove', 'top', .5, whole_patients=True)

def test_equal_steps_are_as_many_steps(rng):
    facts = {'epochs': int(rng.integers(1, 30)), 'batch_size': int(rng.integers(4, 64))}
    steps = lambda images: -(-images // facts['batch_size'])
    for images in rng.integers(100, 5000, 50):
        epochs = _budget_epochs(images, 5000, facts, 'steps')
        assert abs(epochs * steps(images) - facts['epochs'] * steps(5000)) <= steps(images) / 2 + 1e-9
        assert _budget_epochs(images, 5000, facts) == facts['epochs']
    assert _budget_epochs(5000, 5000, facts, 'steps') == facts['epochs']
    with refused("budget 'hours'", 'epochs or steps'): _budget_epochs(10, 20, facts, 'hours')

@pytest.fixture(scope='module')
def baseline(checkpoints): return list_checkpoints(checkpoints)[0]

@pytest.fixture(scope='module')
def train(data): return data.train.index

def test_a_name_says_all_that_went_in(baseline, train, data):
    names = {_retraining_name(kept, baseline, seed, epochs, data) for kept, seed, epochs in product([train, train[1:]], [0, 1], [2, 3])}
    assert len(names) == 8
    assert _retraining_name(train, baseline, 0, 2, data) == _retraining_name(train[::-1], baseline, np.int64(0), 2, data)
    assert _retraining_name(train, baseline, 0, 2, data.with_frame(data.frame.assign(Hernia=0.))) not in names

def test_a_retraining_follows_the_recipe_with_the_weights_of_all(data, baseline, train, tmp_path, monkeypatch):
    kept, runs = train[data.frame.loc[train, 'Infiltration'] == 0][:20], []
    def watched(part, folder, *rest, **options):
        history = fit(part, folder, *rest, **options)
        runs.append((part, best_checkpoint(folder).facts, len(list_checkpoints(folder))))
        return history
    monkeypatch.setattr(retraining, 'fit', watched)
    logits = _subset_logits(baseline, data, kept, 5, 3, tmp_path/'logits', 'cpu')
    (part, facts, checkpoints), = runs
    assert part.train.index.equals(kept) and part.test.equals(data.test) and checkpoints <= 2
    assert facts['loss'] == baseline.facts['loss'] and facts['seed'] == 5 and facts['epochs'] == 3
    assert facts['epoch'] == logits.attrs['epoch']
    assert not training_loss('focal', part.frame).class_weights.equal(baseline.loss().class_weights)
    assert all(facts[name] == baseline.facts[name] for name in ('batch_size', 'peak_learning_rate', 'weight_decay', 'warmup', 'clip'))
    assert set(logits.index) == {*data.validation.index, *data.test.index}

def test_a_row_states_what_was_trained(data, baseline, train, tmp_path):
    assert subsets._retrain_subset(tmp_path/'one', baseline, data, train[:20], 5, 3) is None
    row = json.loads((tmp_path/'one.json').read_text())
    assert (row['images'], row['epochs'], row['steps']) == (20, 3, 6) and row['best_epoch'] in (1, 2, 3)
    assert pd.read_parquet(tmp_path/'one.parquet').index.equals(data.test.index)

def test_the_test_images_are_read_once_and_thresholds_are_from_validation(data, baseline, train, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(subsets, 'evaluate', lambda *given: (seen.append(given), subsets_evaluate(*given))[1])
    from cxr_influence.measures.results import evaluate as subsets_evaluate
    logits = _subset_logits(baseline, data, train[:24], 1, 2, tmp_path, 'cpu')
    row, probabilities = _evaluate_logits(logits, data)
    assert len(seen) == 1 and len(seen[0][0]) == len(data.test)
    other = logits.copy()
    other.loc[data.test.index] *= -1 # what test images look like decides neither scaling nor thresholds
    again, _ = _evaluate_logits(other, data)
    assert {f'threshold_{finding}' for finding in FINDINGS} <= set(row)
    assert all(again[f'threshold_{finding}'] == row[f'threshold_{finding}'] for finding in FINDINGS)
    assert probabilities.index.equals(data.test.index)

def test_all_images_with_the_same_seed_are_the_baseline(data, baseline, train, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(subsets, 'retrain', lambda *a, **k: pytest.fail('trained again'))
    logits = _subset_logits(baseline, data, train, 0, baseline.facts['epochs'], tmp_path, 'cpu')
    row, probabilities = _evaluate_logits(logits, data)
    evaluation = evaluate_checkpoint(best_checkpoint(checkpoints), data, 'cpu')
    macro = evaluation.table.loc['macro']
    for name in ['auroc', 'auroc_low', 'auroc_high', 'auprc', 'f1', 'ece']: np.testing.assert_allclose(row[name], macro[name], atol=1e-5)
    np.testing.assert_allclose(probabilities, evaluation.probabilities, atol=1e-5)
    np.testing.assert_allclose([row[f'threshold_{finding}'] for finding in FINDINGS], evaluation.thresholds, atol=1e-5)

@pytest.fixture(scope='module')
def small_grid(data, train):
    scores = pd.Series(np.random.default_rng(0).normal(size=len(train)), train, name='influence')
    return subset_grid(scores, data.frame, {'remove': [.6], 'select': [.4]}, ['top', 'bottom', 'random'], [0, 1])

@pytest.fixture(scope='module')
def sweep(data, small_grid, checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp('sweep')
    with ThreadPoolExecutor(1) as executor: rows = run_subsets(checkpoints, data, small_grid, out, 'epochs', executor)
    return rows, out

def test_a_sweep_has_a_row_a_retraining_and_shares_equal_ones(sweep, small_grid):
    rows, out = sweep
    assert rows[_LABELS].equals(small_grid[_LABELS]) and (rows.budget == 'epochs').all()
    assert rows.images.equals(small_grid.kept.map(len)) and rows.auroc.between(0, 1).all()
    same = rows.set_index(_LABELS).retrained
    assert same['influence', 'remove', 'bottom', .6, 0] == same['influence', 'select', 'top', .4, 0]
    assert len(list(out.glob('*.json'))) == len(list(out.glob('*.parquet'))) == rows.retrained.nunique() < len(rows)
    assert not [path for path in out.iterdir() if path.suffix not in ('.json', '.parquet', '.crc32', '') or path.name == '.error']
    assert not [path for path in (out/'logits').iterdir() if path.is_dir()]

def test_it_does_nothing_twice(sweep, small_grid, data, checkpoints, monkeypatch):
    rows, out = sweep
    monkeypatch.setattr(subsets, '_retrain_all', lambda *a: pytest.fail('retrained'))
    assert run_subsets(checkpoints, data, small_grid, out, 'epochs').equals(rows)

def test_steps_are_other_runs_but_for_all_images(sweep, small_grid, data, checkpoints, monkeypatch):
    rows, out = sweep
    wanted = []
    def note(jobs, *rest): wanted.append(jobs); raise InputError('enough')
    monkeypatch.setattr(subsets, '_retrain_all', note)
    with refused('enough'): run_subsets(checkpoints, data, small_grid, out, 'steps')
    jobs, = wanted
    assert 'all' not in set(jobs.rule) and (jobs.epochs > 2).all() and jobs.index.is_unique

@pytest.mark.long
def test_processes_give_the_same_as_a_thread(sweep, small_grid, data, checkpoints, tmp_path):
    rows, _ = sweep
    part = small_grid[small_grid.rule == 'random'][:1].reset_index(drop=True)
    with ProcessPoolExecutor(1, FORKS) as executor:
        again = run_subsets(checkpoints, data, part, tmp_path, 'epochs', executor)
    before = part[_LABELS].merge(rows, on=_LABELS)
    np.testing.assert_allclose(again.auroc, before.auroc, atol=1e-6)

def test_one_that_fails_names_itself_and_the_others_are_kept(small_grid, data, checkpoints, tmp_path):
    grid = small_grid[small_grid.rule == 'random'].copy()
    grid['kept'] = [kept[:1] if i == 1 else kept[:20] for i, kept in enumerate(grid.kept)]
    with ThreadPoolExecutor(1) as executor:
        with refused('1 of 3 retrainings failed', 'chance, remove random 0.6, seed 1', '1 training images', '.error'):
            run_subsets(checkpoints, data, grid[:3], tmp_path, 'epochs', executor)
    assert len(list(tmp_path.glob('*.json'))) == 2 and 'Traceback' in next(tmp_path.glob('*.error')).read_text()
    grid.iat[1, grid.columns.get_loc('kept')] = grid.kept.iloc[0]
    with ThreadPoolExecutor(1) as executor: assert len(run_subsets(checkpoints, data, grid[:2], tmp_path, 'epochs', executor)) == 2

SWEEP = '''
import sys
import pandas as pd
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.evidence.subsets import run_subsets, subset_grid
root, store, checkpoints, out = sys.argv[1:]
frame = read_nih(root)
data = Data(frame, decode(frame, root, 64, store))
train = data.train.index
scores = pd.Series(range(len(train)), train, name='influence')
grid = subset_grid(scores, frame, {'remove': [.2, .5]}, ['top', 'bottom', 'random'], [0])
rows = run_subsets(checkpoints, data, grid, out)
print(len(rows), rows.auroc.notna().all())
'''

def test_two_sweeps_that_meet_train_once(data, baseline, train, tmp_path, monkeypatch):
    seen = []
    def slow(*arguments, **options):
        seen.append(arguments)
        time.sleep(.5)
        return fit(*arguments, **options)
    monkeypatch.setattr(retraining, 'fit', slow)
    call = tmp_path/'one', baseline, data, train[:20], 1, 1
    with ThreadPoolExecutor(3) as pool: done = list(pool.map(lambda _: subsets._retrain_subset(*call), range(3)))
    assert len(seen) == 1 and done == [None] * 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != '.') == ['logits', 'one.json', 'one.parquet']

@pytest.mark.long
def test_a_killed_sweep_goes_on(phantom, data, checkpoints, tmp_path):
    script, out = tmp_path/'sweep.py', tmp_path/'out'
    script.write_text(SWEEP)
    command = [sys.executable, str(script), *map(str, [phantom, data.store.folder, checkpoints, out])]
    environment = {name: value for name, value in os.environ.items() if name != 'TQDM_DISABLE'} | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(subsets.__file__).parents[2])} # the bar is looked at
    process = Script(*command[1:])
    until = time.monotonic() + 120
    while len(list(out.glob('*.json'))) < 3 and process.poll() is None and time.monotonic() < until: time.sleep(.02)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob('*.json')}
    assert 3 <= len(done) < 7
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.stdout.split() == ['7', 'True'], again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done and len(list(out.glob('*.json'))) == 7
    assert 'retrainings' in again.stderr and f'of {7 - len(done)} retrainings' in again.stderr

def test_a_killed_process_is_told_in_a_sentence(small_grid, data, checkpoints, tmp_path, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool
    def broken(function, calls, executor): raise BrokenProcessPool('gone'); yield
    monkeypatch.setattr(retraining, '_as_they_end', broken)
    with refused('was killed', '0 of', 'to resume'): run_subsets(checkpoints, data, small_grid, tmp_path)

def test_weighted_metrics_are_those_of_repeated_images(rng):
    target, probability = (rng.random(80) < .4).astype(float), rng.random(80)
    weights = rng.integers(0, 4, (5, 80))
    for row, f1, ece in zip(weights, _weighted_f1(target, probability, weights, .5), _weighted_ece(target, probability, weights)):
        y, p = np.repeat(target, row), np.repeat(probability, row)
        assert np.isclose(f1, f1_score(y, p >= .5)) and np.isclose(ece, calibration_error(y, p), atol=1e-5)

def test_draws_begin_with_the_rows(sweep, data):
    rows, _ = sweep
    for metric in ['auroc', 'f1', 'ece']:
        draws = subset_draws(rows, data.frame, metric, 20)
        np.testing.assert_allclose(draws['macro'][0], rows[metric], atol=1e-5)
        if metric == 'auroc':
            known = rows[[f'auroc_{finding}' for finding in FINDINGS]].to_numpy(float)
            np.testing.assert_allclose(draws.xs(0, axis=1, level='resample')[list(FINDINGS)], known, atol=1e-6)
    with refused("metric 'loss'"): subset_draws(rows, data.frame, 'loss')

def made_draws(rng, gains, seeds=3, resamples=300, noise=0.):
    "Draws of made-up AUROC: `gains` is {(valuation, mode, rule, fraction): AUROC}."
    keys, values, patients = [], [], rng.normal(0, .02, resamples)
    for key, seed in product(gains, range(seeds)):
        value = gains[key] + .01 * seed + rng.normal(0, noise)
        keys.append((*key, seed, 'epochs'))
        values.append(np.append(value, value + patients))
    columns = pd.MultiIndex.from_product([['macro'], range(resamples + 1)], names=['finding', 'resample'])
    return pd.DataFrame(values, pd.MultiIndex.from_tuples(keys, names=_KEYS), columns)

ALL = ('all', 'all', 'all', 0.)

def test_differences_are_paired_by_patient_and_seed(rng):
    draws = made_draws(rng, {ALL: .8, ('influence', 'remove', 'top', .3): .7, ('chance', 'remove', 'random', .3): .75})
    table = compare(draws).set_index('rule')
    assert np.allclose(table.loc['top', ['difference', 'low', 'high', 'spread']].astype(float), [-.05, -.05, -.05, 0])
    assert np.isnan(table.low['random']) and np.isnan(table.low['all']) and np.isclose(table.value['all'], .81)
    assert np.allclose(compare(draws, 'all').set_index('rule').difference[['top', 'random']], [-.1, -.05])
    with refused("reference 'best'"): _minus(draws, 'best')

def test_without_a_partner_there_is_no_difference(rng):
    draws = made_draws(rng, {ALL: .8, ('influence', 'remove', 'top', .3): .7, ('chance', 'select', 'random', .3): .75})
    assert compare(draws).low.isna().all()
    with refused('by the rule stratified', 'add it'): compare(draws, 'stratified')

def test_intervals_know_seeds_and_patients(rng):
    seeds, patients = .02 * rng.permutation(4)[:, None], rng.normal(0, .02, 20_000)
    width = lambda draws: np.ptp(percentile_interval(seed_means(draws)))
    assert width(seeds + patients) > width(0 * seeds + patients) and width(seeds + patients) > width(seeds + 0 * patients) > 0
    assert np.isclose(np.ptp(percentile_interval(seed_means(patients[None]))), np.ptp(percentile_interval(patients)), rtol=.05)

def test_the_interval_holds_what_it_says(rng):
    def once():
        draws = rng.normal(0, .5) + rng.normal(0, 1, (3, 1)) + rng.normal(0, .5, 200)
        low, high = percentile_interval(seed_means(draws))
        return low <= 0 <= high
    assert .9 < np.mean([once() for _ in range(300)]) <= 1

def test_redundancy_of_curves_whose_answer_is_known(rng):
    fall = {.1: 0., .3: .001, .5: .002, .7: .1}
    draws = made_draws(rng, {ALL: .8, **{('influence', 'remove', 'top', share): .8 - fall[share] for share in fall},
                             **{('chance', 'remove', 'random', share): .8 - .02 * share for share in fall}})
    table = redundancy(draws).set_index('rule')
    assert np.isclose(table.redundancy['top'], .5) and np.isclose(table.redundancy['random'], .1)
    assert np.isclose(table.leaves_low['random'], .25) and np.isclose(table.leaves_high['random'], .25)
    assert .5 < table.leaves_low['top'] < .52 and table.largest_tried['top'] == .7
    assert np.isclose(table.narrowest['top'], 0)

def test_one_good_share_behind_a_bad_one_is_luck(rng):
    fall = {.1: .1, .3: 0.}
    draws = made_draws(rng, {ALL: .8, **{('influence', 'remove', 'top', share): .8 - fall[share] for share in fall}})
    assert redundancy(draws).redundancy[0] == 0

def test_selecting_and_removing_count_the_same_share(rng):
    draws = made_draws(rng, {ALL: .8, **{('influence', mode, 'top', share): .8 for mode, share in [('remove', .4), ('select', .6)]}})
    assert np.allclose(redundancy(draws).redundancy, .4)

def test_a_wide_interval_is_no_redundancy(rng):
    draws = made_draws(rng, {ALL: .8, ('influence', 'remove', 'top', .3): .8}, seeds=8, noise=.05) # three may agree by chance
    table = redundancy(draws)
    assert table.redundancy[0] == 0 and table.narrowest[0] > .005

def test_compressibility_is_the_share_above_guessing(rng):
    draws = made_draws(rng, {ALL: .9, ('influence', 'select', 'top', .5): .7, ('influence', 'select', 'top', .3): .5})
    table = compressibility(draws, [1, .75, .5, .4, .1]).set_index('share').kept_excess
    excess = lambda value: np.mean([(value + .01 * seed - .5) / (.4 + .01 * seed) for seed in range(3)])
    assert np.allclose(table[[1, .75, .5, .4]], [1, (1 + excess(.7)) / 2, excess(.7), (excess(.7) + excess(.5)) / 2])
    assert np.isnan(table[.1])

def test_a_verdict_says_no_more_than_the_intervals(rng):
    draws = made_draws(rng, {ALL: .8, ('influence', 'remove', 'top', .3): .7, ('chance', 'remove', 'random', .3): .75})
    said = verdict(compare(draws), redundancy(draws))
    assert '**0** are above random and **1** below' in said and 'remove 30% by influence, top (-0.050' in said
    assert 'no share that was tried' in said
    noisy = made_draws(rng, {ALL: .8, ('influence', 'remove', 'top', .3): .8, ('chance', 'remove', 'random', .3): .8}, seeds=8, noise=.05)
    assert 'cannot show any' in verdict(compare(noisy), redundancy(noisy))
    assert 'With one seed' in verdict(compare(one := made_draws(rng, {ALL: .8, ('a', 'remove', 'top', .3): .7, ('chance', 'remove', 'random', .3): .7}, 1)), redundancy(one))

@pytest.mark.long
def test_a_cluster_of_dask_gives_the_same(sweep, small_grid, data, checkpoints, tmp_path):
    distributed = pytest.importorskip('distributed')
    part, rows = small_grid[small_grid.rule == 'random'][:1].reset_index(drop=True), sweep[0]
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        again = run_subsets(checkpoints, data, part, tmp_path, 'epochs', client.get_executor())
    np.testing.assert_allclose(again.auroc, part[_LABELS].merge(rows, on=_LABELS).auroc, atol=1e-6)

def test_figures_take_what_the_tables_are(sweep, data):
    rows, frame = sweep[0], data.frame
    rows = rows[rows['mode'] != 'select']
    draws = subset_draws(rows, frame, resamples=20)
    positives = frame.loc[frame.split == 'train', list(FINDINGS)].sum()
    curves, macro, findings = plot_subsets(rows), plot_differences(compare(draws)), plot_finding_differences(compare(draws, findings=FINDINGS), positives)
    assert [text.get_text() for text in curves.legends[0].texts] == ['all images', 'top', 'bottom', 'random']
    assert [text.get_text() for text in macro.legends[0].texts] == ['top', 'bottom']
    scored = compare(draws, findings=FINDINGS).dropna(subset='low').finding.unique()
    assert [label.get_text().rsplit(' (')[0].replace(' ', '_') for label in findings.axes[0].get_yticklabels()] == [
        finding for finding in positives.sort_values().index if finding in scored]

# Runs one can trust

def test_plans_that_cannot_be_compared_or_trained_are_refused(made, rng, data, checkpoints, tmp_path):
    scores = valuation(made, rng)
    with refused('rules are top', 'add random', 'reference=None'): subset_grid(scores, made, rules=['top'])
    with refused('add stratified'): subset_grid(scores, made, rules=['top', 'random'], reference='stratified')
    for name, value in product(['rules', 'seeds', 'fractions'], [[], 'top']):
        with refused(f'{name} is {value!r}', 'give a list'): subset_grid(scores, made, **{name: value})
    other = subset_grid(scores, made, {'remove': [.2]}, ['random'], [0])
    with refused('is no training image of this data'): run_subsets(checkpoints, data, other, tmp_path/'out')
    with refused('lacks kept', 'subset_grid'): run_subsets(checkpoints, data, other.drop(columns='kept'), tmp_path/'out')
    with refused('plan of 0 rows'): run_subsets(checkpoints, data, other[:0], tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_damaged_rows_are_made_again(sweep, small_grid, data, checkpoints, tmp_path, rng, capsys, monkeypatch):
    out, few = shutil.copytree(sweep[1], tmp_path/'out'), small_grid[small_grid.rule == 'random'][:2]
    def ask():
        in_a_new_process()
        with ThreadPoolExecutor(1) as executor: return run_subsets(checkpoints, data, few, out, 'epochs', executor)
    rows = ask().drop(columns='seconds')
    monkeypatch.setattr(retraining, 'fit', lambda *a, **k: pytest.fail('trained again')) # the logits are kept
    for how in ['flip', 'flip', 'cut', 'empty']:
        path = Path(rng.choice(rows.retrained)).with_suffix(str(rng.choice(['.json', '.parquet'])))
        hurt(path, how, rng)
        pd.testing.assert_frame_equal(ask().drop(columns='seconds'), rows)
        assert f'{path.name} is damaged' in capsys.readouterr().err
    monkeypatch.undo()
    for path in [*(out/'logits').glob('[!.]*.parquet'), *out.glob('*.json')]: hurt(path, 'flip', rng)
    pd.testing.assert_frame_equal(ask().drop(columns='seconds'), rows)
    path = Path(rows.retrained[0]).with_suffix('.parquet')
    hurt(path, 'flip', rng)
    in_a_new_process()
    with refused('is damaged', 'run_subsets'): subset_draws(rows, data.frame, 'auroc', 2)

def test_scores_that_a_disk_has_changed_are_not_read(data, checkpoints, tmp_path, rng):
    influence(checkpoints, data, tmp_path/'scores.csv', per_finding=False, device='cpu')
    read_scores(tmp_path/'scores.csv')
    hurt(tmp_path/'scores.csv', 'flip', rng)
    in_a_new_process()
    with refused('scores.csv is damaged', 'score again'): read_scores(tmp_path/'scores.csv')

SHARED = '''
import os, sys, torch
import pandas as pd
from concurrent.futures import ThreadPoolExecutor
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import decode
from cxr_influence.evidence import retraining
from cxr_influence.evidence.subsets import run_subsets, subset_grid
root, store, checkpoints, out, log = sys.argv[1:]
torch.set_num_threads(1)
frame, real = read_nih(root), retraining.fit
def noted(data, folder, *rest, **options):
    with open(log, 'a') as file: file.write(f'{os.getpid()} {folder}\\n')
    return real(data, folder, *rest, **options)
retraining.fit = noted
data = Data(frame, decode(frame, root, 64, store))
train = data.train.index
scores = pd.Series(range(len(train)), train, name='influence')
grid = subset_grid(scores, frame, {'select': [.2, .4]}, ['top', 'bottom', 'random'], [0])
with ThreadPoolExecutor(1) as executor: rows = run_subsets(checkpoints, data, grid, out, 'epochs', executor)
rows.drop(columns=['seconds', 'retrained']).to_csv(f'{log}.{os.getpid()}.csv')
'''

def shared(tmp_path, phantom, data, checkpoints, name):
    (tmp_path/'shared.py').write_text(SHARED)
    return [str(word) for word in [tmp_path/'shared.py', phantom, data.store.folder, checkpoints, tmp_path/name, tmp_path/f'{name}.log']]

def quiet(): return os.environ | {'TQDM_DISABLE': '1', 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(subsets.__file__).parents[2])}

@pytest.mark.long
def test_sweeps_that_meet_share_the_work_and_survive_each_other(phantom, data, checkpoints, tmp_path):
    call = shared(tmp_path, phantom, data, checkpoints, 'together')
    two = [Script(*call) for _ in range(2)]
    assert [process.wait() for process in two] == [0, 0], [process.said() for process in two]
    begun = (tmp_path/'together.log').read_text().splitlines()
    assert len(begun) == len({line.split()[1] for line in begun}) == 6 # none twice
    one, other = (path.read_bytes() for path in tmp_path.glob('together.log.*.csv'))
    assert one == other
    call = [*call[:-2], str(tmp_path/'killed'), str(tmp_path/'killed.log')]
    two = [Script(*call) for _ in range(2)]
    while len(list((tmp_path/'killed').glob('*.json'))) < 2 and two[1].poll() is None: time.sleep(.02)
    two[0].kill()
    assert two[0].wait() in (-9, 0) and two[1].wait() == 0
    assert (tmp_path/f'killed.log.{two[1].pid}.csv').read_bytes() == one

@pytest.mark.long
def test_the_processes_of_a_launcher_share_the_work_and_give_the_table_of_one(phantom, data, checkpoints, tmp_path):
    done = subprocess.run([*LAUNCH, *shared(tmp_path, phantom, data, checkpoints, 'two')], env=quiet(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Script(*shared(tmp_path, phantom, data, checkpoints, 'one')).wait() == 0
    begun = (tmp_path/'two.log').read_text().splitlines()
    assert len(begun) == len({line.split()[1] for line in begun}) == 6 # each alone, none twice
    tables = [path.read_bytes() for path in tmp_path.glob('*.log.*.csv')]
    assert len(tables) == 3 and len({*tables}) == 1 # to the last bit

def children(pid):
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True).stdout.split()
    return {int(child) for child in found} | {grand for child in found for grand in children(int(child))}

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False # it ended meanwhile

@pytest.mark.long
@pytest.mark.skipif(not Path('/proc').exists(), reason='reads /proc')
def test_two_ctrl_c_leave_no_process_and_nothing_half_written(phantom, data, checkpoints, tmp_path):
    two_workers = 'from cxr_influence.evidence import retraining\nretraining.cpu_count = lambda: 2\n'
    (tmp_path/'sweep.py').write_text(SWEEP.replace('root, store', two_workers + 'root, store', 1))
    out = tmp_path/'out'
    call = [sys.executable, str(tmp_path/'sweep.py'), *map(str, [phantom, data.store.folder, checkpoints, out])]
    process = subprocess.Popen(call, start_new_session=True, env=quiet(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob('*.json'))) < 2 and process.poll() is None: time.sleep(.02)
    started = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(.3)
    if process.poll() is None: os.killpg(process.pid, signal.SIGINT)
    process.wait(120)
    until = time.monotonic() + 60
    while any(map(alive, started)) and time.monotonic() < until: time.sleep(.1)
    assert not [pid for pid in started if alive(pid)]
    again = subprocess.run(call, env=quiet(), capture_output=True, text=True)
    assert again.stdout.split() == ['7', 'True'], again.stderr
    assert not [*out.rglob('*.part')] and not [path for path in (out/'logits').iterdir() if path.is_dir()]

def test_scores_are_one_column_without_gaps(rng):
    table = pd.DataFrame({'influence': rng.random(10), 'rank': range(10)}, [f'{i}.png' for i in range(10)])
    assert 'scores is a DataFrame: give one column' in sentence(kept_images, table, 'remove', 'top', .3)
    gaps = table.influence.where(table['rank'] != 4)
    assert '4.png has no score' in sentence(kept_images, gaps, 'remove', 'top', .3)
    assert 'Unknown rule None' in sentence(kept_images, table.influence, 'remove', None, .3)

def test_a_difference_has_the_error_of_its_seeds(rng):
    keys = [(score, 'remove', rule, .3, seed, 'epochs') for score, rule in [('a', 'top'), ('chance', 'random')] for seed in range(3)]
    value = np.array([.6, .7, .8, .7, .7, .7])[:, None] + rng.normal(0, 1e-6, (6, 501)) # seeds differ, patients do not
    columns = pd.MultiIndex.from_product([['macro'], range(501)], names=['finding', 'resample'])
    draws = pd.DataFrame(value, pd.MultiIndex.from_tuples(keys, names=_KEYS), columns)
    row = compare(draws).set_index('rule').loc['top']
    assert row.low < -.15 and row.high > .15
