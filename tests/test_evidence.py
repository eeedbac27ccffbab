"Label noise injected, detected and repaired; retraining predicted; the statistics behind them, each against a plain version."
import numpy as np
import pandas as pd
import pytest
from conftest import refused, sentence
from scipy.special import expit
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import log_loss, roc_auc_score

from cxr_influence.data.labels import FINDINGS
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.training.losses import FocalLoss
from cxr_influence.evidence import retraining
from cxr_influence.evidence.faithfulness import (fit_heads, head_influence, head_logits,
    head_losses, lds, lds_interval, random_subsets, reliability, retrain_heads, subset_losses)
from cxr_influence.evidence.label_errors import (_NOISE_KINDS, LabelNoise,
    compare_with_baseline, detected_at, detected_within, detection_curve, inject_label_noise, label_error_auroc,
    mean_over_seeds, noisy_run, only_finding, radiologist_disagreement, recovered, repairs)
from cxr_influence.evidence.stability import (averaging_gain, known_facts,
    partial_rank_correlation, patient_share, seed_agreement, seeds_until)
from cxr_influence.evidence.valuations import _random_numbers

@pytest.fixture
def rng(): return np.random.default_rng()

RECIPE = Recipe('densenet_small', loss=FocalLoss(gamma=0, label_smoothing=0), epochs=1, batch_size=16)
def noise_of(kind, share=.1): return LabelNoise(kind, 'Effusion' if kind == 'one_finding' else None, share)
def random_frame(rng, n=200, unknown=0.):
    labels = rng.integers(2, size=(n, 14)).astype('float32')
    labels[rng.random((n, 14)) < unknown] = np.nan
    frame = pd.DataFrame(labels, [f'{i:04}.png' for i in range(n)], list(FINDINGS)).rename_axis('image')
    return frame.assign(patient=np.arange(n) // 2, split=np.repeat(rng.permutation(['train', 'train', 'validation', 'test'] * (n // 8)), 2))

@pytest.mark.parametrize('kind', _NOISE_KINDS)
@pytest.mark.parametrize('unknown', [0., .3])
def test_the_noise_is_what_the_truth_states(rng, kind, unknown):
    frame, share = random_frame(rng, unknown=unknown), rng.uniform(.05, .5)
    before = frame.copy()
    noisy, truth = inject_label_noise(frame, noise_of(kind, share), int(rng.integers(1e6)))
    pd.testing.assert_frame_equal(frame, before)
    train = frame.split == 'train'
    assert truth.index.equals(frame.index[train]) and list(truth) == list(FINDINGS)
    pd.testing.assert_frame_equal(noisy[~train], frame[~train])
    known = noisy[train][list(FINDINGS)].notna() & frame[train][list(FINDINGS)].notna()
    assert (truth == ((noisy[train][list(FINDINGS)] != frame[train][list(FINDINGS)]) & known)).all(axis=None)
    touched, most = truth.any(axis=1).sum(), round(share * train.sum())
    if kind == 'swapped': # the same vectors, handed around
        assert touched <= most
        rows = lambda f: sorted(map(str, f[train][list(FINDINGS)].to_numpy().tolist()))
        assert rows(noisy) == rows(frame)
    else:
        assert touched <= most and (truth.sum(axis=1) <= 1).all() and (unknown or touched == most)
    if kind == 'one_finding': assert not truth.drop(columns='Effusion').any(axis=None)

def test_seeds_and_shares_of_noise(rng):
    frame = random_frame(rng)
    for kind in _NOISE_KINDS:
        one, again, other = (inject_label_noise(frame, noise_of(kind, .2), seed)[0] for seed in [3, 3, 4])
        assert one.equals(again) and not one.equals(other)
        assert inject_label_noise(frame, noise_of(kind, 0), 3)[0].equals(frame)

@pytest.mark.long
def test_noise_is_independent_of_the_random_valuation(rng):
    frame, start = random_frame(rng, 400), int(rng.integers(1e6))
    for kind in _NOISE_KINDS:
        hits = []
        for seed in range(start, start + 300):
            wrong = inject_label_noise(frame, noise_of(kind), seed)[1].any(axis=1).to_numpy()
            hits.append(np.corrcoef(wrong, _random_numbers(frame, seed).random)[0, 1])
        assert abs(np.mean(hits)) < 6 * np.std(hits) / 300**.5

def test_noise_refuses(rng):
    frame = random_frame(rng)
    def inject(*noise, **named): return inject_label_noise(frame, LabelNoise(*noise, **named))
    with refused("'noise'", 'one_finding'): inject('noise')
    with refused('name one for one_finding'): inject('one_finding')
    with refused('no other kind'): inject('swapped', 'Mass')
    with refused('Unknown finding', 'Flu'): inject('one_finding', 'Flu')
    with refused('share is 0.7'): inject('swapped', share=.7)
    with refused('split train'): inject_label_noise(frame.assign(split='test'), LabelNoise('swapped'))

def plain_found(score, wrong, inspected):
    "What is found in any order of equals, on average over many shuffles."
    finds = []
    for seed in range(400):
        order = np.random.default_rng(seed).permutation(len(score))
        order = order[np.argsort(-score.to_numpy()[order], kind='stable')]
        finds.append(wrong.to_numpy()[order][:inspected].sum() / wrong.sum())
    return np.mean(finds)

def test_the_curve_is_the_plain_one_with_and_without_ties(rng):
    names = [f'{i}.png' for i in range(60)]
    wrong = pd.Series(rng.permutation(np.arange(60) < 12), names)
    for values in [rng.normal(size=60), rng.integers(4, size=60) * 1.]:
        score = pd.Series(values, names, name='score')
        curve = detection_curve(score, wrong)
        assert curve.found.iloc[0] == 0 and np.isclose(curve.found.iloc[-1], 1) and curve.found.is_monotonic_increasing
        for inspected in 6, 30: assert abs(curve.found[inspected] - plain_found(score, wrong, inspected)) < .05
        area, p = np.trapezoid(curve.found, curve.inspected), wrong.mean()
        assert abs((area - p / 2) / (1 - p) - roc_auc_score(wrong, score)) < .02
    table = detected_at(pd.DataFrame({'a': score, 'same order': np.exp(score)}), wrong)
    np.testing.assert_allclose(table.loc['a'].astype(float), table.loc['same order'].astype(float))

def test_curves_refuse(rng):
    wrong = pd.Series([True, False, False], list('abc'))
    score = pd.Series([1., 2., 3.], list('abc'), name='loss')
    with refused('loss', 'another order'): detection_curve(score[::-1], wrong)
    with refused('no number for b'): detection_curve(score.where(score != 2), wrong)
    with refused('0 of 3 labels are wrong'): detection_curve(score, wrong & False)

def test_detection_within_the_observed_label_counts_pairs(rng):
    n = int(rng.integers(40, 80))
    images, observed = [f'{i}.png' for i in range(n)], pd.Series(rng.integers(0, 3, n))
    wrong = pd.Series(rng.random(n) < .3)
    wrong[:6], observed[:6] = [True, False] * 3, [0, 0, 1, 1, 2, 2]
    score = pd.Series(rng.integers(0, 5, n).astype(float)) # with ties
    pairs = [(observed[i], (score[i] > score[j]) + .5 * (score[i] == score[j]))
             for i in np.flatnonzero(wrong) for j in np.flatnonzero(~wrong) if observed[i] == observed[j]]
    for series in [observed, wrong, score]: series.index = images
    found = detected_within(pd.DataFrame({'a': score, 'label': observed}), wrong, observed)
    assert np.isclose(found.within['a'], np.mean([right for _, right in pairs])) and (found.loc['label'] == .5).all()
    for value in range(3):
        assert np.isclose(found.loc['a', f'among {value}'], np.mean([right for own, right in pairs if own == value]))
    alone = observed.where(observed != 2, np.arange(100., 100 + n)) # with nothing to compare
    assert list(detected_within(score.to_frame('a'), wrong, alone)) == ['among 0', 'among 1', 'within']
    with refused('No observed label has both'): detected_within(score.to_frame('a'), wrong, pd.Series(range(n), images))
    with refused('in another order'): detected_within(score.to_frame('a'), wrong, observed[::-1])

def test_intervals_over_seeds_hold_what_they_promise(rng):
    rows = pd.DataFrame(rng.normal(.3, .1, (1000, 5))) # a thousand valuations, all truly 0.3
    table = mean_over_seeds(rows)
    assert .92 < ((table.low < .3) & (.3 < table.high)).mean() < .98
    assert mean_over_seeds(rows[[0]]).low.isna().all()
    shared = pd.DataFrame(rng.normal(size=(3, 5)), index=['ours', 'a', 'b'])
    shared.loc['b'] = shared.loc['a'] + 5
    shared.loc['ours'] = shared.loc['b'] + .1
    table = compare_with_baseline(shared, ['a', 'b'])
    assert table.attrs['baseline'] == 'b' and np.allclose(table.loc['ours'], .1)

def test_repairs_do_what_they_say(rng):
    frame = random_frame(rng)
    noisy, truth = inject_label_noise(frame, LabelNoise('swapped', share=.3), 1)
    error_scores = pd.DataFrame({'knows': truth.any(axis=1) * 1., 'random': rng.random(len(truth))}, truth.index)
    fixed = repairs(frame, noisy, error_scores, truth.any(axis=1).mean())
    assert fixed['relabel', 'knows'].equals(frame) and fixed['noisy', ''].equals(noisy) and fixed['right', ''].equals(frame)
    dropped = fixed['drop', 'knows']
    assert set(dropped.index[dropped.split == 'unused']) == set(truth.index[truth.any(axis=1)])
    assert (fixed['drop', 'random'].split == 'unused').sum() == truth.any(axis=1).sum()
    kept = fixed['relabel', 'random']
    assert kept[kept.split != 'train'].equals(frame[frame.split != 'train']) and (kept.dtypes == frame.dtypes).all()

def test_the_recovered_gap_of_known_gaps(rng):
    n = 3000
    right = only_finding(random_frame(rng, n).assign(split='test', patient=np.arange(n)), 'Mass')
    def logits(strength):
        z = rng.normal(size=(n, 14)) + strength * right[['Mass']].to_numpy()
        return pd.DataFrame(z, right.index, list(FINDINGS))
    seeds = []
    for _ in range(3):
        bad, good = logits(.3), logits(2)
        seeds.append({('right', ''): good, ('noisy', ''): bad, ('drop', 'random'): bad, ('drop', 'full'): good})
    table = recovered(seeds, right, 100)
    assert np.isclose(table.recovered['drop', 'full'], 1) and np.isclose(table.recovered['drop', 'random'], 0)
    assert np.isclose(table.over_low['drop', 'full'], 1) and np.isclose(table.high['drop', 'random'], 0)
    expected = np.mean([roc_auc_score(right.Mass, one['right', ''].Mass) for one in seeds])
    assert np.isclose(table.auroc['right', ''], expected)
    turned = [one | {('right', ''): one['noisy', ''], ('noisy', ''): one['right', '']} for one in seeds]
    assert recovered(turned, right, 50).recovered.isna().all() # no gap, no share of it

def test_lds_of_sums_and_of_noise(rng):
    scores, subsets = rng.normal(size=(3, 80)), random_subsets(80, 60, int(rng.integers(1e6)))
    assert (subsets.sum(1) == 40).all() and len(np.unique(subsets, axis=0)) == 60
    losses = -(subsets @ scores.T)
    assert np.allclose(lds(scores, subsets, losses), 1) and np.allclose(lds(scores, subsets, losses**3), 1)
    assert np.allclose(lds(-scores, subsets, losses), -1) and np.allclose(lds(2 * scores + 5, subsets, losses), 1)
    plain = [spearmanr([sum(s for s, kept in zip(scores[0][::-1], row) if kept) for row in subsets], -losses[:, 0]).statistic]
    assert np.allclose(lds(scores[0][::-1], subsets, losses[:, 0]), plain)
    table = lds_interval(scores, subsets, losses + 5 * rng.normal(size=losses.shape), 50) # nearer to 1, ties of resampling bias it
    assert table['low'] <= table['lds'] <= table['high'] <= 1
    assert lds_interval(scores[0], subsets, losses[:, 0], 20)['lds'] == 1 # one output, as one column
    with refused('for 3 outputs and 80 training images'): lds(scores[:2], subsets, losses)

def test_lds_is_that_of_dattri(rng):
    metric = pytest.importorskip('dattri.metric', reason='dattri is not installed: pip install dattri, to compare with its LDS')
    torch = pytest.importorskip('torch')
    scores, subsets, noise = rng.normal(size=(4, 60)), random_subsets(60, 40), rng.normal(size=(40, 4))
    losses = -(subsets @ scores.T) + 5 * noise
    members = torch.tensor(np.stack([np.flatnonzero(kept) for kept in subsets]))
    theirs, _ = metric.lds(torch.tensor(scores.T), (torch.tensor(-losses), members))
    np.testing.assert_allclose(lds(scores, subsets, losses), theirs.numpy(), atol=1e-6)

def problem(rng, n=150, d=5):
    x, x_val = rng.normal(size=(n, d)), rng.normal(size=(40, d))
    w = rng.normal(size=(d, 2))
    return x, (rng.random((n, 2)) < expit(x @ w)) * 1., x_val, (rng.random((40, 2)) < expit(x_val @ w)) * 1.

def test_head_losses_are_cross_entropy(rng):
    x, y, *_ = problem(rng)
    w = rng.normal(size=(6, 2))
    p = expit(np.c_[x, np.ones(len(x))] @ w)
    np.testing.assert_allclose(expit(head_logits(x, w)), p)
    for k in range(2): assert np.isclose(head_losses(x, y, w)[:, k].mean(), log_loss(y[:, k], p[:, k]))

def test_the_head_is_at_its_optimum(rng):
    x, y, *_ = problem(rng)
    w, a = fit_heads(x, y, .3), np.c_[x, np.ones(len(x))]
    gradient = a.T @ (expit(a @ w) - y) + np.r_[w[:-1] / .3, np.zeros((1, 2))]
    assert np.abs(gradient).max() < 1e-3
    with refused('Column 1', 'leave this finding out'): fit_heads(x, np.c_[y[:, 0], np.ones(len(x))])

def test_influence_predicts_leaving_one_out(rng):
    x, y, x_val, y_val = given = problem(rng)
    exact, product = (head_influence(*given, .1, hessian) for hessian in [True, False])
    assert exact.shape == (2, 40, 150)
    base = head_losses(x_val, y_val, fit_heads(x, y, .1))
    left_out = retrain_heads(*given, ~np.eye(150, dtype=bool)[:30], .1) - base # (30, 40, 2)
    for k in range(2):
        assert np.corrcoef(exact[k][:, :30].ravel(), left_out[:, :, k].T.ravel())[0, 1] > .99
        slope = (exact[k][:, :30] * left_out[:, :, k].T).sum() / (exact[k][:, :30]**2).sum()
        assert abs(slope - 1) < .15
    given = problem(rng, 1000)
    most = np.stack([rng.permutation(1000) >= 100 for _ in range(60)]) # a first order holds for a tenth, in some frames not for half
    exact, product = (head_influence(*given, .1, hessian) for hessian in [True, False])
    measured = retrain_heads(*given, most, .1).mean(1)
    assert np.mean(lds(exact.mean(1), most, measured)) > .9
    assert np.mean(lds(exact.mean(1), most, measured)) >= np.mean(lds(product.mean(1), most, measured)) - .05

def test_reliability_and_groups_follow_spearman_and_brown(rng):
    truth, loud = rng.normal(size=(4000, 1)), rng.uniform(.5, 2)
    copies = truth + loud * rng.normal(size=(4000, 6))
    mean_and_truth = spearmanr(copies.mean(1), truth[:, 0]).statistic
    assert abs(reliability(copies)**.5 - mean_and_truth) < .04
    agreement = seed_agreement(pd.DataFrame(copies))
    assert list(agreement.pairs) == [15, 3, 1] and agreement.correlation.is_monotonic_increasing
    ranks = rankdata(copies, axis=0)
    assert np.isclose(agreement.correlation[3], spearmanr(ranks[:, :3].mean(1), ranks[:, 3:].mean(1)).statistic)
    r = agreement.correlation[1]
    assert seeds_until(agreement, r - .01) == 1
    assert abs(seeds_until(agreement.loc[:1], .9) - .9 * (1 - r) / (r * .1)) < 1
    assert seeds_until(pd.DataFrame({'correlation': [-.1]}, index=[1])) is None
    with refused('at least two'): seed_agreement(pd.DataFrame(copies[:, :1]))

def test_partial_correlation_is_that_of_residuals(rng):
    known = pd.DataFrame(rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)), columns=['a', 'b', 'c'])
    score = pd.Series(known.a.to_numpy() + rng.normal(size=300))
    ranks, own = known.rank(), score.rank().to_numpy()
    found = partial_rank_correlation(score, known.assign(constant=1.))
    for name in known:
        others = ranks.drop(columns=name)
        left = [values - LinearRegression().fit(others, values).predict(others) for values in [own, ranks[name].to_numpy()]]
        assert np.isclose(found.partial[name], np.corrcoef(*left)[0, 1])
        assert np.isclose(found.alone[name], spearmanr(score, known[name]).statistic)
    assert np.isnan(found.partial['constant'])

def test_patients_share(rng):
    patients = pd.Series(np.arange(600) // 3)
    own = pd.Series(np.repeat(rng.normal(size=200), 3))
    assert patient_share(own, patients) > .99
    assert abs(patient_share(pd.Series(rng.normal(size=600)), patients)) < .2
    assert np.isnan(patient_share(own, pd.Series(np.arange(600))))

def test_radiologists_disagree(rng):
    frame = random_frame(rng)
    with refused('join_google'): radiologist_disagreement(frame)
    answers = frame.Pneumothorax.where(rng.random(len(frame)) < .5)
    found = radiologist_disagreement(frame.assign(google_Pneumothorax=1 - answers))
    assert list(found) == ['google_Pneumothorax'] and len(found) == (frame.split == 'train').sum()
    assert (found.dropna() == 1).all(axis=None) and found.google_Pneumothorax.isna().equals(answers[found.index].isna())

@pytest.mark.long
def test_scores_are_compared_with_radiologists(rng):
    frame = random_frame(rng, 400)
    train = frame.index[frame.split == 'train']
    wrong = pd.Series((rng.random(len(train)) < .3) * 1., train).mask(rng.random(len(train)) < .3)
    error_scores = pd.DataFrame({'blind': rng.normal(size=len(train)), 'half': wrong.fillna(0) + rng.normal(size=len(train)),
                             'knows': wrong.fillna(rng.random())}, train)
    found, known = label_error_auroc(error_scores, wrong, frame.patient), wrong.dropna()
    assert list(found.index) == list(error_scores) and list(found) == ['auroc', 'low', 'high']
    for name in error_scores: assert np.isclose(found.auroc[name], roc_auc_score(known, error_scores[name][known.index]))
    assert (found.loc['knows'] == 1).all() and (found.low <= found.auroc).all() and (found.auroc <= found.high).all()
    patients, draws = frame.patient[known.index], []
    groups = [known.index[patients == patient] for patient in patients.unique()]
    for _ in range(1500): # the plain way: patients drawn with replacement, their images stacked
        names = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        draws.append(roc_auc_score(known[names], error_scores.half[names]))
    assert np.allclose(found.loc['half', ['low', 'high']].to_numpy(float), np.quantile(draws, [.025, .975]), atol=.03)
    with refused('0 of', 'to be separated'): label_error_auroc(error_scores, wrong * 0, frame.patient)
    with refused('half has no number'): label_error_auroc(error_scores.assign(half=np.nan), wrong, frame.patient)
    with refused('blind has no number', known.index[0]): label_error_auroc(error_scores.drop(known.index[0]), wrong, frame.patient)

def test_the_gain_of_averaging(rng):
    subsets, true = random_subsets(150, 150, seed=int(rng.integers(1e6))), rng.normal(size=150)
    singles, losses = true + 1.5 * rng.normal(size=(6, 150)), -(subsets @ true)
    found = averaging_gain(singles.mean(0), singles, subsets, losses)
    plain = lds(singles.mean(0), subsets, losses)[0] - np.mean([lds(one, subsets, losses)[0] for one in singles])
    assert np.isclose(found['gain'], plain) and 0 < found['low'] < plain < found['high']
    assert set(averaging_gain(singles[0], singles[[0]], subsets, losses).values()) == {0}

def test_a_run_from_noise_to_scores(data, tmp_path):
    names, noise = ['random', 'loss', 'influence', 'cosine'], LabelNoise('one_finding', 'Effusion', .2)
    def run(): return noisy_run(data, RECIPE, noise, 3, tmp_path, names)
    error_scores, truth = run()
    assert list(error_scores) == names and error_scores.index.equals(data.train.index) and truth.index.equals(error_scores.index)
    pd.testing.assert_frame_equal(run()[0], error_scores)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1 # found again by what it is made of
    known = known_facts(data.frame, error_scores.assign(self_influence=1.))
    assert known.index.equals(error_scores.index) and known.notna().all(axis=None)

def test_retrainings_are_kept(data, tmp_path, monkeypatch):
    halves = random_subsets(len(data.train), 2)
    monkeypatch.setenv('LOKY_MAX_CPU_COUNT', '1')
    losses = subset_losses(data, RECIPE, halves, [0, 1], tmp_path)
    assert losses.shape == (2, 2, len(data.validation), 14) and np.isfinite(losses).all()
    assert len({losses[a, b].sum() for a in range(2) for b in range(2)}) == 4 == len(list(tmp_path.glob('*.parquet')))
    def never(*_, **__): raise AssertionError('trained again')
    monkeypatch.setattr(retraining, 'fit', never)
    np.testing.assert_array_equal(subset_losses(data, RECIPE, halves, [0, 1], tmp_path), losses)
    with pytest.raises(AssertionError): retraining.retrain(data, RECIPE, 0, data.rows('test'), tmp_path)

def test_images_without_a_known_label_are_inspected_last(rng):
    wrong = pd.Series(rng.random(60) < .3)
    scores = pd.DataFrame({'loss': rng.random(60)}).assign(standard=lambda table: table.loss)
    scores.loc[~wrong & (rng.random(60) < .4), 'standard'] = -np.inf # as no label is known
    lowest = scores.replace(-np.inf, -1.)
    assert detected_at(scores, wrong).equals(detected_at(lowest, wrong))
    observed = pd.Series(rng.integers(0, 2, 60))
    assert detected_within(scores, wrong, observed).equals(detected_within(lowest, wrong, observed))

def test_a_constant_score_goes_with_nothing(rng):
    known = pd.DataFrame({'loss': rng.random(30), 'norm': rng.random(30)})
    assert partial_rank_correlation(pd.Series(1., known.index), known).isna().all(axis=None)

def test_an_interval_of_an_averaged_lds_holds_it(rng):
    "Resampling lowers every correlation, and an average over many has too short an interval to hide it."
    truth = rng.normal(size=(20, 40))
    inside = 0
    for _ in range(20):
        subsets = rng.random((50, 40)) < .5
        losses = -(subsets @ truth.T)
        found = lds_interval(truth, subsets, losses + rng.normal(0, 1.5*losses.std(), losses.shape), 50)
        assert found['low'] <= found['lds'] <= found['high']
        inside += abs((found['low'] + found['high'])/2 - found['lds']) < .25*(found['high'] - found['low'])
    assert inside > 15 # not at its upper end

def test_a_view_that_is_unknown_is_not_called_pa(data, rng):
    frame = data.frame.assign(view=np.where(rng.random(len(data)) < .5, 'AP', None))
    table = pd.DataFrame({'loss': 1., 'self_influence': 1.}, data.train.index)
    view = known_facts(frame, table)['AP view']
    assert (view.isna() == frame.loc[table.index, 'view'].isna()).all() and view.dropna().eq(1).all()

def test_retrainings_without_a_loss_are_refused_before_they_begin(data, tmp_path):
    with refused('recipe has no loss'): subset_losses(data, RECIPE._replace(loss=None), random_subsets(len(data.train), 2), [0], tmp_path)
