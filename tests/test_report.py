"The report: everything in it is read from the runs, nothing stands twice or empty, and what tables bring stays text."
import ast, base64, importlib.util, json, re
from html import unescape
from pathlib import Path

import nbformat, numpy as np, pandas as pd, pytest
from bs4 import BeautifulSoup
from PIL import Image

from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError
from cxr_influence.data.labels import FINDINGS
from cxr_influence.runs import report as module
from cxr_influence.runs.report import report
from cxr_influence.runs.runs import _checksums as checksums

EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)>'

def start(folder, experiment, **facts):
    "A run's folder with its run.json."
    folder.mkdir(parents=True)
    facts = dict(experiment=experiment, status='complete', device='cpu', commit='abc1234', seconds=12.5,
                 peak_memory_mb=900, parameters={}) | facts
    (folder/'run.json').write_text(json.dumps(facts))
    return folder

def picture(path, rng): Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype='uint8')).save(path)

def baseline(folder, rng, **facts):
    "A training run with results as random numbers."
    start(folder, 'baseline', **facts)
    names = [*FINDINGS, 'macro', 'micro', 'weighted']
    low, middle, high = np.sort(rng.uniform(0, 1, (3, len(names))), axis=0)
    table = pd.DataFrame(dict(finding=names, images=200, positives=rng.integers(1, 99, len(names)), auroc=middle,
                              auroc_low=low, auroc_high=high))
    for name in ['auprc', 'f1', 'sensitivity', 'specificity', 'sensitivity_at_95_specificity', 'brier', 'ece']:
        table[name] = rng.uniform(size=len(names))
    table.to_csv(folder/'baseline.csv', index=False)
    pd.DataFrame(dict(epoch=[1, 2], train_loss=rng.uniform(size=2), validation_loss=rng.uniform(size=2),
                      validation_auroc=rng.uniform(size=2))).to_csv(folder/'history.csv', index=False)
    for stem in ['findings', 'history']: picture(folder/f'{stem}.png', rng)
    pd.DataFrame([dict(auroc=middle[14], seed=0)]).to_csv(folder/'row.csv', index=False)
    (folder/'model_card.md').write_text('# Model card: small\n\n**Not for clinical use.**\n\n## Warnings\n\n* Few images.\n'
                                        '* Few patients.\n\n## Results\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n')
    return folder

def influence(folder, rng, names=None, **facts):
    "A scoring run."
    start(folder, 'influence', **facts)
    names = names or [f'{number:08}_000.png' for number in range(30)]
    table = pd.DataFrame(dict(image=names, influence=rng.normal(size=len(names)), loss=rng.exponential(size=len(names))))
    table.to_csv(folder/'influence.csv', index=False)
    for stem in ['influence', 'extremes']: picture(folder/f'{stem}.png', rng)
    return folder

def subsets(folder, rng, mode='remove', rows=9, **facts):
    "A run of retrainings: differences with random intervals, of which some contain zero."
    start(folder, 'subsets', **dict(parameters=dict(mode=mode, seeds=[0, 1])) | facts)
    low, middle, high = np.sort(rng.normal(rng.normal(0, .2, rows), .1, (3, rows)), axis=0)
    table = pd.DataFrame(dict(
        metric='auroc', valuation=rng.choice(['influence', 'loss', 'el2n'], rows), mode=mode, fraction=rng.uniform(.1, .9, rows),
        rule=rng.choice(['top', 'bottom', 'stratified'], rows), seeds=2, value=rng.uniform(size=rows), difference=middle, low=low,
        high=high))
    table = pd.concat([table, table.assign(metric='f1', low=5., high=6.), table.head(1).assign(rule='random', low=np.nan, high=np.nan)])
    table.to_csv(folder/f'subsets_{mode}_minus_random.csv', index=False)
    for stem in ['', '_minus_random_auroc', '_findings']: picture(folder/f'subsets_{mode}{stem}.png', rng)
    pd.DataFrame([dict(redundancy=0., narrowest=.04, mode=mode, valuation='loss', rule='top')]).to_csv(
        folder/f'subsets_{mode}_redundancy.csv', index=False)
    return folder

def own(folder, cells=(), experiment='own_study', **facts):
    "A run of a notebook that the report does not know."
    start(folder, experiment, **facts)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), folder/'notebook.ipynb')
    return folder

def shown(data=None, **words): # a code cell with one output
    output = nbformat.v4.new_output('execute_result', data) if data else nbformat.v4.new_output('stream', **words)
    return nbformat.v4.new_code_cell('secret_variable = 1', outputs=[output])

@pytest.fixture
def rng(): return np.random.default_rng()

@pytest.fixture
def study(tmp_path, rng):
    "The chain of a study, as the demonstration makes it."
    return [baseline(tmp_path/'baseline/run-1', rng, parameters=dict(data=str(tmp_path/'some/deep/phantom_9'))),
            influence(tmp_path/'influence/run-2', rng), subsets(tmp_path/'subsets/run-3', rng),
            subsets(tmp_path/'subsets/run-4', rng, 'select')]

def page(folders, tmp_path, **words): # as a browser has it
    return BeautifulSoup(report(folders, tmp_path/'report.html', **words).read_text(encoding='utf-8'), 'html.parser')

def summary(soup): return ' '.join(soup.find(id='summary').get_text(' ').split())

def sound(soup):
    "What holds for every report: nothing empty, twice, without words, or leading nowhere."
    for table in soup.find_all('table'): assert any(cell.get_text(strip=True) for cell in table.find_all('td')), table
    for level in ['h1', 'h2']:
        titles = [title.get_text() for title in soup.find_all(level)]
        assert len(set(titles)) == len(titles), titles
    for section in soup.find_all('section'):
        titles = [title.get_text() for title in section.find_all('h3')]
        assert len(set(titles)) == len(titles) and section.find(['p', 'table', 'figure', 'ul', 'pre', 'li']), section
    ids = [tag['id'] for tag in soup.find_all(id=True)]
    assert len(set(ids)) == len(ids)
    for link in soup.find_all('a'):
        if link['href'].startswith('#'): assert link['href'][1:] in ids, link
    for image in soup.find_all('img'): assert image['src'].startswith('data:image/') and len(image['alt'].split()) > 4, image['alt']
    assert not soup.find_all(['script', 'iframe', 'object', 'link', 'form'])
    return soup

def test_a_study_is_one_sound_document(study, tmp_path):
    soup = sound(page(study, tmp_path))
    titles = [title.get_text() for title in soup.find_all('h2')]
    assert titles == ['Summary', 'Contents', 'The classifier', 'Influence', 'Subsets', 'Model card', 'What was run', 'Tables']
    listed = [link.get_text() for link in soup.nav.find_all('a')]
    assert set(titles[2:]) < set(listed) and 'Subsets: remove images' in listed and 'Subsets: select images' in listed
    facts = soup.header.get_text(' ')
    assert all(word in facts for word in ['phantom_9', 'abc1234', 'cpu', '50 s', '0.9 GB', 'cxr_influence'])

@pytest.mark.parametrize('number', range(4))
def test_one_run_is_enough(study, tmp_path, number): sound(page([study[number]], tmp_path))

@pytest.mark.parametrize('value', [None, '', 'a', [1], {'a': 1}, True, 1e30, -1])
def test_facts_of_any_kind_are_no_error(study, tmp_path, value):
    facts = json.loads((study[0]/'run.json').read_text())
    for name in ['seconds', 'peak_memory_mb', 'device', 'commit', 'start', 'version', 'data']: facts[name] = value
    facts['parameters'] = dict.fromkeys(['data', 'seed', 'mode', 'checkpoints'], value)
    (study[0]/'run.json').write_text(json.dumps(facts))
    sound(page([study[0]], tmp_path))

def test_a_folder_given_twice_has_one_chapter(study, tmp_path):
    once, twice = (sound(page(folders, tmp_path)) for folders in ([study[0]], [study[0], str(study[0])]))
    assert len(once.find_all('h3')) == len(twice.find_all('h3'))

def test_no_name_of_the_code_and_no_path_is_shown(study, tmp_path):
    text = sound(page(study, tmp_path)).get_text(' ')
    assert not re.search(r'auroc_low|validation_loss|minus_random_|secret_variable|el2n', text) and str(tmp_path) not in text
    assert 'some/deep' not in text

def test_the_verdict_counts_what_is_distinguishable(study, tmp_path):
    tables = [pd.read_csv(next(folder.glob('*_minus_random.csv'))).query('metric == "auroc"').dropna(subset='low') for folder in study[2:]]
    rows = pd.concat(tables)
    better, worse = (rows.low > 0).sum(), (rows.high < 0).sum()
    soup = page(study, tmp_path)
    assert (f'{len(rows)} comparisons with random subsets of the same size: {better} better, {worse} worse, '
            f'{len(rows) - better - worse} not') in summary(soup)
    for name, count, words in [('better', better, '▲ better than random'), ('worse', worse, '▼ worse than random')]:
        marked = soup.find_all('tr', class_=name)
        assert len(marked) == count and all(words in row.get_text() for row in marked)

@pytest.mark.parametrize('low, high, words', [(.01, .3, '1 better, 0 worse, 0 not'), (-.3, -.01, '0 better, 1 worse, 0 not'),
                                              (-.1, .1, '0 better, 0 worse, 1 not'), (0., .1, '0 better, 0 worse, 1 not')])
def test_a_changed_number_changes_the_sentence(study, tmp_path, low, high, words):
    file = study[2]/'subsets_remove_minus_random.csv'
    pd.read_csv(file).head(1).assign(low=low, high=high, difference=(low + high)/2).to_csv(file, index=False)
    assert words in summary(page([study[2]], tmp_path))

def test_the_classifier_and_influence_are_read_from_their_tables(study, tmp_path, rng):
    table = pd.read_csv(study[0]/'baseline.csv').set_index('finding')
    table.loc['macro', ['auroc', 'auroc_low', 'auroc_high']] = low, middle, high = np.sort(rng.uniform(size=3))[[1, 0, 2]]
    table.to_csv(study[0]/'baseline.csv')
    scores = pd.read_csv(study[1]/'influence.csv')
    text = summary(page(study, tmp_path))
    assert f'Macro AUROC {low:.3f} [{middle:.3f}, {high:.3f}] on 200 test images' in text
    found = table.loc[list(FINDINGS)]
    chance, below = ((found.auroc_low <= .5) & (found.auroc_high >= .5)).sum(), (found.auroc_high < .5).sum()
    assert f'{chance} of 14 findings are not distinguishable from chance' in text and (f', below it: {below}.' in text) == (below > 0)
    assert f'{(scores.influence > 0).sum()} of 30 training images' in text and 'Few images. The model card has 2 warnings.' in text

def test_scores_that_are_not_defined_are_no_error(study, tmp_path):
    for folder, name, columns in [(study[0], 'baseline', ['auroc', 'auroc_low', 'auroc_high', 'f1']), (study[0], 'history', ['validation_auroc']),
                                  (study[1], 'influence', ['loss']), (study[3], 'subsets_select_minus_random', ['low', 'high'])]:
        pd.read_csv(folder/f'{name}.csv').assign(**dict.fromkeys(columns, np.nan)).to_csv(folder/f'{name}.csv', index=False)
    text = summary(sound(page(study, tmp_path)))
    assert 'Macro AUROC – on 200' in text and '0 of 0 findings' in text and 'nan' not in text.lower()
    for folder in study[2:]:
        for file in folder.glob('*_minus_random.csv'): pd.read_csv(file).assign(low=np.nan).to_csv(file, index=False)
    assert 'No subset could be compared with a random one' in summary(sound(page(study, tmp_path)))

def test_two_subsets_may_have_one_name(study, tmp_path):
    file = study[2]/'subsets_remove_minus_random.csv'
    table = pd.read_csv(file)
    pd.concat([table, table]).to_csv(file, index=False)
    sound(page([study[2]], tmp_path))

def test_what_may_go_is_stated_only_when_shown(study, tmp_path):
    assert 'No share that was tried is shown to be superfluous' in summary(page([study[2]], tmp_path))
    file = study[2]/'subsets_remove_redundancy.csv'
    pd.read_csv(file).assign(redundancy=.3).to_csv(file, index=False)
    assert '30% of the training images can go, by highest loss' in summary(page([study[2]], tmp_path))

def test_one_retraining_is_said_to_be_one(study, tmp_path):
    file = study[2]/'subsets_remove_minus_random.csv'
    assert 'With one retraining' not in summary(page([study[2]], tmp_path))
    pd.read_csv(file).assign(seeds=1, low=-1., high=1.).to_csv(file, index=False)
    assert 'With one retraining' in summary(page([study[2]], tmp_path))

def test_the_images_to_inspect_are_those_of_the_highest_loss(study, tmp_path):
    soup, scores = page(study, tmp_path), pd.read_csv(study[1]/'influence.csv').set_index('image')
    legends = [legend.get_text(' ') for legend in soup.select('.images .legend')]
    assert [re.search(r'\d{8}_000\.png', legend)[0] for legend in legends] == list(scores.loss.nlargest(12).index)
    assert f'rank {scores.influence.rank(ascending=False)[scores.loss.idxmax()]:.0f} of 30' in legends[0]
    assert all('image not at hand' in tile.get_text() for tile in soup.select('.images .none'))

def test_images_are_shown_where_the_data_are(tmp_path, rng, phantom):
    data = load_data(phantom, 32, stores=tmp_path/'stores')
    run = module._read_run(influence(tmp_path/'influence/run-2', rng, list(data.train.index)))
    images = module._inspect(run, data, 5)[0].blocks[1]['images']
    names = [image['name'] for image in images]
    assert names == list(module._scores(run).loss.nlargest(5).index) and all(image['source'].startswith('data:image/png') for image in images)
    assert [image['label'] for image in images] == [module._label(data, name) for name in names] and 'not at hand' not in str(images)

def test_scripts_stay_text(study, tmp_path, rng):
    cells = [nbformat.v4.new_markdown_cell(f'# {EVIL}\n\n{EVIL} [link](javascript:alert(1)) ![x](javascript:alert(1))'),
             shown({'text/html': f'<table><tr><th>{EVIL}</th></tr><tr><td>{EVIL} &lt;script&gt;</td></tr></table>'}),
             shown({'text/markdown': EVIL}), shown(name='stdout', text=f'text {EVIL}'),
             shown({'image/svg+xml': f'<svg xmlns="http://www.w3.org/2000/svg">{EVIL}</svg>'}),
             shown({'text/html': EVIL}), shown({'application/javascript': 'alert(1)'})]
    folders = [baseline(tmp_path/'evil/run-1', rng, parameters=dict(data=EVIL), commit=EVIL, device=EVIL),
               influence(tmp_path/'evil/run-2', rng, [f'{number}{EVIL}.png' for number in range(5)]),
               own(tmp_path/'evil/run-3', cells, EVIL), start(tmp_path/'evil/run-4', 'own', status='failed', error=EVIL)]
    (folders[0]/'model_card.md').write_text(f'# {EVIL}\n\n## Warnings\n\n* {EVIL}\n')
    for folder in folders[:2]: (folder/f'{"x" if folder is folders[0] else "y"}{EVIL.replace("/", "")}.csv').write_text('a\n1\n')
    soup = page(folders, tmp_path, title=EVIL, opening=EVIL)
    text = (tmp_path/'report.html').read_text()
    assert not soup.find_all(['script', 'iframe', 'object']) and 'alert("1")' in soup.get_text()
    for tag in soup.find_all(True):
        assert not [name for name in tag.attrs if name.lower().startswith('on')], tag
        for name in ('href', 'src'): assert not str(tag.get(name, '')).lower().startswith(('javascript', 'http')), tag
    assert '<script' not in text.lower()

@pytest.mark.parametrize('damage, words', [
    (lambda folder: (folder/'run.json').unlink(), 'has no run.json: give the folder of a run'),
    (lambda folder: (folder/'run.json').write_text('{"experiment": "base'), 'run.json cannot be read'),
    (lambda folder: (folder/'run.json').write_text('[]'), 'does not name its experiment'),
    (lambda folder: (folder/'run.json').write_text('{"experiment": 3}'), 'does not name its experiment'),
    (lambda folder: (folder/'run.json').write_text('{"experiment": "baseline", "parameters": [1]}'), 'experiment and parameters'),
    (lambda folder: (folder/'run.json').write_bytes(b'\xff\xfe\x00'), 'run.json cannot be read'),
    (lambda folder: (folder/'baseline.csv').unlink(), 'has no baseline.csv: run it again'),
    (lambda folder: (folder/'baseline.csv').write_text(''), 'baseline.csv cannot be read'),
    (lambda folder: (folder/'baseline.csv').write_text('finding,images\n'), 'baseline.csv has no column positives'),
    (lambda folder: (folder/'baseline.csv').write_bytes(b'\xff\xfe\x00\xd8'), 'baseline.csv'),
    (lambda folder: (folder/'history.csv').write_text('train_loss,validation_loss,validation_auroc\na,b,c\n'), 'is not all numbers'),
    (lambda folder: (folder/'findings.png').write_bytes(b'\x89PNG'), 'findings.png is no image')])
def test_a_damaged_run_is_refused_in_a_sentence(study, tmp_path, damage, words):
    damage(study[0])
    with pytest.raises(InputError, match=re.escape(words)): report([study[0]], tmp_path/'report.html')
    assert not (tmp_path/'report.html').exists()

def test_missing_folders_and_notebooks_are_refused(study, tmp_path):
    with pytest.raises(InputError, match='No runs to report'): report([], tmp_path/'report.html')
    with pytest.raises(InputError, match='has no run.json'): report([*study, tmp_path/'nowhere'], tmp_path/'report.html')
    for experiment, words in [('own', 'has no notebook.ipynb'), ('influence', 'has no influence.csv'), ('subsets', 'minus_random.csv')]:
        with pytest.raises(InputError, match=words): report([start(tmp_path/experiment/'empty', experiment)], tmp_path/'report.html')
    folder = start(tmp_path/'own/half', 'own')
    for content in ['', '{"cells": [', '{}', '[]']:
        (folder/'notebook.ipynb').write_text(content)
        with pytest.raises(InputError, match='notebook.ipynb cannot be read'): report([folder], tmp_path/'report.html')

def test_a_run_that_failed_is_counted_and_has_no_chapter(study, tmp_path, rng):
    reason = 'learning_rate is -1: give a number above zero.'
    bad = start(tmp_path/'baseline/run-9', 'baseline', status='failed', error=reason, parameters=dict(learning_rate=-1), seconds=None)
    soup = sound(page([study[0], bad], tmp_path))
    assert f'is failed: {reason}' in summary(soup) and len(soup.find_all('h3', string=re.compile('Test results'))) == 1
    with pytest.raises(InputError, match=f'No run is complete.*{re.escape(reason)}'): report([bad], tmp_path/'none.html')
    old = start(tmp_path/'baseline/run-8', 'baseline', status=None)
    with pytest.raises(InputError, match='No run is complete.*interrupted'): report([old], tmp_path/'none.html')

def test_a_sweep_is_one_chapter_with_a_row_per_run(tmp_path, rng):
    folders = [baseline(tmp_path/f'baseline/run-{seed}', rng, parameters=dict(seed=seed, recipe='small')) for seed in range(6)]
    soup = sound(page(folders, tmp_path))
    assert [title.get_text() for title in soup.find_all('h2')].count('The classifier') == 1
    table = soup.find('caption', string='One row per run').find_parent('table')
    assert [row.th.get_text() for row in table.tbody.find_all('tr')] == [f'seed {seed}' for seed in range(6)]
    assert len(soup.find_all('h3', string=re.compile('Test results'))) == 4

@pytest.mark.parametrize('first, second', [({}, {}), (dict(fractions=[.1]), dict(fractions=[.3])), (dict(budget='epochs'), dict(budget='steps')),
                                           (dict(mode='remove', fractions=[.1], budget='steps'), dict(mode='select', fractions=[.1], budget='epochs'))])
def test_two_runs_of_one_kind_have_headings_of_their_own(tmp_path, rng, first, second):
    pair = [subsets(tmp_path/f'subsets/run-{number}', rng, one.get('mode', 'remove'), parameters=dict(mode='remove') | one)
            for number, one in enumerate([first, second])]
    titles = [title.get_text() for title in sound(page(pair, tmp_path)).find_all('h3') if 'Subsets' in title.get_text()]
    assert len(set(titles)) == 2 and not any('mode' in title or ', )' in title for title in titles)

def test_tables_are_files_inside_or_beside(study, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(module, '_EMBEDDED', (study[0]/'history.csv').stat().st_size)
    soup = page(study, tmp_path)
    links = {row.a.get_text(): row.a['href'] for row in soup.select('tr[id^=file-]')}
    assert len(links) == sum(len(list(folder.glob('*.csv'))) for folder in study)
    small, large = links['baseline-run-1-history.csv'], links['influence-run-2-influence.csv']
    assert base64.b64decode(small.removeprefix('data:text/csv;base64,')) == (study[0]/'history.csv').read_bytes()
    assert (tmp_path/large).read_bytes() == (study[1]/'influence.csv').read_bytes()

def test_runs_of_nearly_one_name_have_files_of_their_own(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(module, '_EMBEDDED', 0)
    folders = [baseline(tmp_path/f'{parent}/baseline/{name}', rng, parameters=dict(learning_rate=name)) for parent, name in
               [('one', 'learning_rate=1'), ('one', 'learning_rate=-1'), ('two', 'learning_rate=1')]]
    soup = sound(page(folders, tmp_path))
    links = [row.a['href'] for row in soup.select('tr[id^=file-]') if 'history' in row['id']]
    assert [(tmp_path/link).read_bytes() for link in links] == [(folder/'history.csv').read_bytes() for folder in folders]

def test_another_notebook_is_shown_without_its_code(tmp_path):
    pixel = base64.b64encode(b'\x89PNG').decode()
    cells = [nbformat.v4.new_markdown_cell('# My study\n\nWhat came of it. And more.'), shown({'image/png': pixel, 'text/plain': '<Figure size>'}),
             nbformat.v4.new_markdown_cell('## A table'), shown({'text/html': '<table><tr><th>f1_score</th></tr><tr><td>0.5</td></tr></table>'}),
             shown({'text/html': '<table><thead><tr><th>a</th></tr></thead></table>'}), shown(name='stderr', text='a warning')]
    soup = sound(page([own(tmp_path/'own/run-1', cells)], tmp_path))
    assert soup.find('h3', string='My study') and soup.find('h3', string='A table') and soup.find('h2', string='Own study')
    assert 'f1 score' in soup.get_text() and 'secret_variable' not in soup.get_text() and 'a warning' not in soup.get_text()
    assert soup.img['alt'].endswith('What came of it.') and len(soup.find_all('th', string='a')) == 0

def test_links_lead_outside_or_nowhere(tmp_path):
    text = '[page](../6_evidence/02_valuations.ipynb) [paper](https://arxiv.org/abs/2002.08484) ![tracker](https://example.org/a.png) [x](file:///etc/passwd)'
    soup = sound(page([own(tmp_path/'own/run-1', [nbformat.v4.new_markdown_cell(f'# Links\n\n{text}')])], tmp_path))
    assert [link['href'] for link in soup.main.find_all('a') if not link['href'].startswith('#')] == ['https://arxiv.org/abs/2002.08484']
    assert not soup.find_all('img') and 'page paper tracker x' in ' '.join(soup.get_text().split())

def test_the_drawings_are_those_of_the_code():
    file = ROOT/'nbs/explanations/_drawing.py'
    drawing = loaded(file)
    for name, made in [('architecture', drawing.architecture()), ('visual_abstract', drawing.visual_abstract())]:
        stored = (file.parents[1]/f'images/{name}.svg').read_text(encoding='utf-8')
        assert stored == made, f'{name}.svg is old: run python nbs/explanations/_drawing.py'
        assert '<title' in made and '<desc' in made and BeautifulSoup(made, 'html.parser').svg
    found = drawing.modules()
    wings, counts = list(dict.fromkeys(wing for wing, _ in found)), drawing.arrows(found)
    assert all(wings.index(start) < wings.index(end) for start, end in counts) and len(wings) <= 12 and len(counts) <= 25
    words = drawing.visual_abstract(['<b>', 'two', 'three', 'four'])
    assert '<b>' not in words and unescape(words).count('<b>') == 2

# the manuscript: report/index.qmd, whose cells are run here as they stand

ROOT = Path(__file__).parents[1]

def loaded(path): # a file of Python that is no module of the package
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

def manuscript(runs, monkeypatch):
    "What each cell of the manuscript shows, by its label, as text."
    monkeypatch.chdir(ROOT/'report')
    cells, space, texts = loaded(ROOT/'.ci/manuscript.py').notebook(runs)[0].cells, {}, {}
    for cell in cells:
        if cell.cell_type != 'code': continue
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, 'cell', 'exec'), space)
        value = eval(compile(ast.Expression(last.value), 'cell', 'eval'), space) if last else None
        if label := cell.metadata['quarto'].get('label'): texts[label] = getattr(value, 'data', value)
    return texts

def test_a_manuscript_without_runs_has_no_number(tmp_path, monkeypatch):
    texts = manuscript(tmp_path, monkeypatch)
    drawing = BeautifulSoup(texts.pop('visual-abstract'), 'html.parser')
    assert texts.pop('architecture').startswith('<svg')
    assert not re.search(r'\d', ' '.join(text.get_text() for text in drawing.find_all(['text', 'desc'])))
    assert len(texts) > 12 and not [text for text in texts.values() if re.search(r'\d', text.replace('el2n', ''))]
    assert all('missing' in text.lower() and 'cxr_run' in text for text in texts.values())
    prose = re.sub(r'^```\{python\}.*?^```$', '', (ROOT/'report/index.qmd').read_text(), flags=re.M | re.S)
    assert not re.search(r'\d\.\d', prose), 'a result that is typed'

def test_a_manuscript_is_filled_from_the_runs(tmp_path, rng, monkeypatch):
    trained = baseline(tmp_path/'baseline/run-1', rng)
    made = dict(checkpoints=str(trained/'checkpoints'))
    folders = [trained, influence(tmp_path/'influence/run-2', rng, parameters=made),
               subsets(tmp_path/'subsets/run-3', rng, parameters=dict(mode='remove', **made))]
    influence(tmp_path/'influence/run-4', rng, parameters=dict(checkpoints='elsewhere/checkpoints')) # of another training
    texts = manuscript(tmp_path, monkeypatch)
    macro = pd.read_csv(trained/'baseline.csv').set_index('finding').auroc['macro']
    assert f'{macro:.3f}' in texts['classifier-words'] and f'{macro:.3f}' in texts['classifier-table'] and f'{macro:.3f}' in texts['abstract']
    assert all(line in texts['abstract'] for line in module.summarise(folders))
    rows = module.compare_subsets([folders[2]])
    assert all(row.subset in texts['subsets-table'] and row.reading in texts['subsets-table'] for row in rows.itertuples())
    assert f'{(rows.low > 0).sum()} of {len(rows)} beat random' in texts['visual-abstract'] and '30 training images' in texts['visual-abstract']
    assert texts['classifier-figure'].startswith(b'\x89PNG') and 'missing' in texts['select-figure']
    assert 'run-2' in texts['provenance'] and 'run-4' not in texts['provenance'] and 'cxr_run faithfulness' in texts['provenance']

def test_a_study_is_the_runs_of_one_training(tmp_path, rng):
    first, second = (baseline(tmp_path/f'baseline/run-{name}', rng) for name in 'ab')
    made = {name: dict(checkpoints=str(folder/'checkpoints')) for name, folder in dict(a=first, b=second).items()}
    influence(tmp_path/'influence/of-a', rng, parameters=made['a'])
    subsets(tmp_path/'subsets/of-a', rng, 'select', parameters=dict(mode='select', **made['a']))
    influence(tmp_path/'influence/of-b', rng, parameters=made['b'])
    start(tmp_path/'subsets/failed', 'subsets', status='failed', parameters=dict(mode='remove', **made['a']))
    for folder, day in [(first, 2), (second, 1)]: (folder/'run.json').write_text(json.dumps(module._read_run(folder).facts | dict(start=f'2026-01-0{day}')))
    found = module.find_study(tmp_path)
    assert {part: folder.name for part, folder in found.items()} == {'baseline': 'run-a', 'influence': 'of-a', 'select': 'of-a'}
    assert module.find_study(tmp_path/'nowhere') == {}

def test_every_citation_is_in_the_bibliography_and_used():
    known = loaded(ROOT/'.ci/manuscript.py').references()
    used = set(re.findall(r'@(\w+)', ' '.join(re.findall(r'\[@[^\]]+\]', (ROOT/'report/index.qmd').read_text()))))
    assert used == set(known)
    assert known['pruthi2020'][0] == 'Pruthi et al. 2020' and known['koh2017'][0] == 'Koh and Liang 2017' and known['platt1999'][0] == 'Platt 1999'

def made(folder, checkpoints, start_time, **more):
    "A run as the commands record it."
    return start(folder, more.pop('experiment', folder.parent.name), start=start_time, parameters=dict(checkpoints=checkpoints) | more)

@pytest.mark.parametrize('older, newer', [('_runs/baseline/demo/checkpoints', 'checkpoints'), ('ckpt_old', './ckpt_new'), ('/s/one', '/s/two')])
def test_a_study_has_the_newest_training(tmp_path, older, newer, capsys):
    first = made(tmp_path/'baseline/demo', None if 'demo' in older else older, '2026-01-01T00:00')
    scored = made(tmp_path/'influence/demo', older, '2026-01-01T00:01')
    removed = made(tmp_path/'subsets/demo-r', older, '2026-01-01T00:02', mode='remove')
    second = made(tmp_path/'baseline/nih', newer.removeprefix('./'), '2026-01-02T00:00')
    assert module.find_study(tmp_path) == dict(baseline=second)
    assert f'{second}, has no scores yet; {first} has' in capsys.readouterr().err
    again = made(tmp_path/'influence/nih', newer, '2026-01-02T00:01')
    assert module.find_study(tmp_path) == dict(baseline=second, influence=again) and not capsys.readouterr().err
    (second/'run.json').unlink()
    assert module.find_study(tmp_path) == dict(baseline=first, influence=scored, remove=removed)

def test_runs_of_a_named_sweep_belong_to_a_study_and_a_folder_of_runs_is_enough(tmp_path, rng):
    folders = [baseline(tmp_path/f'baseline/mine/seed={seed}', rng, parameters=dict(seed=seed), start=f'2026-01-0{seed + 1}') for seed in range(2)]
    baseline(folders[1]/'earlier/1', rng, parameters=dict(seed=9), start='2026-02-02')
    assert module.find_study(tmp_path) == dict(baseline=folders[1])
    several = sound(page(tmp_path/'baseline/mine', tmp_path))
    assert [title.get_text() for title in several.find_all('h3', string=re.compile('Test results'))] == [f'Test results (seed {seed})' for seed in range(2)]
    assert len(sound(page(str(folders[0]), tmp_path)).find_all('h3', string='Test results')) == 1
    assert module.summarise(folders[0]) == module.summarise([folders[0]])

@pytest.mark.parametrize('name', ['row.csv', 'history.csv', 'extra.csv'])
@pytest.mark.parametrize('harm', ['edited', 'missing'])
def test_numbers_of_a_table_that_was_changed_are_not_shown(study, tmp_path, name, harm):
    pd.DataFrame(dict(value=[1])).to_csv(study[0]/'extra.csv', index=False)
    facts = module._read_run(study[0]).facts
    (study[0]/'run.json').write_text(json.dumps(facts | dict(results=checksums(study[0]))))
    assert page(study, tmp_path).find('h2', string='The classifier')
    if harm == 'edited': (study[0]/name).write_text('auroc,value\n0.98765,2\n')
    else: (study[0]/name).unlink()
    soup = sound(page(study, tmp_path))
    assert f'The classifier is damaged: missing or changed since: {name}; run it again' in summary(soup)
    assert not soup.find('h2', string='The classifier') and not soup.find('a', string='baseline-run-1-history.csv') and '98765' not in str(soup)
    assert 'baseline' not in module.find_study(tmp_path)
    with pytest.raises(InputError, match=f'No run is complete: .* is damaged.*{name}'): report([study[0]], tmp_path/'none.html')

def test_several_data_sets_are_all_named(tmp_path, rng):
    folders = [baseline(tmp_path/f'baseline/{name}', rng, parameters=dict(data=str(tmp_path/name)), data=f'{name}-0') for name in ('nih', 'own')]
    folders.append(influence(tmp_path/'influence/a', rng, parameters=dict(data=str(tmp_path/'moved/nih')), data='nih-0')) # the same labels
    soup = sound(page(folders, tmp_path))
    assert soup.h1.get_text().endswith('nih, own') and 'These runs used 2 data sets: nih, own.' in summary(soup)
    assert 'nih, own' in soup.header.dl.get_text()
    assert 'data sets' not in summary(page([folders[0], folders[2]], tmp_path))

def test_labels_that_have_changed_since_are_not_shown_beside_the_scores(tmp_path, rng, phantom):
    data = load_data(phantom, 32, stores=tmp_path/'stores')
    folders = [influence(tmp_path/f'influence/{name}', rng, list(data.train.index), data=noted)
               for name, noted in dict(same=data.fingerprint, earlier=data.fingerprint.partition('-')[0], other='0123456789ab-12345678').items()]
    for folder in folders:
        text, shown = module._inspect(module._read_run(folder), data, 3)[0].blocks
        hidden = folder.name == 'other'
        assert ('have changed since' in text['html']) == hidden and all((image['source'] is None) == hidden for image in shown['images'])
        assert all((image['label'] == 'label not at hand') == hidden for image in shown['images'])

def test_many_runs_of_subsets_are_all_in_a_table_and_the_first_of_each_mode_in_full(tmp_path, rng):
    folders = [subsets(tmp_path/f'subsets/{mode}-{margin}', rng, mode, parameters=dict(mode=mode, margin=margin))
               for mode in ('remove', 'select') for margin in range(5)]
    for folder in folders: pd.DataFrame([dict(auroc_top=rng.uniform())]).to_csv(folder/'row.csv', index=False)
    soup = sound(page(folders, tmp_path))
    table = soup.find('caption', string='One row per run').find_parent('table')
    assert len(table.tbody.find_all('tr')) == 10 and '2 of these 10 runs are in this table only' in soup.get_text()
    titles = [title.get_text() for title in soup.find_all('h3', string=re.compile('^Subsets: '))]
    assert titles == [f'Subsets: {mode} images (margin {margin})' for mode in ('remove', 'select') for margin in range(4)]
    assert all(f'How small ({way}ing; margin {margin}).' in summary(soup) for way in ('remov', 'select') for margin in range(4))

def test_numbers_of_many_runs_are_readable(tmp_path, rng):
    folders = [baseline(tmp_path/f'baseline/run-{k}', rng) for k in range(2)]
    for folder in folders: pd.DataFrame([dict(run='x', images=86524, auroc=.8123456)]).to_csv(folder/'row.csv', index=False)
    text = page(folders, tmp_path).get_text(' ')
    assert '86,524' in text and '.8123' in text and 'e+' not in text
