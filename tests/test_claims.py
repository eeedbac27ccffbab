"""The claims that the site makes are what its pages store, in commits of this history."""
import json, re, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_influence.data.files import InputError
from cxr_influence.measures.intervals import judge_interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'nbs/explanations'
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason='the pages are not here')
if FOLDER.exists(): sys.path.insert(0, str(FOLDER))
import _claims as made
import _claims_list as listed

KEPT = json.loads(made.KEPT.read_text(encoding='utf-8'))
TABLES = made.kept_tables()

def git(*arguments):
    return subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True,
                          encoding='utf-8')

def whole_history():
    return git('rev-parse', '--is-shallow-repository').stdout.strip() == 'false'

def test_an_interval_is_judged_by_its_definition():
    rng = np.random.default_rng()
    for low, high, than in rng.normal(size=(300, 3)):
        low, high = sorted([low, high])
        above = judge_interval(low, high, than)
        beyond = all(x > than for x in np.linspace(low, high, 50))
        under = all(x < than for x in np.linspace(low, high, 50))
        assert (above == 'holds') == beyond and (above == 'does not hold') == under
        other = {'holds': 'does not hold', 'does not hold': 'holds'}.get(above, above)
        assert judge_interval(low, high, than, above=False) == other
    assert judge_interval(0, 1) == judge_interval(-1, 0) == 'undecided' # it only touches
    assert judge_interval(np.nan, 1) == judge_interval(0, np.nan) == 'no interval'
    with pytest.raises(InputError, match='lower end first'): judge_interval(1, 0)
    with pytest.raises(InputError, match='not a number'): judge_interval(0, 1, np.nan)

def random_table(rng): # with levels in rows and columns, as pages have
    rows = pd.MultiIndex.from_product([['a', 'b'], ['x', 'y', 'z']], names=['one', 'two'])
    columns = pd.MultiIndex.from_product([['p', 'q'], ['at 10%', 'at 20%']])
    return pd.DataFrame(rng.normal(size=(6, 4)).round(3), rows, columns)

def test_a_stored_table_is_read_as_pandas_wrote_it():
    table = random_table(np.random.default_rng())
    for shown in [table, table['p'], table.xs('x', level='two'), table['p'].reset_index(drop=True)]:
        read = made.parse_table(shown.to_html())
        assert len(read) == len(shown)
        for (label, texts), (index, row) in zip(read, shown.iterrows()):
            assert label == ' / '.join(map(str, np.atleast_1d(index)))
            assert [*texts] == [' / '.join(np.atleast_1d(name)) for name in shown]
            assert [float(text) for text in texts.values()] == [*row]
    assert made.parse_table(table.iloc[:0].to_html()) == []

@pytest.mark.parametrize('text, value, low, high', [('0.3', .3, None, None), ('12%', .12, None, None),
    ('-0.053 [-0.079, -0.027]', -.053, -.079, -.027), ('+0.010 [+0.001, +0.019]', .01, .001, .019)])
def test_a_cell_is_read_as_a_number_with_its_interval(text, value, low, high):
    read = made.number(text)
    assert (read, read.low, read.high) == (pytest.approx(value), low, high)
    if low is not None:
        assert (read.minus, read.minus.low, read.minus.high) == (-value, -high, -low)
        assert f'{read:.3fi}' == text.replace('+', '')
    assert made.number('cosine') == 'cosine'

def test_kept_tables_are_those_that_the_pages_store():
    now = made.read_sources(listed.TABLES, history=False)
    kept = {name: {key: entry[key] for key in ['page', 'cell', 'runs', 'rows']}
            for name, entry in KEPT.items()}
    assert now == kept, 'commit the page, then run: python nbs/explanations/_claims.py'

@pytest.mark.parametrize('name', KEPT)
def test_a_kept_table_stands_in_its_commit(name):
    if not whole_history(): pytest.skip('a clone without the history')
    entry = KEPT[name]
    assert git('merge-base', '--is-ancestor', entry['commit'], 'HEAD').returncode == 0
    assert git('show', '-s', '--format=%as', entry['commit']).stdout.strip() == entry['date']
    then = [path for commit, _, path in made._versions(entry['page']) if commit == entry['commit']]
    notebook = json.loads(git('show', f'{entry["commit"]}:{then[0]}').stdout)
    stored = made.stored_tables(notebook).values()
    assert any(made._same_numbers(table, entry['rows']) for table in stored)

@pytest.mark.parametrize('claim', listed.CLAIMS, ids=lambda claim: claim.text[:60])
def test_a_claim_has_its_number_control_verdict_and_page(claim):
    row = made.judge(claim, TABLES)
    assert claim.question in listed.QUESTIONS and '{' not in row['claim']
    assert np.isfinite([row['value'], row['than']]).all()
    if row['low'] is not None: assert row['low'] <= row['value'] <= row['high']
    target = re.search(r'\]\(([^)#]+)', row['page'])[1]
    assert (FOLDER / target).is_file()

def test_the_page_has_every_claim_with_its_verdict():
    page = json.loads((FOLDER / 'claims.ipynb').read_text(encoding='utf-8'))
    shown = '\n'.join(''.join(o.get('data', {}).get('text/markdown', ''))
                      for cell in page['cells'] for o in cell.get('outputs', []))
    rows = made.judge_all(listed.CLAIMS, TABLES)
    for line in made.list_claims(rows).splitlines()[2:]: assert line in shown
    for items in [listed.RULINGS, listed.FAILED]:
        assert made.list_items(items, TABLES) in shown, 'run the page of claims again'

@pytest.mark.parametrize('page', listed.SENTENCES)
def test_numbers_in_prose_are_those_of_the_tables(page):
    text, sentences = made.page_text(page), listed.SENTENCES[page]
    only_drawn = list(listed.NOT_KEPT.get(page, {}))
    assert made.wrong_sentences(text, [*sentences, *only_drawn], TABLES) == []
    assert made.uncited_numbers(text, [*sentences, *only_drawn], TABLES) == []

@pytest.mark.parametrize('page', listed.SENTENCES)
def test_a_changed_digit_is_found(page):
    rng, text = np.random.default_rng(), made.page_text(page)
    sentences = [*listed.SENTENCES[page], *listed.NOT_KEPT.get(page, {})]
    spots = [i for found in re.finditer(r'(?<![\w.])\d+\.\d+(?![\w.])', re.sub(
        r'\]\([^)]*\)', lambda m: ']' + '_' * (len(m[0]) - 1), text)) for i in [found.end() - 1]]
    for i in rng.choice(spots, 5):
        digit = str((int(text[i]) + rng.integers(1, 10)) % 10)
        changed = text[:i] + digit + text[i + 1:]
        assert (made.wrong_sentences(changed, sentences, TABLES)
                or made.uncited_numbers(changed, sentences, TABLES))

def test_ten_times_the_steps_change_auroc_by_less_than_the_page_states():
    table = TABLES['budgets']
    for row in table:
        assert abs(table[row]['auroc / steps'] - table[row]['auroc / epochs']) <= .02

def test_what_is_gone_is_named():
    page, cell, *_ = listed.TABLES['found']
    with pytest.raises(LookupError, match='no table in cell nowhere'):
        made.read_sources({'found': (page, 'nowhere')}, history=False)
    with pytest.raises(LookupError, match='reads no run label_errors/moon'):
        made.read_sources({'found': (page, cell, {'moon': 'label_errors/moon'})}, history=False)
    with pytest.raises(LookupError, match="found has no row 'moon'"):
        made.at(TABLES, 'found[moon][phantom / at 10%]')
    with pytest.raises(LookupError, match="no column 'moon'"):
        made.at(TABLES, 'found[one_finding / random][moon]')
    twice = made.Table('twice', dict(KEPT['found'], rows=2 * KEPT['found']['rows']))
    with pytest.raises(LookupError, match='2 rows'): twice['one_finding / random']

def test_the_commit_is_the_first_with_these_numbers(tmp_path, monkeypatch):
    def run(*arguments): return subprocess.run(['git', *arguments], cwd=tmp_path, check=True,
                                               capture_output=True, text=True).stdout
    monkeypatch.setattr(made, 'NBS', tmp_path)
    run('init', '-q')
    run('config', 'user.email', 'a@b.c')
    run('config', 'user.name', 'a')
    rng, commits = np.random.default_rng(), []
    first, second = random_table(rng), random_table(rng)
    for table, words in [(first, 'a'), (second, 'a'), (second, 'b'), (first, 'b')]:
        cell = {'cell_type': 'code', 'id': 'a', 'source': words, 'outputs': [
            {'data': {'text/html': table.to_html()}}]}
        (tmp_path / 'page.ipynb').write_text(json.dumps({'cells': [cell]}), encoding='utf-8')
        run('add', '.')
        run('commit', '-qm', words)
        commits.append(run('rev-parse', 'HEAD').strip())
    rows = made.parse_table(second.to_html())
    versions = made._versions('page.ipynb')
    assert [commits[::-1][i].startswith(v[0]) for i, v in enumerate(versions)] == [True] * 4
    assert made.first_stored(rows, versions) is None # other numbers stand there now
    assert commits[1].startswith(made.first_stored(rows, versions[1:])[0])
    last = made.parse_table(first.to_html())
    assert commits[3].startswith(made.first_stored(last, versions)[0]) # not the first of all

# Tables of runs that take hours

import _tables as tables
from cxr_influence.data.files import _checksum

def run_folder(folder, *names, **facts):
    "What a run of two seeds leaves."
    folder.mkdir(parents=True)
    names = names or ('found.csv', 'row.csv')
    for name in names: pd.DataFrame({'value': np.random.default_rng().normal(size=3)}).to_csv(folder/name, index=False)
    (folder/'log.txt').write_text('a line\n')
    (folder/'scores.parquet').write_bytes(b'columns')
    results = {name: _checksum(folder/name) for name in (*names, 'scores.parquet')}
    record = dict(experiment='label_errors', status='complete', commit='0' * 12, changed_since=False, host='here', device='cpu', cores=2, torch='2',
                  parameters=dict(data='/somewhere/radiographs', n=3, seeds=[0, 1], kept='_runs/injected'), start='2026-01-02T03:04:05', seconds=60.,
                  results=results)
    (folder/'run.json').write_text(json.dumps(record | facts))
    return folder

def test_tables_are_kept_as_a_run_wrote_them(tmp_path, monkeypatch):
    for again in range(2): # the second takes the place of the first, which had a table more
        folder = run_folder(tmp_path/f'runs {again}/one', 'found.csv', 'row.csv', *['more.csv'][again:])
        kept = tables.keep_tables(folder, tmp_path/'kept')
        assert kept == tmp_path/'kept/label_errors/one' and {file.name for file in kept.iterdir()} == {'found.csv', 'row.csv', 'run.json', *['more.csv'][again:]}
        assert all((kept/name).read_bytes() == (folder/name).read_bytes() for name in ('found.csv', 'row.csv'))
        assert [file.name for file in kept.parent.iterdir()] == ['one']
    text = (kept/'run.json').read_text()
    assert 'somewhere' not in text and '"here"' not in text and json.loads(text)['parameters']['data'] == 'radiographs'
    assert [*tables.describe_runs({'a': kept}).loc['a', ['commit', 'day', 'cores']]] == ['0' * 12, '2026-01-02', 2]
    monkeypatch.setattr(tables, 'KEPT', tmp_path/'kept')
    assert tables.kept_runs({'a': 'label_errors/one'}) == {'a': kept}
    with pytest.raises(InputError, match='has no run.json'): tables.kept_runs({'a': 'label_errors/none'})
    with open(kept/'row.csv', 'a') as file: file.write('1\n')
    with pytest.raises(InputError, match='row.csv is not as the run wrote it'): tables.kept_runs({'a': 'label_errors/one'})

@pytest.mark.parametrize('facts, said', [(dict(status='running'), 'is running'), (dict(changed_since=True), 'in no commit')])
def test_tables_of_no_finished_run_of_committed_code_are_refused(tmp_path, facts, said):
    before = tables.keep_tables(run_folder(tmp_path/'runs/one'), tmp_path/'kept')
    was = {file.name: file.read_bytes() for file in before.iterdir()}
    with pytest.raises(InputError, match=said): tables.keep_tables(run_folder(tmp_path/'other/one', **facts), tmp_path/'kept')
    assert {file.name: file.read_bytes() for file in before.iterdir()} == was
    damaged = run_folder(tmp_path/'damaged/one')
    (damaged/'found.csv').write_text('value\n1\n')
    with pytest.raises(InputError, match='found.csv is not as the run wrote it'): tables.keep_tables(damaged, tmp_path/'kept')
    assert {file.name: file.read_bytes() for file in before.iterdir()} == was and len([*before.parent.iterdir()]) == 1

def test_half_kept_tables_are_not_taken_for_whole_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, 'KEPT', tmp_path/'kept')
    tables.keep_tables(run_folder(tmp_path/'runs/one'), tmp_path/'kept')
    write, done = tables._write_whole, []
    def interrupted(*given):
        if done: raise KeyboardInterrupt
        done.append(write(*given))
    monkeypatch.setattr(tables, '_write_whole', interrupted)
    again = run_folder(tmp_path/'runs again/one')
    with pytest.raises(KeyboardInterrupt): tables.keep_tables(again, tmp_path/'kept')
    with pytest.raises(InputError, match='found.csv is not as the run wrote it'): tables.kept_runs({'a': 'label_errors/one'})
    monkeypatch.setattr(tables, '_write_whole', write)
    tables.keep_tables(again, tmp_path/'kept')
    assert tables.kept_runs({'a': 'label_errors/one'})

@pytest.mark.parametrize('folder', sorted({file.parent.relative_to(tables.KEPT).as_posix() for file in tables.KEPT.glob('*/*/run.json')}))
def test_kept_tables_are_of_a_commit_of_this_history_and_of_an_experiment_as_it_is(folder):
    facts = tables._undamaged(tables.KEPT/folder)
    assert facts['experiment'] == folder.split('/')[0] and 0 < facts['seconds']
    page = json.loads((ROOT/f'nbs/experiments/{facts["experiment"]}.ipynb').read_text(encoding='utf-8'))
    settings = next(''.join(cell['source']) for cell in page['cells'] if 'parameters' in cell['metadata'].get('tags', []))
    named = set(re.findall(r'^(\w+):', settings, re.M)) - {'out'}
    assert named == set(facts['parameters']), 'the experiment has other parameters now: run it again'
    if whole_history(): assert git('merge-base', '--is-ancestor', facts['commit'], 'HEAD').returncode == 0
