"NIH's tables and lists: every flaw is repaired and reported, every error is one sentence, and nothing else is ever raised."
import json, os, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from conftest import sentence
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.nih import (Report, find_files, find_images, read_nih, read_table,
    _table_version, _whole_years)
from cxr_influence.data.batches import load_data
from cxr_influence.data.files import InputError, project_path
from cxr_influence.data.labels import encode_all
from cxr_influence.data.splits import check_splits, take_patients
from cxr_influence.data.tables import folder_findings, read_dataset

HEADER = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
          'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]')
ROWS = ['00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143', '00000001_001.png,Mass|Nodule,1,1,58,M,PA,2894,2729,0.143,0.143',
        '00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.171,0.171', '00000003_000.png,Hernia,0,3,81,F,PA,2582,2991,0.143,0.143']
TABLE = '\n'.join([HEADER, *ROWS, ''])

def written(folder, text):
    path = folder/'Data_Entry_2017_v2020.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path

@pytest.mark.parametrize('text', [
    TABLE, TABLE.replace('\n', '\r\n'), TABLE.rstrip('\n'), '\ufeff' + TABLE, TABLE + '\n\n',
    '\n'.join(f'{line},' for line in TABLE.splitlines()), '\n'.join([HEADER, *(f'{row},' for row in ROWS)]),
    TABLE.replace('Patient Gender', 'Patient Sex'), TABLE.replace(',57,', ',057Y,').replace(',80,', ',080Y,'),
    TABLE.replace('OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]', 'OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y'),
    TABLE.replace('Image Index', ' Image Index ')],
    ids=['box', 'windows', 'no last line end', 'byte order mark', 'empty lines', 'comma at each end', 'comma at rows', 'sex', 'ages', 'sample', 'blanks'])
def test_flaws_change_nothing(tmp_path, text):
    frame = read_table(written(tmp_path, text))
    pd.testing.assert_frame_equal(frame, read_table(written(tmp_path, TABLE)))
    assert list(frame.age) == [57, 58, 80, 81] and list(frame.sex) == list('MMFF') and list(frame.patient) == [1, 1, 2, 3]

def test_ages_of_every_kind():
    ages = _whole_years(pd.Series(['0', '95', '100', '101', '414', '060Y', '011M', '023M', '009D', '060W', '', 'x', '-3', '5.0']))
    np.testing.assert_array_equal(ages, [0, 95, 100, np.nan, np.nan, 60, 0, 1, 0, 1, np.nan, np.nan, np.nan, 5])

BAD_ROWS = { # a row in place of the last one -> words of the sentence
    '00000003_000.png,Herniation,0,3,81,F,PA,1,1,1,1': ["Unknown finding 'Herniation'", 'row 5', '00000003_000.png'],
    '00000003_000.png,No Finding|Mass,0,3,81,F,PA,1,1,1,1': ['No Finding and something else', 'row 5'],
    '00000003_000.png,,0,3,81,F,PA,1,1,1,1': ['Unknown finding', 'row 5'],
    '00000003_000.png,Hernia,0,4,81,F,PA,1,1,1,1': ['patient that contradicts its name', 'row 5'],
    '00000003_000.png,Hernia,0,three,81,F,PA,1,1,1,1': ['patient that is not a whole number', 'row 5'],
    '00000003_000.png,Hernia,,3,81,F,PA,1,1,1,1': ['follow-up that is not a whole number', 'row 5'],
    '../../etc/passwd,Hernia,0,3,81,F,PA,1,1,1,1': ['not a plain file name', '../../etc/passwd'],
    '/etc/passwd,Hernia,0,3,81,F,PA,1,1,1,1': ['not a plain file name', '/etc/passwd'],
    'C:\\images\\1.png,Hernia,0,3,81,F,PA,1,1,1,1': ['not a plain file name', 'row 5'],
    '..,Hernia,0,3,81,F,PA,1,1,1,1': ['not a plain file name', 'row 5'],
    ROWS[0]: ['comes a second time', 'row 5', '00000001_000.png'],
    '00000003_000.png,Hernia,0': ['too few columns', 'row 5']}

@pytest.mark.parametrize('row', BAD_ROWS)
def test_a_row_that_cannot_be_used(tmp_path, row):
    path, report = written(tmp_path, '\n'.join([HEADER, *ROWS[:3], row])), Report()
    said = sentence(read_table, path)
    assert all(word in said for word in [str(path), "on_error='skip'", *BAD_ROWS[row]])
    frame = read_table(path, 'skip', report)
    pd.testing.assert_frame_equal(frame, read_table(written(tmp_path, TABLE))[:3])
    assert report.skipped() == [row.split(',')[0]] and len(report) == 1
    assert 'skipped' in repr(report) and BAD_ROWS[row][0] in report._repr_html_().replace('&#x27;', "'").replace('&#39;', "'")

@pytest.mark.parametrize('content, words', {
    b'': ['columns'], b'\n\n': ['columns'], TABLE.encode('utf-16'): ['UTF-8'], TABLE.replace('Hernia', 'Hérnia').encode('latin-1'): ['UTF-8'],
    b'<!DOCTYPE html><html><body>Sign in</body></html>': ['Finding Labels'], b'\x89PNG\r\n\x1a\n\x00\x00': ['Data_Entry'],
    TABLE.replace(',View Position', '').encode(): ['View Position'], # ten columns
    (TABLE + 'a,b,c,d,e,f,g,h,i,j,k,l,m\n').encode(): ['line 6'],
    TABLE.replace('Patient Gender', 'Patient Sex').replace('Follow-up #', 'Patient Gender').encode(): ['Patient Gender'],
}.items(), ids=['empty', 'blank', 'utf-16', 'latin-1', 'html', 'png', 'ten columns', 'a long row', 'two sexes'])
def test_a_file_that_is_not_a_table(tmp_path, content, words):
    path = written(tmp_path, content)
    for on_error in ['raise', 'skip']:
        said = sentence(read_table, path, on_error)
        assert all(word in said for word in [path.name, *words])
    path.unlink()
    path.mkdir()
    assert path.name in sentence(read_table, path)

def test_on_error_is_one_of_two(phantom, tmp_path):
    path = written(tmp_path, TABLE + ROWS[0])
    assert "'raise' or 'skip'" in sentence(read_table, path, 'ignore')

mutation = st.tuples(st.sampled_from(['replace', 'insert', 'delete', 'double', 'swap lines', 'cut']), st.integers(0, 10**6),
                     st.integers(0, 10**6), st.binary(max_size=6) | st.sampled_from([b',', b'\n', b'"', b'\r', b'|', b'\x00', b'\xff', b'9' * 30, b'../']))

def mutate(data, mutations):
    for kind, here, there, new in mutations:
        i = here % (len(data) + 1)
        if kind == 'replace': data = data[:i] + new + data[i + len(new):]
        elif kind == 'insert': data = data[:i] + new + data[i:]
        elif kind == 'delete': data = data[:i] + data[i + there % 40:]
        elif kind == 'double': data = data[:i] + data[max(0, i - there % 90):]
        elif kind == 'cut': data = data[:i] if there % 5 == 0 else data
        else:
            lines = data.split(b'\n')
            a, b = here % len(lines), there % len(lines)
            lines[a], lines[b] = lines[b], lines[a]
            data = b'\n'.join(lines)
    return data

@pytest.mark.long
@settings(max_examples=1000, deadline=None)
@given(st.lists(mutation, min_size=1, max_size=5))
def test_a_mutated_table_is_read_or_refused_in_a_sentence(tmp_path_factory, mutations):
    path = written(tmp_path_factory.getbasetemp(), mutate(TABLE.encode(), mutations))
    for on_error in ['raise', 'skip']:
        try: frame = read_table(path, on_error)
        except InputError as error: assert '\n' not in str(error) and str(path) in str(error)
        else:
            assert frame.index.is_unique and frame.patient.dtype == 'int64' and not frame.labels.isna().any()
            assert encode_all(frame.labels).isin([0, 1]).all().all() and frame.age.dropna().between(0, 100).all()

@pytest.mark.long
@settings(max_examples=100, deadline=None)
@given(st.lists(mutation, min_size=1, max_size=3), st.sampled_from(['train_val_list.txt', 'test_list.txt', 'Data_Entry_2017_v2020.csv']))
def test_a_mutated_copy_is_read_or_refused_in_a_sentence(phantom, tmp_path_factory, mutations, name):
    root = tmp_path_factory.getbasetemp()/'mutated'
    if not root.exists(): shutil.copytree(phantom, root)
    (root/name).write_bytes(mutate((phantom/name).read_bytes(), mutations))
    try: frame = read_nih(root, on_error='skip')
    except InputError as error: assert '\n' not in str(error)
    else: check_splits(frame)
    finally: shutil.copy(phantom/name, root/name)

@pytest.fixture
def copy(phantom, tmp_path): return shutil.copytree(phantom, tmp_path/'copy')

def row(frame, what, state): return next(row for row in frame.attrs['report'] if (row['what'], row['state']) == (what, state))

def test_lists_that_name_unknown_images_are_reported(copy):
    names = (copy/'test_list.txt').read_text().split()
    (copy/'test_list.txt').write_text('\n'.join([*names, '99999999_000.png', '99999999_001.png']))
    frame = read_nih(copy)
    assert row(frame, 'test list', 'absent')['count'] == 2 and '99999999_000.png' in row(frame, 'test list', 'absent')['detail']
    (copy/'test_list.txt').write_text('<html>\n<body>Sign in</body>')
    assert 'names no image of the table' in sentence(read_nih, copy)
    (copy/'test_list.txt').write_bytes('\n'.join(names).encode('utf-16'))
    assert 'test_list.txt' in sentence(read_nih, copy)

def test_lists_with_folders_and_labels_are_read(copy, phantom):
    path = copy/'test_list.txt'
    path.write_text('\n'.join(f'images_006/{name} 0 0 1' for name in path.read_text().split()))
    pd.testing.assert_frame_equal(read_nih(copy), read_nih(phantom))

def test_an_image_in_two_folders_is_reported_and_read_once(copy, phantom):
    (copy/'sample').mkdir()
    name = read_nih(phantom).index[5]
    shutil.copy(copy/'images'/name, copy/'sample'/name)
    assert row(read_nih(copy), 'images', 'repaired')['names'] == [name] and len(read_nih(copy)) == len(read_nih(phantom))

def test_hidden_files_and_links_in_circles_do_no_harm(copy, phantom):
    (copy/'images/circle').symlink_to(copy, target_is_directory=True)
    (copy/'.hidden').mkdir()
    (copy/'.hidden/test_list.txt').write_text('nothing')
    (copy/'images/._00000001_000.png').write_bytes(b'resource fork')
    pd.testing.assert_frame_equal(read_nih(copy), read_nih(phantom))

def test_images_by_other_endings_and_by_paths(tmp_path):
    (tmp_path/'CheXpert/train/patient1/study1').mkdir(parents=True)
    for name in ['train/patient1/study1/view1.jpg', 'a.JPG', 'b.dicom', 'c', 'd.txt']: (tmp_path/'CheXpert'/name).write_text('x')
    root = tmp_path/'CheXpert'
    def found(*names): return list(find_images(pd.Index(names), find_files(root), root).index)
    assert found('a.png', 'b', 'c.png', 'd.png', 'view1.jpg') == ['a.png', 'b', 'c.png', 'view1.jpg']
    assert found('train/patient1/study1/view1.jpg', 'patient1/study1/view1.jpg') == ['train/patient1/study1/view1.jpg']
    assert found('CheXpert/train/patient1/study1/view1.jpg', 'CheXpert/a.png') == ['CheXpert/train/patient1/study1/view1.jpg', 'CheXpert/a.png']

@pytest.mark.long
def test_a_subset_keeps_patients_and_prevalence(real):
    frame = read_nih(real)
    for n in [300, 1000]:
        fewer = read_nih(real, n=n)
        check_splits(fewer)
        assert abs(len(fewer) - n) < 20
        assert frame.patient[~frame.index.isin(fewer.index)].isin(fewer.patient).sum() == 0 # whole patients
        np.testing.assert_allclose(fewer.split.value_counts(normalize=True), frame.split.value_counts(normalize=True), atol=.02)
        np.testing.assert_allclose(fewer[list(FINDINGS)].mean(), frame[list(FINDINGS)].mean(), atol=.6 / n**.5)
    assert read_nih(real, n=300, seed=1).index.equals(read_nih(real, n=300, seed=1).index)
    assert not read_nih(real, n=300, seed=1).index.equals(read_nih(real, n=300).index)
    assert 'at least 30' in sentence(take_patients, frame, 3)

def test_versions_are_identified_by_their_counts():
    from cxr_influence.data.nih import _PUBLISHED_COUNTS
    for version, counts in _PUBLISHED_COUNTS.items():
        labels = pd.DataFrame(np.arange(112_120)[:, None] < counts.to_numpy(), columns=list(FINDINGS)).astype('float32')
        assert f'version of {version}' in _table_version(labels)
        labels.loc[0, 'Hernia'] = 0
        assert 'neither' in _table_version(labels) and 'Hernia' in _table_version(labels)
    assert 'a part of' in _table_version(labels[:5])

def test_archives_not_unpacked_and_a_second_table_are_mentioned(copy):
    shutil.copy(copy/'Data_Entry_2017_v2020.csv', copy/'Data_Entry_2017.csv')
    assert row(read_nih(copy), 'Data_Entry_2017.csv', 'skipped')
    shutil.rmtree(copy/'images')
    assert 'give the folder that holds them' in sentence(read_nih, copy)
    (copy/'images_001.tar.gz').write_bytes(b'')
    assert 'unpack images_001.tar.gz' in sentence(read_nih, copy)

def test_names_that_are_not_utf8_are_left_out_with_one_warning(copy, phantom, capsys):
    whole, where = read_nih(phantom), os.fsencode(copy)
    for name in [b'R\xf6ntgen.txt', b'images/R\xf6ntgen.png']: open(os.path.join(where, name), 'wb').close()
    os.mkdir(os.path.join(where, b'Ordner f\xfcr alles'))
    shutil.copy(phantom/'train_val_list.txt', os.path.join(where, b'Ordner f\xfcr alles/notes.csv'))
    capsys.readouterr()
    pd.testing.assert_frame_equal(read_nih(copy), whole)
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and '3 files are left out' in said and 'not UTF-8' in said and '\\x' in said
    image = copy/'images'/whole.index[3]
    os.rename(image, os.fsencode(image.parent) + b'/\xff' + os.fsencode(image.name)) # one that the table needs
    assert row(read_nih(copy), 'images', 'absent')['detail'] == f'such as {image.name}'
    shutil.rmtree(copy/'images')
    assert 'None of the' in sentence(read_nih, copy)

def test_folders_are_found_from_a_subfolder_and_at_home(phantom, tmp_path, monkeypatch):
    (tmp_path/'settings.ini').touch()
    (tmp_path/'nbs/deep').mkdir(parents=True)
    expected = read_nih(phantom)
    monkeypatch.chdir(tmp_path/'nbs/deep')
    monkeypatch.setenv('HOME', str(tmp_path))
    shutil.copytree(phantom, project_path('_data/p'))
    (tmp_path/'_data/p/own.csv').write_text('file,who,Mass\n' + ''.join(f'{name},{n},0\n' for n, name in enumerate(expected.index)))
    described = dict(image='file', patient='who', findings=['Mass'])
    for root in ['_data/p', '~/_data/p', Path('~/_data/p')]:
        frame = read_nih(root)
        pd.testing.assert_frame_equal(frame, expected)
        assert frame.attrs['root'] == str((tmp_path/'_data/p').resolve())
        assert len(find_images(expected.index, find_files(root), root)) == len(expected)
        by_path = pd.Index(['p/images/' + name for name in expected.index])
        assert len(find_images(by_path, find_files(root), root)) == len(expected)
        assert len(read_dataset(f'{root}/own.csv', root, **described)) == len(expected)
        assert load_data(root, 32, n=60).root == frame.attrs['root']
        assert folder_findings(root) == list(FINDINGS)
    (tmp_path/'_data/p/dataset.json').write_text(json.dumps(dict(table='own.csv', only=True, **described)))
    for root in ['_data/p', '~/_data/p']: assert load_data(root, 32, n=60).findings == folder_findings(root) == ['Mass']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['_data', 'nbs', 'settings.ini'] and not [*(tmp_path/'nbs/deep').iterdir()]
