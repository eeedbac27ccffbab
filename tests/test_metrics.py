"Metrics, calibration and intervals agree with the libraries, or with the slow way, on fresh random inputs."
import numpy as np, pandas as pd, pytest, torch
from scipy.special import expit, logit
from scipy.stats import norm
from sklearn import metrics as sk
from torchmetrics.functional.classification import (binary_calibration_error, binary_sensitivity_at_specificity,
                                                    multilabel_auroc, multilabel_average_precision)

from conftest import refused
from cxr_influence.measures.calibration import (classwise_calibration_error,
    equal_mass_calibration_error, fit_platt, pooled_calibration_error)
from cxr_influence.measures.intervals import (_AGE_BANDS, bootstrap_auroc, percentile_interval,
    _mean_auroc, paired_difference, patient_weights, seed_means, slice_auroc, underdiagnosis,
    weighted_auroc)
from cxr_influence.data.labels import FINDINGS
from cxr_influence.measures.metrics import (_metric_table, choose_thresholds,
    test_tuned_f1 as tuned_f1, undefined_findings)
from cxr_influence.measures.results import _AVERAGES, evaluate, show_results, write_results

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture(params=['smooth', 'ties', 'unknown'])
def made(request):
    "Targets, probabilities and patients; with many ties, or with unknown labels."
    rng = np.random.default_rng()
    n, patients = 400, rng.integers(0, 80, 400)
    logits = rng.normal(-1, 1.5, (n, 14))
    targets = (rng.random((n, 14)) < expit(logits + rng.normal(0, 1, (n, 14)))).astype('float64')
    probabilities = expit(logits).round(1 if request.param == 'ties' else 17)
    if request.param == 'unknown': targets[rng.random((n, 14)) < .2] = np.nan
    return targets, probabilities, patients

def known(targets, probabilities, i):
    keep = ~np.isnan(targets[:, i])
    return targets[keep, i], probabilities[keep, i]

def test_every_metric_is_the_librarys(made):
    targets, probabilities, _ = made
    thresholds = choose_thresholds(targets, probabilities)
    table = _metric_table(targets, probabilities, thresholds)
    for i, finding in enumerate(FINDINGS):
        y, p = known(targets, probabilities, i)
        tn, fp, fn, tp = sk.confusion_matrix(y, p >= thresholds[i]).ravel()
        at_95, _ = binary_sensitivity_at_specificity(torch.tensor(p), torch.tensor(y).int(), .95)
        expected = [sk.roc_auc_score(y, p), sk.average_precision_score(y, p), 2 * tp / (2 * tp + fp + fn), tp / (tp + fn),
                    tn / (tn + fp), float(at_95), ((p - y) ** 2).mean()]
        np.testing.assert_allclose(table.loc[finding], expected, rtol=1e-6)

def test_averages_are_torchmetrics(made):
    targets, probabilities, _ = made
    if np.isnan(targets).any(): pytest.skip('torchmetrics masks nothing that is NaN')
    table = _metric_table(targets, probabilities, np.full(14, .5))
    p, y = torch.tensor(probabilities), torch.tensor(targets).int()
    for average in _AVERAGES:
        assert abs(table.auroc[average] - float(multilabel_auroc(p, y, 14, average))) < 1e-6
        assert abs(table.auprc[average] - float(multilabel_average_precision(p, y, 14, average))) < 1e-6

@pytest.mark.long
def test_no_threshold_beats_the_chosen_one(made):
    targets, probabilities, _ = made
    best = tuned_f1(targets, probabilities)
    for i, finding in enumerate(FINDINGS):
        y, p = known(targets, probabilities, i)
        f1 = {threshold: 2*(y*(p >= threshold)).sum()/(y.sum() + (p >= threshold).sum()) for threshold in np.unique(p)}
        threshold, highest = max(f1.items(), key=lambda pair: pair[1])
        assert abs(highest - sk.f1_score(y, p >= threshold)) < 1e-12 and best[finding] >= highest - 1e-12

def test_calibration_errors_are_what_they_say(made):
    targets, probabilities, _ = made
    def slow(y, p, bins=15): # Guo et al. 2017, bin by bin; the ends of bins as in torchmetrics
        where = np.clip(np.searchsorted(torch.linspace(0, 1, bins + 1, dtype=torch.float64).numpy(), p, 'right') - 1, 0, bins - 1)
        return sum(abs(y[where == b].mean() - p[where == b].mean()) * (where == b).mean() for b in range(bins) if (where == b).any())
    by_finding = [slow(*known(targets, probabilities, i)) for i in range(14)]
    keep = ~np.isnan(targets)
    np.testing.assert_allclose(classwise_calibration_error(targets, probabilities), np.mean(by_finding), atol=1e-5)
    np.testing.assert_allclose(pooled_calibration_error(targets, probabilities), slow(targets[keep], probabilities[keep]), atol=1e-5)
    one_bin = np.mean([abs(np.subtract(*[v.mean() for v in known(targets, probabilities, i)])) for i in range(14)])
    np.testing.assert_allclose(equal_mass_calibration_error(targets, probabilities, 1), one_bin, atol=1e-9)

def test_platt_finds_the_slope_and_intercept_that_were_put_in():
    rng = np.random.default_rng()
    slope, intercept = rng.uniform(.5, 2, 14), rng.uniform(-2, 1, 14)
    right = rng.normal(-1, 1.5, (30_000, 14))
    targets = (rng.random(right.shape) < expit(right)).astype(float)
    targets[::7] = np.nan
    platt = fit_platt(targets, (right - intercept) / slope)
    np.testing.assert_allclose(platt.slope, slope, rtol=.1)
    np.testing.assert_allclose(platt.intercept, intercept, atol=.15)
    assert abs(platt((right - intercept) / slope) - expit(right)).max() < .06

@pytest.mark.parametrize('positives', [0, 1, 2, 50, 100])
def test_platt_is_finite_and_keeps_the_order_whatever_there_is(positives):
    rng = np.random.default_rng()
    logits = rng.normal(0, 3, (100, 14)).astype('float32')
    targets = np.zeros((100, 14))
    for i in range(14): targets[np.argsort(logits[:, i])[100 - positives:], i] = 1 # perfectly separated
    platt = fit_platt(targets, logits)
    p = platt(logits)
    assert np.isfinite(p).all() and (platt.slope > 0).all() and abs(p.mean() - positives / 100) < .05
    assert all((np.diff(p[np.argsort(logits[:, i]), i]) >= 0).all() for i in range(14))

def test_the_fast_bootstrap_is_the_slow_one(made):
    targets, probabilities, patients = made
    draws, weights = bootstrap_auroc(targets, probabilities, patients, 8, seed=3), patient_weights(patients, 8, 3)
    for r, row in enumerate(weights):
        assert row.sum() and all(len(set(row[patients == patient])) == 1 for patient in set(patients))
        for i, finding in enumerate(FINDINGS):
            keep = ~np.isnan(targets[:, i])
            slow = sk.roc_auc_score(targets[keep, i], probabilities[keep, i], sample_weight=row[keep])
            np.testing.assert_allclose(draws[finding][r], slow, rtol=1e-10)

def test_the_bootstrap_in_parts_is_the_bootstrap(made, monkeypatch):
    targets, probabilities, patients = made
    whole = bootstrap_auroc(targets, probabilities, patients, 20)
    monkeypatch.setattr(np, 'array_split', lambda weights, parts, split=np.array_split: split(weights, 7))
    pd.testing.assert_frame_equal(bootstrap_auroc(targets, probabilities, patients, 20), whole)

def test_an_interval_covers_as_often_as_it_says():
    rng, covered = np.random.default_rng(), []
    truth = norm.cdf(1 / 2**.5) # of two normal distributions, one standard deviation apart
    for _ in range(300):
        y = rng.random(300) < .3
        low, high = percentile_interval(weighted_auroc(y, rng.normal(0, 1, 300) + y, patient_weights(np.arange(300), 200)))
        covered.append(low <= truth <= high)
    assert .86 < np.mean(covered) < .99

def test_a_model_does_not_differ_from_itself_and_paired_intervals_are_narrower(made):
    targets, probabilities, patients = made
    assert (paired_difference(targets, probabilities, probabilities, patients, 20) == 0).all(axis=None)
    noisy = probabilities + np.random.default_rng().normal(0, .02, probabilities.shape)
    table = paired_difference(targets, probabilities, noisy, patients, 200)
    one, other = (bootstrap_auroc(targets, p, patients, 200, seed).mean(axis=1) for p, seed in [(probabilities, 1), (noisy, 2)])
    low, high = percentile_interval(one - other) # as if the patients had been others
    assert table.high['macro'] - table.low['macro'] < high - low
    assert np.isclose(table.difference['macro'], table.difference[:-1].mean())

def test_predictions_that_are_unknown_or_of_other_rows_are_refused(made):
    targets, probabilities, patients = made
    gone = probabilities.copy()
    gone[:3] = np.nan
    with refused('predictions of', 'are NaN'): paired_difference(targets, gone, probabilities, patients, 9)
    with refused('are NaN'): bootstrap_auroc(targets, gone, patients, 9)
    y, p = (pd.DataFrame(one, columns=FINDINGS) for one in (targets, probabilities))
    assert (paired_difference(y, p, p, patients, 9) == 0).all(axis=None)
    y, p = (table.set_axis([f'{k}.png' for k in range(len(table))]) for table in (y, p))
    assert (paired_difference(y, p.reset_index(drop=True), p, patients, 9) == 0).all(axis=None) # rows without names
    with refused('not of the same images in the same order'): paired_difference(y, p, p[::-1], patients, 9)
    with refused('not of the same images in the same order'): paired_difference(y[::-1], p, p, patients, 9)

def test_seeds_add_their_spread():
    rng = np.random.default_rng()
    draws = rng.normal(0, .01, (5, 4000)) + np.array([-.2, -.1, 0, .1, .2])[:, None]
    assert seed_means(draws).std() > 4 * draws.mean(0).std()
    assert np.array_equal(seed_means(draws[:1]), np.tile(draws[0], 20))

def test_slices_are_the_parts(made):
    targets, probabilities, patients = made
    rng = np.random.default_rng()
    frame = pd.DataFrame({'patient': patients, 'sex': rng.choice(['F', 'M'], 400), 'age': rng.choice([10., 39.9, 40, 64, 65, 90, np.nan], 400),
                          'view': rng.choice(['AP', 'PA', None], 400)})
    table = slice_auroc(targets, probabilities, frame, resamples=20)
    part = ((frame.sex == 'F') & (frame.age >= 40) & (frame.age < 65)).to_numpy()
    row = table.loc[('sex x age', 'F, 40 to 64')]
    assert row.images == part.sum() and row.patients == frame.patient[part].nunique()
    scored = [sk.roc_auc_score(*known(targets[part], probabilities[part], i)) for i in range(14)
              if min((targets[part, i] == 1).sum(), (targets[part, i] == 0).sum()) >= 5]
    assert row.findings == len(scored) and np.isclose(row.auroc, np.mean(scored)) and row.auroc_low <= row.auroc_high
    for by in ['sex', 'age', 'view']: assert table.loc[by].images.sum() == 400
    assert table.loc[('age', 'unknown')].images == frame.age.isna().sum() and set(table.loc['age'].index) == {*_AGE_BANDS, 'unknown'}
    tiny = slice_auroc(targets[:3], probabilities[:3], frame[:3], resamples=5)
    assert tiny.auroc.isna().all() and (tiny.findings == 0).all()

def test_underdiagnosis_is_the_share_of_images_with_a_finding_predicted_to_have_none(made):
    targets, probabilities, patients = made
    frame = pd.DataFrame({'patient': patients, 'sex': 'F', 'age': 50., 'view': 'PA'})
    positive = probabilities >= .7
    ill = (targets == 1).any(1)
    rate = underdiagnosis(targets, positive, frame, resamples=50)
    assert np.isclose(rate.rate['all', 'all'], (~positive[ill]).all(1).mean()) and rate.images_with_finding['all', 'all'] == ill.sum()
    assert (rate.low <= rate.rate).all() and (rate.rate <= rate.high).all()
    assert (underdiagnosis(targets, np.ones_like(positive), frame, resamples=5).rate == 0).all()

def test_the_table_names_undefined_findings_and_reads_back(made, tmp_path):
    targets, probabilities, patients = made
    targets = targets.copy()
    targets[:, 3], targets[:, 5] = 0, np.nan
    table = evaluate(targets, probabilities, np.full(14, .5), patients, 50)
    assert undefined_findings(targets) == table.attrs['undefined_findings'] == {FINDINGS[3]: 'no positives', FINDINGS[5]: 'no label is known'}
    assert list(table.index) == [*FINDINGS, *_AVERAGES] and table.loc[_AVERAGES].notna().all(axis=None)
    assert np.isclose(table.auroc['macro'], table.auroc[:14].dropna().mean())
    assert (table.auroc_low <= table.auroc)[_AVERAGES].all() and (table.auroc <= table.auroc_high)[_AVERAGES].all()
    write_results(table, tmp_path/'results.csv')
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'results.csv', index_col='finding'), table)
    text = (tmp_path/'results.md').read_text()
    assert f'{FINDINGS[3]} (no positives), {FINDINGS[5]} (no label is known)' in text and 'nan' not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['results.csv', 'results.md']
    assert show_results(table).shape == (17, 10)

def test_shapes_that_do_not_fit_and_nan_are_refused(made):
    targets, probabilities, patients = made
    with refused('(400, 14)', '(399, 14)'): evaluate(targets, probabilities[1:], np.full(14, .5), patients)
    with refused('NaN', 'diverged'): evaluate(targets, probabilities * np.nan, np.full(14, .5), patients)
    with refused('same images'): paired_difference(targets, probabilities, probabilities[1:], patients)

# What intervals promise

def twice(x): return np.repeat(x, 2, 0)

def test_copies_of_a_patients_images_narrow_no_interval(rng):
    y, patients = (rng.random((200, 14)) < .3).astype(float), rng.integers(0, 60, 200)
    p = .3*y + rng.random(y.shape)
    p, half = p/p.max(), np.full(14, .5)
    frame = pd.DataFrame({'patient': patients, 'sex': 'F', 'age': 50., 'view': 'PA'})
    double = frame.loc[twice(frame.index.to_numpy())].reset_index(drop=True)
    for one, two, low, high in [
            (evaluate(y, p, half, patients, 50), evaluate(twice(y), twice(p), half, twice(patients), 50), 'auroc_low', 'auroc_high'),
            (slice_auroc(y, p, frame, 'sex', 50), slice_auroc(twice(y), twice(p), double, 'sex', 50), 'auroc_low', 'auroc_high'),
            (underdiagnosis(y, p > .9, frame, 'sex', 50), underdiagnosis(twice(y), twice(p) > .9, double, 'sex', 50), 'low', 'high')]:
        np.testing.assert_allclose(one[[low, high]], two[[low, high]])

def test_errors_of_seeds_are_those_of_student_and_cancel_where_they_are_the_same(rng):
    draws = rng.normal(0, 1e-6, (3, 2000)) + np.array([-1, 0, 1.])[:, None]
    low, high = np.quantile(seed_means(draws), [.025, .975])
    assert abs(high - 4.303/3**.5) < .2 and abs(low + high) < 1e-3 # t of two degrees of freedom, and as far down as up
    a, b = rng.normal(size=(2, 4, 50))
    np.testing.assert_allclose(seed_means(a) - seed_means(b), seed_means(a - b), atol=1e-12)
    one, other = rng.normal(size=(2, 4, 1)) + np.zeros((4, 200)) # of equal spread, and nothing in common
    assert np.ptp(np.quantile(seed_means(one) - seed_means(other), [.025, .975])) > .5*np.ptp(np.quantile(seed_means(one), [.025, .975]))

def test_few_patients_have_no_interval_and_a_mean_is_over_the_same_findings(rng):
    y, patients = (rng.random((120, 14)) < .4).astype(float), np.repeat(np.arange(60), 2)
    y[:, 0] = patients < 4 # eight images of four patients
    p = rng.random(y.shape)
    table = evaluate(y, p, np.full(14, .5), patients, 100)
    assert table.auroc_low.isna().tolist() == [True] + [False]*16 and table.auroc.notna().all()
    frame = pd.DataFrame({'patient': patients, 'sex': 'F', 'age': 50., 'view': 'PA'})
    assert slice_auroc(y, p, frame, 'sex', 20).findings.eq(13).all()
    samples = pd.DataFrame({'a': [.5, .7, np.nan], 'b': [.9, .8, .7], 'never': np.nan})
    np.testing.assert_allclose(_mean_auroc(samples), [.7, .75, np.nan])

def test_lucky_resamples_alone_make_no_interval(rng):
    "Of many findings with one patient each hardly a resample has them all."
    y = np.zeros((40, 14))
    y[rng.permutation(40)[:14], range(14)] = 1
    p = rng.random(y.shape)
    samples = bootstrap_auroc(y, p, np.arange(40), 200, names=range(14))
    assert samples.notna().all(axis=1).mean() < .1
    np.testing.assert_array_equal(_mean_auroc(samples), samples.mean(axis=1))
    assert len(seed_means(rng.random((1, 30)))) == len(seed_means(rng.random((3, 30)))) # curves of unequal seeds are stacked
