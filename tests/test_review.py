"The review queue: which images, answers that no file or crash spoils, agreement, corrected labels, batches."
import itertools, os, signal, string, subprocess, sys, time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from conftest import sentence
from cxr_influence.data.batches import load_data
from cxr_influence.data.labels import encode_all
from cxr_influence.evidence.label_errors import only_finding
from cxr_influence.phantom.dataset import read_truth
from cxr_influence.review.queue import (Review, apply_review, batch_for_review, correction_gains, read_review, review_agreement,
    review_differences, review_error_rates, review_queue, simulate_review)

HEADER = 'image,finding,old,new,reviewer,seconds,time,shown'

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture(scope='module')
def data(phantom): return load_data(phantom, 32, stores=phantom.parent/'review-stores')

@pytest.fixture(scope='module')
def truth(phantom, data): return encode_all(read_truth(phantom).findings).loc[data.frame.index]

@pytest.fixture
def probabilities(data, rng): return pd.DataFrame(rng.random((len(data.train), 14)), data.train.index, data.findings)

@pytest.fixture
def scores(data, rng): return pd.Series(rng.random(len(data.train)), data.train.index, name='loss')

@pytest.fixture
def queue(scores, data, probabilities): return review_queue(scores, data, 20, .3, probabilities)

def row_of(data, on, of, /, **changes):
    row = dict(image=on, finding=of, old=int(data.frame[of][on]), new=1, reviewer='anna', seconds=3.5,
               time='2026-01-31T12:00:00Z', shown='flagged') | changes
    return ','.join(str(value) for value in row.values())

def write(path, *rows, header=HEADER, end='\n', encoding='utf-8'):
    path.write_bytes((end.join([header, *rows]) + end).encode(encoding))
    return path

def test_the_queue_is_the_highest_scores_and_random_others(scores, data, probabilities, rng):
    seed, share = int(rng.integers(1e6)), float(rng.choice([0, .2, .5]))
    queue = review_queue(scores, data, 20, share, probabilities, seed)
    flagged, control = (queue.table[queue.table.shown == shown] for shown in ['flagged', 'control'])
    assert len(control) == round(20 * share) and list(flagged.index) == list(scores.nlargest(20 - len(control)).index)
    assert not control.index.isin(flagged.index).any() and queue.table.index.is_unique
    loss = -np.log(1 - (probabilities - data.train[data.findings]).abs())
    surprise = (loss - loss.mean()) / loss.std()
    assert list(flagged.finding) == [surprise.columns[k] for k in surprise.loc[flagged.index].to_numpy().argmax(1)]
    assert list(queue.table.label) == [data.frame[f][i] for i, f in queue.table.finding.items()]
    asked, others = set(zip(flagged.finding, flagged.label)), data.train.drop(index=queue.table.index)
    assert all((f, l) in asked or not (others[f] == 1 - l).any() for f, l in zip(control.finding, control.label)) # or none of the other label is left
    again = review_queue(scores, data, 20, share, probabilities, seed)
    pd.testing.assert_frame_equal(queue.table, again.table)

@pytest.mark.long
def test_controls_are_drawn_evenly_and_stand_anywhere(scores, data):
    one = data.with_frame(only_finding(data.frame, 'Effusion'))
    drawn, places = pd.Series(0, data.train.index), []
    for seed in range(100):
        table = review_queue(scores, one, 20, .5, seed=seed).table
        assert (table.finding == 'Effusion').all()
        control = table.shown == 'control'
        drawn[table.index[control]] += 1
        places += list(np.flatnonzero(control))
    flagged = scores.nlargest(10).index
    assert not drawn[flagged].any()
    for _, counts in drawn.drop(flagged).groupby(data.train.Effusion): # evenly among those of one label
        assert (abs(counts - counts.mean()) <= 6 * counts.mean() ** .5 + 1).all()
    assert abs(np.mean(places) - 9.5) < 1 and len(set(places)) == 20 # of 1000 places: deviation .2

def test_scores_by_finding_name_the_label_and_unknown_labels_are_not_asked_about(data, rng):
    frame = data.frame.copy()
    hidden = rng.random((len(frame), 14)) < .5
    frame[data.findings] = frame[data.findings].mask(hidden)
    frame.loc[data.train.index[0], data.findings] = np.nan
    part = data.with_frame(frame)
    table = pd.DataFrame(rng.random((len(part.train), 14)), part.train.index, part.findings)
    queue = review_queue(table, part, 500)
    assert len(queue.table) == part.train[part.findings].notna().any(axis=1).sum() and queue.table.label.notna().all()
    known = table.where(part.train[part.findings].notna())
    assert np.allclose(queue.table.score, known.max(axis=1)[queue.table.index]) and queue.table.score.is_monotonic_decreasing
    plain = review_queue(table.max(axis=1), part, 5)
    image = plain.table.index[0]
    assert set(plain.asked(image)) == set(part.train.loc[image, part.findings].dropna().index) or plain.table.finding[image]

def test_scores_that_fit_nothing_are_refused(scores, data, probabilities):
    test = scores.rename({scores.index[0]: data.test.index[0]})
    assert data.test.index[0] in sentence(review_queue, test, data)
    assert scores.index[3] in sentence(review_queue, scores.where(scores.index != scores.index[3]), data)
    assert 'twice' in sentence(review_queue, pd.concat([scores, scores[:1]]), data)
    assert 'one per finding' in sentence(review_queue, pd.DataFrame({'a': scores, 'b': scores}), data)
    assert 'sigmoid' in sentence(review_queue, scores, data, probabilities=probabilities * 3)
    assert 'Mass' in sentence(review_queue, scores, data, probabilities=probabilities.drop(columns='Mass'))
    assert scores.index[2] in sentence(review_queue, scores, data, probabilities=probabilities.drop(index=scores.index[2]))
    for bad in [dict(n=0), dict(controls=1), dict(controls=-.1), dict(n=['x.png']), dict(n=[scores.index[0]] * 2)]:
        sentence(review_queue, scores, data, **bad)

def test_what_is_answered_is_read_again(queue, data, tmp_path, rng):
    name = ''.join(rng.choice(list(string.ascii_letters + ' ,;"\'äß=é'), 12)) + '"x'
    review, expected = Review(queue, tmp_path/'r.csv', name), {}
    for image in review.waiting[:12]:
        asked, = queue.asked(image)
        old = data.frame[asked][image]
        new = [{}, {asked: 1 - old}, {asked: None}][rng.integers(3)]
        review.answer(image, new, float(rng.random()))
        expected[image, asked] = new.get(asked, old)
    found = read_review(tmp_path/'r.csv').set_index(['image', 'finding']).new
    assert found.equals(pd.Series(expected, dtype=float).reindex(found.index)) or list(found.fillna(-1)) == [
        -1 if value is None else value for value in expected.values()]
    assert (review.answers().reviewer == name.strip()).all()
    assert Review(queue, tmp_path/'r.csv', name).waiting == review.waiting and len(review.waiting) == 8
    assert not list(tmp_path.glob('*.part'))

def test_skip_undo_and_changing_one_s_mind(queue, data, tmp_path):
    review = Review(queue, tmp_path/'r.csv', 'anna')
    one, two, three = review.waiting[:3]
    other = next(f for f in data.findings if f not in queue.asked(one))
    review.skip(one)
    review.skip(two)
    assert review.waiting[-2:] == [one, two] and review.waiting[0] == three
    review.answer(one, {other: 1 - data.frame[other][one]})
    assert review.answers().shown.tolist() == [queue.table.shown[one], 'noticed']
    Review(queue, tmp_path/'r.csv', 'ben').answer(one, {})
    review.answer(one, {})
    assert len(review.answers()) == 1 # what was noticed is taken back too
    review.answer(three, {})
    assert review.undo() == three and review.undo() == one and review.undo() is None
    assert list(read_review(tmp_path/'r.csv').reviewer) == ['ben'] and one in review.waiting
    assert 'does not wait' in sentence(review.skip, 'x.png')

def test_a_spreadsheet_s_file_reads_rightly(data, queue, tmp_path, rng):
    images = data.train.index[:3]
    plain = [row_of(data, image, 'Mass', new=k) for k, image in zip([1, 0, ''], images)]
    expected = read_review(write(tmp_path/'a.csv', *plain))
    floats = [row_of(data, i, 'Mass', new=k, old=f'{data.frame.Mass[i]:.1f}') for k, i in zip(['1.0', ' 0.0', ''], images)]
    other = read_review(write(tmp_path/'b.csv', *[row + ',note' for row in floats], ',' * 8, header=HEADER + ',mine', end='\r\n', encoding='utf-8-sig'))
    pd.testing.assert_frame_equal(other.drop(columns='mine'), expected)
    path = write(tmp_path/'b.csv', *[row + ',note' for row in floats], header=HEADER + ',mine', end='\r\n', encoding='utf-8-sig')
    Review(queue, path, 'ben').answer(queue.table.index[-1], {})
    kept = read_review(path)
    assert (kept.mine[:3] == 'note').all() and len(kept) == 4 # a column of somebody's own stays
    without = write(tmp_path/'c.csv', *[row.replace('.png', '') for row in plain])
    assert (apply_review(data, without).frame.Mass[images[0]], apply_review(data, without).frame.Mass[images[1]]) == (1, 0)

@pytest.mark.parametrize('changes, words', [
    (dict(new=2), "row 3: new is '2'"), (dict(new='yes'), "new is 'yes'"), (dict(old='nan'), "old is 'nan'"), (dict(old=''), 'row 3: old is'),
    (dict(finding='Cold'), "row 3: 'Cold' is no finding"), (dict(image='x.png'), 'row 3: x.png is no training image'),
    (dict(image=''), 'row 3: it has no image'), (dict(reviewer=''), 'row 3: it has no reviewer'), (dict(seconds=''), 'row 3: seconds'),
    (dict(seconds='inf'), 'row 3: seconds'), (dict(seconds=-1), 'row 3: seconds'), (dict(time='yesterday'), 'row 3: time'),
    (dict(shown='later'), 'row 3: shown'), (dict(reviewer='a,b'), '9 values for 8 columns'), (dict(reviewer='"a'), 'damaged')])
def test_a_bad_row_is_named(data, queue, tmp_path, changes, words):
    one, two = data.train.index[:2]
    path = write(tmp_path/'bad.csv', row_of(data, one, 'Mass'), row_of(data, two, 'Mass', **changes))
    before = path.read_bytes()
    assert words in sentence(apply_review, data, path) and 'bad.csv' in sentence(Review, queue, path, 'anna')
    assert path.read_bytes() == before

def test_a_file_that_is_none_of_this_data_is_refused(data, tmp_path, rng):
    image = data.train.index[0]
    good = row_of(data, image, 'Mass')
    assert 'a second time' in sentence(apply_review, data, write(tmp_path/'a.csv', good, good))
    assert 'a second time' in sentence(apply_review, data, write(tmp_path/'a.csv', good, good.replace('.png', '')))
    assert 'none of its images' in sentence(apply_review, data, write(tmp_path/'a.csv', good.replace(image, 'else.png')))
    assert data.test.index[0] in sentence(apply_review, data, write(tmp_path/'a.csv', good, row_of(data, data.test.index[0], 'Mass')))
    assert 'old is' in sentence(apply_review, data, write(tmp_path/'a.csv', row_of(data, image, 'Mass', old=1 - int(data.frame.Mass[image]))))
    assert 'semicolons' in sentence(read_review, write(tmp_path/'a.csv', good.replace(',', ';'), header=HEADER.replace(',', ';')))
    assert 'lacks the column seconds' in sentence(read_review, write(tmp_path/'a.csv', good, header=HEADER.replace('seconds', 'spent')))
    assert 'UTF-8' in sentence(read_review, write(tmp_path/'a.csv', good, encoding='utf-16'))
    (tmp_path/'a.csv').write_bytes(b'')
    assert 'a.csv' in sentence(read_review, tmp_path/'a.csv') and 'No answers' in sentence(read_review, tmp_path/'none.csv')
    whole = write(tmp_path/'a.csv', good.replace('anna', '"a""nna"'), row_of(data, data.train.index[1], 'Mass')).read_bytes()
    for cut in rng.integers(len(whole), size=30): # cut short anywhere: refused, or the whole rows before
        (tmp_path/'cut.csv').write_bytes(whole[:cut])
        try: assert len(read_review(tmp_path/'cut.csv')) <= 2
        except ValueError as error: assert 'cut.csv' in str(error) and '\n' not in str(error)

WORK = '''
import sys, pandas as pd
from cxr_influence.data.batches import load_data
from cxr_influence.review.queue import Review, review_queue
root, path, name = sys.argv[1:]
data = load_data(root, 32, stores=root + '/../review-stores')
review = Review(review_queue(pd.Series(range(len(data.train)), data.train.index), data, 500), path, name)
print('ready', flush=True)
for image in review.waiting:
    review.answer(image, {})
    print(image, flush=True)
'''

@pytest.mark.long
def test_killed_or_two_at_once_nothing_is_lost(phantom, data, tmp_path, rng):
    path, said = tmp_path/'r.csv', {}
    workers = {name: subprocess.Popen([sys.executable, '-c', WORK, phantom, path, name], stdout=subprocess.PIPE, text=True) for name in ('anna', 'ben')}
    for worker in workers.values(): assert worker.stdout.readline() == 'ready\n'
    time.sleep(rng.uniform(.2, 1))
    workers['anna'].send_signal(signal.SIGKILL)
    for name, worker in workers.items(): said[name] = set(worker.communicate()[0].split())
    found = read_review(path)
    for name in said: assert said[name] <= set(found.image[found.reviewer == name])
    assert said['ben'] == set(data.train.index) and set(found.groupby('image').size()) <= {14, 28}

def test_agreement_is_kappa_and_its_interval_holds_patients_together(data, queue, truth, tmp_path, rng):
    for name, error in [('anna', .1), ('ben', .3)]: simulate_review(queue, truth, tmp_path/'r.csv', error, name, int(rng.integers(1e6)))
    answers = read_review(tmp_path/'r.csv')
    found = review_agreement(answers, data, 50)
    for (shown, one, other), row in found.iterrows():
        wide = answers[answers.shown == shown].pivot(index='image', columns='reviewer', values='new')
        po = (wide[one] == wide[other]).mean()
        pe = sum((wide[one] == k).mean() * (wide[other] == k).mean() for k in (0, 1))
        assert np.isclose(row.agreement, po) and row.labels == len(wide)
        assert np.isclose(row.kappa, (po - pe) / (1 - pe) if pe < 1 else np.nan, equal_nan=True)
    once = data.with_frame(data.frame.assign(patient='p')) # one patient: no resample differs
    same = review_agreement(answers, once, 20)
    assert np.allclose(same[['low', 'high']], same[['kappa', 'kappa']], equal_nan=True)
    unsure = answers.assign(new=answers.new.mask(answers.reviewer == 'ben'))
    assert not len(review_agreement(unsure, data)) and not len(review_differences(unsure))

def test_error_rates_are_the_truth_for_a_reviewer_who_never_errs(data, queue, truth, tmp_path, rng):
    rates = review_error_rates(simulate_review(queue, truth, tmp_path/'r.csv', 0)).droplevel('reviewer')
    wrong = pd.Series({i: truth[f][i] != data.frame[f][i] for i, f in queue.table.finding.items()})
    assert rates.changed.to_dict() == wrong.groupby(queue.table.shown).sum().to_dict()
    assert ((rates.low <= rates.rate) & (rates.rate <= rates.high) & (rates.high > 0)).all()
    always = review_error_rates(simulate_review(queue, truth, tmp_path/'s.csv', 1)).droplevel('reviewer')
    assert (always.changed == rates.labels - rates.changed).all()
    several = [review_error_rates(simulate_review(queue, truth, tmp_path/f'{k}.csv', .5, seed=k)).changed.sum() for k in range(3)]
    assert len(set(several)) > 1 or 0 < several[0] < 20
    noticed = read_review(tmp_path/'r.csv').assign(shown='noticed')
    assert not len(review_error_rates(noticed)) and not len(review_agreement(noticed, data))

def test_error_rates_of_images_asked_about_all_labels_cover_the_truth(scores, data, tmp_path, rng):
    queue, right = review_queue(scores, data, 12), data.frame[data.findings]
    rows = [review_error_rates(simulate_review(queue, right, tmp_path/f'{k}.csv', .3, seed=int(rng.integers(1e9)))).iloc[0] for k in range(40)]
    assert rows[0].labels == 12 * 14
    assert np.mean([row.low <= .3 <= row.high for row in rows]) > .8 # as if the labels were independent: .55
    for answers in [0, 1]: # nothing varies: twelve images, not 168 labels
        row = review_error_rates(simulate_review(queue, right, tmp_path/f'all-{answers}.csv', answers)).iloc[0]
        assert (row.low, row.high)[1 - answers] == pytest.approx(binomtest(12 * answers, 12).proportion_ci()[1 - answers])

def test_agreement_knows_images_however_they_are_written(data, queue, truth, tmp_path):
    for name, error in [('anna', .1), ('ben', .3)]: simulate_review(queue, truth, tmp_path/'r.csv', error, name, 3)
    answers = read_review(tmp_path/'r.csv')
    for write in [lambda i: i.removesuffix('.png'), lambda i: f'images/{i}']:
        other = review_agreement(answers.assign(image=answers.image.map(write)), data, 50)
        assert other.equals(review_agreement(answers, data, 50))
    assert 'nobody.png is no image' in sentence(review_agreement, answers.replace({'image': {answers.image[answers.index[0]]: 'nobody.png'}}), data)

def test_what_another_queue_has_noticed_stays(data, tmp_path):
    image, path = data.train.index[0], tmp_path/'r.csv'
    def ask(finding): # a queue about one label of this image
        labels = pd.DataFrame(np.nan, data.train.index, data.findings)
        labels.loc[image, finding] = 1.
        return Review(review_queue(labels, data, [image]), path, 'anna')
    ask('Mass').answer(image, {'Mass': 1, 'Edema': 1})
    ask('Effusion').answer(image, {'Effusion': 0, 'Mass': 0})
    found = read_review(path).set_index('finding').new
    assert found.to_dict() == {'Mass': 0, 'Edema': 1, 'Effusion': 0}

@pytest.mark.parametrize('n', [.1, 20.])
def test_a_number_of_images_is_whole(scores, data, n):
    for call in [review_queue, lambda scores, data, n: batch_for_review(scores, n, data)]: assert f'n is {n}' in sentence(call, scores, data, n)

def test_answers_correct_the_labels_and_nothing_else(data, queue, truth, tmp_path):
    simulate_review(queue, truth, tmp_path/'r.csv', .2, 'anna', 3)
    corrected, answers = apply_review(data, tmp_path/'r.csv'), read_review(tmp_path/'r.csv')
    expected = data.frame[data.findings].copy()
    for row in answers.itertuples(): expected.loc[row.image, row.finding] = row.new
    pd.testing.assert_frame_equal(corrected.frame[data.findings], expected)
    pd.testing.assert_frame_equal(corrected.frame[data.frame.columns.difference(data.findings)], data.frame[data.frame.columns.difference(data.findings)])
    changed = answers[answers.old != answers.new]
    assert set(corrected.frame.index[corrected.frame.corrected != '']) == set(changed.image) and 'corrected' not in data.frame
    assert (corrected.fingerprint == data.fingerprint) == (not len(changed)) and corrected.store is data.store
    facts, = corrected.frame.attrs['reviews']
    assert facts['reviewers'] == ['anna'] and facts['file'].endswith('r.csv') and 'reviews' not in data.frame.attrs
    if len(changed): assert 'old is' in sentence(apply_review, corrected, tmp_path/'r.csv')

def test_a_second_review_adds_to_what_is_known_of_a_label(data, tmp_path):
    image = data.train.index[0]
    for finding, name in [('Mass', 'nancy'), ('Hernia', 'ben')]:
        row = row_of(data, image, finding, new=1 - int(data.frame[finding][image]), reviewer=name)
        data = apply_review(data, write(tmp_path/f'{name}.csv', row))
    words = data.frame.corrected[image]
    assert 'by nancy; Hernia' in words and words.endswith('by ben') and len(data.frame.attrs['reviews']) == 2

def test_unknown_labels_can_be_filled_in(data, tmp_path):
    part, image = data.with_frame(only_finding(data.frame, 'Effusion')), data.train.index[0]
    path = write(tmp_path/'r.csv', row_of(data, image, 'Mass', old='', new=1, shown='noticed'))
    assert apply_review(part, path).frame.Mass.sum() == 1 and 'unknown to 1' in apply_review(part, path).frame.corrected[image]

def test_reviewers_who_differ_are_settled_by_a_person(data, tmp_path):
    image, other = data.train.index[:2]
    a, b = (row_of(data, image, 'Mass', new=k, reviewer=name) for k, name in [(0, 'anna'), (1, 'ben')])
    files = [write(tmp_path/'a.csv', a), write(tmp_path/'b.csv', b, row_of(data, other, 'Mass', new='', reviewer='ben'))]
    assert 'anna 0 and ben 1' in sentence(apply_review, data, files) and "'carl'" in sentence(apply_review, data, files, 'carl')
    for name, mass in [('anna', 0), ('ben', 1)]: assert apply_review(data, files, name).frame.Mass[image] == mass
    differ = review_differences(pd.concat(map(read_review, files)))
    assert list(differ.index) == [(image, 'Mass')] and differ.iloc[0].to_dict() == {'anna': 0, 'ben': 1}
    for new, mass in [(1, 1), (0, 0), ('', data.frame.Mass[image])]: # an adjudicator who is unsure leaves the label
        third = write(tmp_path/'c.csv', row_of(data, image, 'Mass', new=new, reviewer='chris'))
        fixed = apply_review(data, [*files, third], adjudicator='chris')
        assert fixed.frame.Mass[image] == mass and fixed.frame.Mass[other] == data.frame.Mass[other]
    assert 'a second time' in sentence(apply_review, data, [files[0], files[0]])

def rate(gains, patients, chosen, first, further):
    count = len({patients[i] for i in chosen})
    return gains[list(chosen)].sum() / (first * count + further * (len(chosen) - count))

def test_a_batch_has_the_largest_gain_per_minute(data, rng):
    for _ in range(15):
        images = rng.permutation(data.train.index)[:9]
        frame = data.frame.assign(patient=data.frame.patient.astype(object))
        frame.loc[images, 'patient'] = [f'p{k}' for k in rng.integers(4, size=9)]
        part, first, n = data.with_frame(frame), rng.uniform(.5, 2), int(rng.integers(1, 7))
        further = first * rng.uniform(.05, 1)
        scores = pd.Series(rng.normal(size=9), images)
        p = pd.DataFrame(rng.uniform(.01, .99, (9, 14)), images, data.findings)
        loss = -np.log(1 - (p - part.train.loc[images, data.findings]).abs())
        doubted = ((loss - loss.mean()) / loss.std()).idxmax(axis=1)
        of = np.array([p[f][i] for i, f in doubted.items()])
        above = (scores - scores.median()).clip(lower=0)
        gains = (above / above.max()).to_numpy() * -(of * np.log2(of) + (1 - of) * np.log2(1 - of))
        patients = frame.patient[images].to_numpy()
        batch = batch_for_review(scores, n, part, p, first, further)
        found = [list(images).index(i) for i in batch]
        best = max(rate(gains, patients, c, first, further) for c in itertools.combinations(range(9), n))
        assert len(set(found)) == n and np.isclose(rate(gains, patients, found, first, further), best)
        runs = [key for key, _ in itertools.groupby(patients[found])]
        assert len(runs) == len(set(runs)) # a patient's images together

def test_batches_that_cannot_be_are_refused(scores, data):
    for bad in [dict(n=0), dict(n=10**6), dict(n=3, further=2), dict(n=3, further=0), dict(n=3, minutes=0)]:
        sentence(batch_for_review, scores, data=data, **bad)
    assert 'infinite' in sentence(batch_for_review, scores.replace(scores.max(), np.inf), 3, data)
    assert len(batch_for_review(scores * 0, 5, data)) == 5

def test_gains_are_paired_by_seed_and_patient(data, rng):
    shape = len(data.test), 14
    noise = {seed: rng.normal(size=shape) for seed in range(3)}
    right = data.test[data.findings]
    def logits(name, shift): return {(name, seed): right * shift + noise[seed] for seed in noise}
    same = correction_gains(logits('a', 0) | logits('b', 0), data.frame, 'a', 50)
    assert (same.loc['b', ['gain', 'low', 'high']] == 0).all()
    better = correction_gains(logits('b', 9) | logits('a', -9), data.frame, 'a', 50).loc['b'] # far apart, whatever the noise
    assert better.low > 0 and better.low <= better.gain <= better.high
    sentence(correction_gains, logits('a', 0) | {('b', 7): right}, data.frame, 'a')
    sentence(correction_gains, logits('a', 0), data.frame, 'c')
