"What each split is made of: shares, their intervals by patient, and pictures."
import numpy as np
import pandas as pd

from cxr_influence.data.composition import (plot_co_occurrence, plot_splits, shared_by_patient,
    split_shares)
from cxr_influence.data.labels import FINDINGS, co_occurrence
from cxr_influence.data.splits import describe_splits

def test_the_intervals_cover_the_truth():
    rng, patients = np.random.default_rng(5), np.repeat(np.arange(120), 4)
    risk = rng.beta(2, 6, (300, 120)) # a patient's own share of positive images: the population's mean is 1/4
    covers = lambda low, high: low <= .25 <= high
    shares = [shared_by_patient(pd.Series((rng.random(480) < np.repeat(r, 4)) * 1.), pd.Series(patients)) for r in risk]
    honest = np.mean([covers(s['low'], s['high']) for s in shares])
    half = [1.96 * (s['share'] * (1 - s['share']) / 480)**.5 for s in shares]
    naive = np.mean([covers(s['share'] - h, s['share'] + h) for s, h in zip(shares, half)])
    assert .91 <= honest <= .98 and naive < honest

def test_unknown_labels_are_left_out_of_the_shares(data):
    frame = data.frame.copy()
    first = frame.index[frame.split == 'train'][:10]
    frame.loc[first, 'Mass'] = np.nan
    shares = split_shares(frame).loc['train']
    known = frame[(frame.split == 'train') & frame.Mass.notna()]
    assert shares.images['Mass'] == len(known) == shares.images['No Finding'] == shares.images['Edema'] - 10
    assert shares.positives['Mass'] == known.Mass.sum()
    assert shares.positives['No Finding'] == (known[list(FINDINGS)].sum(axis=1) == 0).sum()
    nothing = split_shares(frame.assign(Hernia=0.)).loc[('train', 'Hernia')]
    assert nothing.share == 0 and np.isnan(nothing.low) and np.isnan(nothing.high)

def test_what_is_unknown_is_not_absent(data):
    rng, frame = np.random.default_rng(), data.frame.copy()
    whole = co_occurrence(frame)
    frame.loc[frame.index[rng.random(len(frame)) < .5], 'Effusion'] = np.nan
    having = frame[(frame.Infiltration == 1) & frame.Effusion.notna()]
    assert np.isclose(co_occurrence(frame).loc['Infiltration', 'Effusion'], having.Effusion.mean())
    assert whole.drop(columns='Effusion').drop('Effusion').equals(co_occurrence(frame).drop(columns='Effusion').drop('Effusion'))
    table = describe_splits(frame.assign(Mass=np.nan, view=np.nan))
    assert table[['no finding', 'findings per image', 'AP views']].isna().all(axis=None)
    known = data.frame.groupby('split')
    assert np.allclose(describe_splits(data.frame)['AP views'], known['view'].apply(lambda one: (one == 'AP').mean())[['train', 'validation', 'test']], atol=.0005)

def test_the_splits_are_plotted(data):
    frame = data.frame
    empty = frame.assign(Hernia=np.nan, age=frame.age.astype(float).where(frame.split != 'test'))
    assert len(plot_splits(empty).axes) == 3 and len(plot_co_occurrence(frame[frame.split != 'test']).axes) == 3
