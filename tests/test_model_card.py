"A model card survives what people put into it, and hides no doubt."
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from conftest import sentence
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.data.labels import FINDINGS
from cxr_influence.measures.calibration import held_out_scaling
from cxr_influence.training import model_card
from cxr_influence.training.model_card import (_HEADINGS, _LIMITS, _CARD_FACTS,
    _markdown_table, _result_warnings, _text, write_model_card)

@pytest.fixture(scope='module')
def made(data, checkpoints):
    checkpoint = list_checkpoints(checkpoints)[-1]
    return data, checkpoint.facts, evaluate_checkpoint(checkpoint, data, device='cpu').table

def cells(line): return re.split(r'(?<!\\)\|', line)[1:-1]

@given(st.lists(st.lists(st.one_of(st.text(), st.none(), st.floats(), st.integers(), st.booleans(), st.dictionaries(st.text(), st.text())),
                         min_size=3, max_size=3), min_size=1, max_size=4))
def test_any_value_stays_in_its_cell(rows):
    lines = _markdown_table(pd.DataFrame(rows, columns=['a', 'b', 'c'], dtype=object)).split('\n')
    assert len(lines) == len(rows) + 2, lines
    for line in lines: assert len(line.splitlines()) == 1 and not re.search('<[A-Za-z/!]', line)

@pytest.mark.parametrize('value, shown', [
    ('a|b', 'a\\|b'), ('two\nlines', 'two lines'), ('<script>', '&lt;script>'), ('/home/me/run/weights.pth', 'weights.pth'),
    (r'C:\Users\me\weights.pth', 'weights.pth'), (None, 'not stated'), (float('nan'), 'not stated'), (True, 'yes'), (12345, '12,345'),
    (.12345, '0.123'), (1e-5, '1e-05'), ({}, 'not stated'), ({'a': 1, 'b': None}, 'a 1, b not stated'), ([], 'not stated'), (pd.NA, 'not stated')])
def test_values_are_written_for_people(value, shown): assert _text(value) == shown

def test_a_pipe_does_not_make_a_column():
    line = _markdown_table(pd.DataFrame({'what': ['a|b|c'], 'n': [1]})).split('\n')[2]
    assert [cell.strip() for cell in cells(line)] == ['a\\|b\\|c', '1']

def test_the_card_has_every_heading_and_no_folder(made, tmp_path):
    data, facts, table = made
    slices = pd.DataFrame({'images': [3]}, index=['sex | F'])
    calibration = pd.DataFrame({'finding': ['Mass'], 'ece': [.1]})
    added = {'Failure analysis and slices': slices, 'Calibration': calibration,
             'Ethical notes': 'Approved by nobody.'}
    path = write_model_card(facts | {'device': '/home/me/gpu|0\n<b>'}, table, data,
                            tmp_path/'new/folder', added)
    written = path.read_text()
    assert re.findall('^## (.*)$', written, flags=re.M) == list(_HEADINGS)
    assert written.index('Not for clinical use') < written.index('## ') and 'Approved by nobody.' in written
    assert str(tmp_path) not in written and '/home/me' not in written and '<b>' not in written and 'sex \\| F' in written
    assert '| Mass      | 0.1   |' in written
    assert list(path.parent.iterdir()) == [path]

def test_it_stands_without_what_nobody_knows(made, tmp_path):
    _, facts, table = made
    bare = {name: facts[name] for name in _CARD_FACTS}
    written = write_model_card(bare, table[['auroc']], None, tmp_path).read_text()
    assert written.count('not stated') > 8 and 'No intervals' in written and 'Calibration was not measured' in written

def test_findings_without_a_score_are_named_and_not_in_the_failures(made, tmp_path):
    data, facts, table = made
    table = table.copy()
    table.loc[['Hernia', 'Mass'], 'auroc'] = np.nan
    written = write_model_card(facts, table, data, tmp_path).read_text()
    assert 'No score of' in written and 'Mass' in re.search('No score of .*', written)[0]
    lowest = re.search('Lowest AUROC.*', written)[0]
    assert 'Mass' not in lowest and 'nan' not in written.lower().replace('finance', '')

@pytest.mark.parametrize('name', _CARD_FACTS)
def test_a_missing_fact_is_named(made, tmp_path, name):
    data, facts, table = made
    lacking = {key: value for key, value in facts.items() if key != name}
    assert name in sentence(write_model_card, lacking, table, data, tmp_path)
    assert not list(tmp_path.iterdir())

def test_other_data_and_other_tables_are_refused(made, tmp_path):
    data, facts, table = made
    frame = data.frame
    other = data.with_frame(frame.assign(Mass=1 - frame.Mass))
    assert 'other data' in sentence(write_model_card, facts, table, other, tmp_path)
    assert 'no column auroc' in sentence(write_model_card, facts, table[['f1']], data, tmp_path)
    unknown = {'Licence': 'none'}
    assert 'Unknown heading' in sentence(write_model_card, facts, table, data, tmp_path, unknown)
    assert not list(tmp_path.iterdir())

def test_a_better_model_is_warned_of_less():
    good = pd.DataFrame({'auroc': .9, 'auroc_low': .88, 'auroc_high': .92, 'ece': .01}, index=list(FINDINGS))
    facts = {'weights': 'imagenet'}
    assert _result_warnings(facts, good, seeds=5) == []
    for change, word in [({'auroc_high': .9 + _LIMITS['width']}, 'wider'), ({'ece': 2 * _LIMITS['ece']}, 'not probabilities'),
                         ({'auroc': np.nan}, 'No score')]:
        said = _result_warnings(facts, good.assign(**change), seeds=5)
        assert len(said) >= 1 and any(word in line for line in said), said
    assert 'One seed' in _result_warnings(facts, good, seeds=1)[0] and 'random' in _result_warnings({'weights': 'random'}, good, 5)[0]

def test_a_patient_is_scaled_by_a_fit_to_others():
    rng = np.random.default_rng()
    logits, patients = rng.normal(size=(200, 14)), rng.integers(0, 40, 200)
    targets = (rng.random(logits.shape) < .4).astype(float)
    own = patients == np.bincount(patients).argmax()
    changed = np.where(own[:, None], 1 - targets, targets) # all labels of one patient
    before, after = (held_out_scaling(labels, logits, patients) for labels in [targets, changed])
    np.testing.assert_array_equal(after[own], before[own])
    assert (after[~own] != before[~own]).mean() > .5
    assert np.isnan(held_out_scaling(targets[own], logits[own], patients[own])).all() # nobody else

def test_findings_without_an_interval_are_not_called_chance():
    table = pd.DataFrame({'auroc': [1., .9, .5], 'auroc_low': [np.nan, .8, .4], 'auroc_high': [np.nan, 1., .6]}, ['Hernia', 'Mass', 'Edema'])
    assert model_card._failures(table).endswith('by their intervals: Edema.')
    assert any('too few patients have the finding: Hernia' in line for line in model_card._score_warnings(table))
