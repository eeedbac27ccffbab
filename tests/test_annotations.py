"NIH's boxes, the adjudicated labels of Google and RSNA, and how NIH's labels agree with them."
import importlib.util, json, subprocess, sys
from fractions import Fraction
from math import sqrt

import numpy as np
import pandas as pd
import pytest

from cxr_influence.data.annotations import (_BOX_NAMES, COUNTERPARTS, _SIDES,
    radiologist_agreement, box_map, _join_answers, join_google, join_rsna, _nih_answer,
    _proportion, read_boxes, _read_rsna_names, _read_rsna_normal, shipped_table)
from cxr_influence.data.nih import TABLE_NAMES, find_files, find_file, read_lists, read_table
from cxr_influence.data.labels import FINDINGS, encode_all
from cxr_influence.data.files import InputError

BOXES = ('Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Cardiomegaly,320.5,480,480,320\n'
         '00000002_000.png,Infiltrate,0,256,1024,768\n')
needs_xrv = pytest.mark.skipif(importlib.util.find_spec('torchxrayvision') is None, reason='torchxrayvision is not installed')
OPAQUE, CLEAR = '00436515-870c-4b36-a041-de91049b9ab4', '0004cfab-14fd-4e49-80ba-63a80b6bddd6'

@pytest.fixture
def folder(tmp_path):
    def write(text, name=_BOX_NAMES[0]):
        (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path
    return write

@pytest.fixture(scope='module')
def full(real):
    files = find_files(real)
    table = read_table(find_file(files, TABLE_NAMES))
    test = table.index.isin(read_lists(files)['test'])
    return table[['patient']].join(encode_all(table.labels)).assign(split=np.where(test, 'test', 'train_val'))

# Boxes

@pytest.mark.parametrize('text', [BOXES, BOXES.replace('\n', '\r\n'), BOXES.rstrip('\n'), BOXES.replace(',,,\n', '\n', 1),
                                  BOXES.replace(',320\n', ',320,,,\n').replace(',768\n', ',768,,,\n'),
                                  BOXES.replace('Infiltrate', 'Infiltration')])
@pytest.mark.parametrize('name', _BOX_NAMES)
def test_boxes_are_read_in_each_form(folder, text, name):
    boxes = read_boxes(folder(text, name))
    assert list(boxes.columns) == ['image', 'finding', *_SIDES]
    assert boxes.to_numpy().tolist() == [['00000001_000.png', 'Cardiomegaly', 320.5, 480, 480, 320],
                                         ['00000002_000.png', 'Infiltration', 0, 256, 1024, 768]]

def test_boxes_come_in_the_pixels_of_another_size(folder):
    root = folder(BOXES)
    np.testing.assert_allclose(read_boxes(root, 224)[_SIDES], read_boxes(root)[_SIDES] * 224 / 1024)
    for size in [0, -1, float('nan')]:
        with pytest.raises(InputError, match='size is'): read_boxes(root, size)

def test_a_header_alone_is_no_boxes(folder):
    boxes = read_boxes(folder(BOXES.split('\n')[0]))
    assert len(boxes) == 0 and box_map(boxes, 8).sum() == 0

@pytest.mark.parametrize('right, wrong, said', [
    ('Cardiomegaly', 'Heart', 'line 2 .*Heart.* unknown finding'), ('Infiltrate', '', 'line 3 .* unknown finding'),
    ('320.5', 'left', 'line 2 .* not a number'), (',480,480,', ',,480,', 'line 2 .* not a number'),
    (',1024,768', ',1024', 'line 3 .* not a number'), ('320.5', 'nan', 'line 2 .* not a number'),
    ('320.5', '-1', 'line 2 .* outside'), ('320.5', '600', 'line 2 .* outside'), ('1024,768', '1024,769', 'line 3 .* outside'),
    ('320.5', 'inf', 'line 2 .* outside'), ('480,320', '480,0', 'line 2 .* no area'), ('1024,768', '-5,768', 'line 3 .* no area'),
    ('00000001_000.png', '', 'line 2 .* no image'), ('Bbox [x', 'left', r"lacks the columns \['Bbox \[x'\]"),
    ('Finding Label', 'Finding', 'lacks the columns'), (BOXES, '', 'cannot be read'), ('Cardio', '"Cardio', 'cannot be read'),
    ('480,320', '480,320,,,,9', 'cannot be read'), ('Finding Label,', '', 'lacks the columns')])
def test_a_box_that_cannot_be_is_named(folder, right, wrong, said):
    with pytest.raises(InputError, match=f'{_BOX_NAMES[0]}.*{said}'): read_boxes(folder(BOXES.replace(right, wrong)))

def test_a_file_that_is_no_text_or_is_not_there_is_named(folder, tmp_path):
    (tmp_path/'a.txt').write_text('')
    with pytest.raises(InputError, match='No boxes in'): read_boxes(tmp_path)
    with pytest.raises(InputError, match='cannot be read'): read_boxes(folder(b'\xff\xfe\x00'))
    with pytest.raises(InputError, match='No data in'): read_boxes(tmp_path/'nowhere')

def test_a_box_covers_the_pixels_whose_centres_it_holds():
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 20, (40, 2))
    boxes = pd.DataFrame(np.hstack([corners, rng.uniform(0, 1, (40, 2)) * (20 - corners)]), columns=_SIDES)
    centre = np.arange(20) + .5
    slowly = sum(((centre[:, None] >= b.y) & (centre[:, None] < b.y + b.height)) &
                 ((centre >= b.x) & (centre < b.x + b.width)) for b in boxes.itertuples())
    assert np.array_equal(box_map(boxes, 20), slowly)

def test_nihs_own_boxes(real, full):
    boxes = read_boxes(real)
    assert len(boxes) == 984 and boxes.image.nunique() == 880
    assert boxes.finding.value_counts().to_dict() == dict(
        Atelectasis=180, Effusion=153, Cardiomegaly=146, Infiltration=123, Pneumonia=120, Pneumothorax=98, Mass=85, Nodule=79)
    assert (full.split[boxes.image] == 'test').all()
    assert all(full.at[image, finding] == 1 for image, finding in zip(boxes.image, boxes.finding))

# Readers

def made_frame():
    frame = pd.DataFrame({'split': 'train', 'age': [1, 2, 3, 4]},
                         index=pd.Index(['00000032_002.png', 'mine.png', '00000013_026.png', '00000013_008.png'], name='image'))
    frame.attrs = {'notes': ['four']}
    return frame

def write_names(path, pairs):
    path.write_text(json.dumps([{'img_id': image, 'subset_img_id': name, 'orig_labels': ['Mass']} for name, image in pairs]))
    return path

@needs_xrv
def test_googles_labels_are_joined_by_image():
    frame = made_frame()
    joined = join_google(frame)
    assert joined.index.equals(frame.index) and joined.attrs == frame.attrs and joined[frame.columns].equals(frame)
    assert list(frame.columns) == ['split', 'age']
    expected = {'google_Pneumothorax': [0, np.nan, 1, 0], 'google_Nodule or mass': [0, np.nan, 0, 0],
                'google_Airspace opacity': [1, np.nan, 0, 1], 'google_Fracture': [0, np.nan, 0, 0]}
    pd.testing.assert_frame_equal(joined.filter(like='google_'), pd.DataFrame(expected, frame.index, dtype='float32'))
    assert join_google(joined).equals(joined)

@needs_xrv
def test_every_one_of_googles_answers_finds_its_image(full):
    read = join_google(full)
    assert len(read) == 112_120 and read.google_Fracture.count() == 4_376
    assert read[read.google_Fracture.notna()].split.value_counts().to_dict() == {'test': 1_962, 'train_val': 2_414}
    assert read.filter(like='google_').sum().to_dict() == {
        'google_Pneumothorax': 238, 'google_Nodule or mass': 605, 'google_Airspace opacity': 2_166, 'google_Fracture': 186}

@needs_xrv
def test_rsnas_readings_are_joined_through_its_key(tmp_path):
    frame = made_frame()
    names = write_names(tmp_path/'names.json', [(OPAQUE, 'mine.png'), (CLEAR, '00000013_008.png'), ('of the test set', '00000032_002.png')])
    joined = join_rsna(frame, names)
    assert joined.index.equals(frame.index) and joined.attrs == frame.attrs and 'rsna_Normal' not in joined
    np.testing.assert_array_equal(joined['rsna_Lung opacity'], [np.nan, 1, np.nan, 0])
    classes = tmp_path/'classes.csv'
    classes.write_text(f'patientId,class\n{OPAQUE},Lung Opacity\n{OPAQUE},Lung Opacity\n{CLEAR},Normal\n')
    np.testing.assert_array_equal(join_rsna(frame, names, classes).rsna_Normal, [np.nan, 0, np.nan, 1])

@needs_xrv
def test_rsnas_names_cannot_be_told_from_what_is_shipped(real):
    table = pd.read_csv(find_file(find_files(real), TABLE_NAMES))
    header = pd.read_csv(shipped_table('kaggle_stage_2_train_images_dicom_headers.csv.gz'))
    ours = zip(table['Patient Age'], table['Patient Gender'], table['View Position'], table['OriginalImagePixelSpacing[x'].round(3))
    theirs = zip(header.PatientAge, header.PatientSex, header.ViewPosition, header.PixelSpacing.round(3))
    candidates = pd.Series(list(theirs)).map(pd.Series(list(ours)).value_counts())
    assert len(candidates) == 26_684 and (candidates == 1).sum() == 23

@pytest.mark.parametrize('text, said', [
    ('', 'not RSNA'), ('{"a": 1}', 'not RSNA'), ('[{"img_id": "a.png"}]', 'not RSNA'), ('[1, 2]', 'not RSNA'), ('null', 'not RSNA'),
    ('[{"img_id": "a.png", "subset_img_id": "1"}, {"img_id": "a.png", "subset_img_id": "2"}]', 'a.png twice'),
    ('[{"img_id": "a.png", "subset_img_id": "1"}, {"img_id": "b.png", "subset_img_id": "1"}]', '1 twice')])
def test_a_wrong_key_is_named(tmp_path, text, said):
    (tmp_path/'names.json').write_text(text)
    with pytest.raises(InputError, match=f'names.json .*{said}'): _read_rsna_names(tmp_path/'names.json')
    with pytest.raises(InputError, match='absent.json'): _read_rsna_names(tmp_path/'absent.json')

@pytest.mark.parametrize('text', ['', 'patientId,label\na,Normal\n', 'patientId,class\na,normal\n', 'patientId,class\na,\n',
                                  'patientId,class\na,Normal\na,Lung Opacity\n'])
def test_wrong_classes_are_named(tmp_path, text):
    (tmp_path/'classes.csv').write_text(text)
    with pytest.raises(InputError, match='classes.csv'): _read_rsna_normal(tmp_path/'classes.csv')
    with pytest.raises(InputError, match='absent.csv'): _read_rsna_normal(tmp_path/'absent.csv')

def test_without_torchxrayvision_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    for call in [lambda: shipped_table('x.csv'), lambda: join_google(made_frame()), lambda: join_rsna(made_frame(), tmp_path/'names.json')]:
        with pytest.raises(InputError, match='pip install torchxrayvision'): call()

@needs_xrv
def test_torchxrayvision_is_read_and_not_imported():
    code = ('import sys, pandas as pd; from cxr_influence.data.annotations import join_google; '
            'join_google(pd.DataFrame(index=["a.png"])); sys.exit("torchxrayvision" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0

def test_an_image_named_twice_keeps_both_rows():
    frame = pd.DataFrame({'a': [1, 2, 3]}, index=['x', 'y', 'x'])
    joined = _join_answers(frame, pd.DataFrame({'b': [1, 0]}, index=['x', 'unseen']))
    assert list(joined.a) == [1, 2, 3]
    np.testing.assert_array_equal(joined.b, [1, np.nan, 1])

# Agreement

def by_hand(frame, answer, labels):
    "PPV, sensitivity and disagreement, image by image, in plain Python."
    hit = false = missed = images = 0
    for _, row in frame.iterrows():
        known = [row[label] for label in labels or FINDINGS]
        if any(k != k for k in known) or row[answer] != row[answer]: continue
        said = any(known) if labels else not any(known)
        images += 1; hit += said and row[answer] == 1; false += said and row[answer] == 0; missed += row[answer] == 1 and not said
    return images, hit + missed, hit + false, Fraction(hit, hit + false), Fraction(hit, hit + missed), Fraction(false + missed, images)

def test_agreement_is_what_counting_by_hand_gives():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(rng.choice([0, 1, np.nan], (300, 14), p=[.8, .19, .01]), columns=list(FINDINGS))
    frame = frame.assign(split=rng.choice(['train', 'validation', 'test'], 300),
                         **{answer: rng.choice([0, 1, np.nan], 300) for answer in COUNTERPARTS})
    table = radiologist_agreement(frame)
    assert len(table) == 3 * len(COUNTERPARTS)
    for (answer, split), row in table.iterrows():
        counted = by_hand(frame[frame.split == split], answer, COUNTERPARTS[answer])
        found = row.images, row.tp + row.fn, row.tp + row.fp, row.PPV, row.sensitivity, row.disagreement
        np.testing.assert_allclose([float(f) for f in found], [float(c) for c in counted])
        assert row.images == row[['tn', 'fp', 'fn', 'tp']].sum()

@needs_xrv
def test_nihs_labels_against_googles_readers(full):
    read = join_google(full)
    table = radiologist_agreement(read)
    assert table.loc[('google_Pneumothorax', 'test'), ['PPV', 'sensitivity', 'disagreement']].astype(float).round(3).tolist() == [.485, .497, .102]
    for (answer, split), row in table.iterrows():
        known = read[(read.split == split) & read[answer].notna()]
        assert (row.images, row.tp + row.fn, row.tp + row.fp) == by_hand(known, answer, COUNTERPARTS[answer])[:3]

def test_a_question_without_labels_asks_for_none_of_them():
    frame = encode_all(pd.Series(['No Finding', 'Hernia', 'Mass|Nodule']))
    assert _nih_answer(frame, ()).tolist() == [1, 0, 0] and _nih_answer(frame, ('Nodule', 'Mass')).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match='Unknown finding'): _nih_answer(frame, ('Infiltrate',))
    frame.loc[0, 'Mass'] = np.nan
    assert np.isnan(_nih_answer(frame, ())[0]) and _nih_answer(frame, ('Hernia',)).tolist() == [0, 1, 0]

def test_nothing_seen_or_labelled_has_no_share():
    frame = encode_all(pd.Series(['Mass', 'No Finding'])).assign(split='test', google_Pneumothorax=[0., 0.])
    row = radiologist_agreement(frame).iloc[0]
    assert np.isnan(row[['PPV', 'PPV low', 'sensitivity', 'sensitivity high']].astype(float)).all() and row.disagreement == 0
    assert radiologist_agreement(frame.drop(columns='split')).index.tolist() == [('google_Pneumothorax', 'all')]
    with pytest.raises(InputError, match='no radiologists'): radiologist_agreement(frame.drop(columns='google_Pneumothorax'))

@pytest.mark.parametrize('hits, of', [(0, 20), (3, 10), (97, 200), (20, 20)])
def test_the_interval_is_wilsons(hits, of):
    z, p = 1.959963984540054, hits / of
    middle, half = (p + z*z/2/of) / (1 + z*z/of), z * sqrt(p*(1-p)/of + z*z/4/of**2) / (1 + z*z/of)
    np.testing.assert_allclose(_proportion(hits, of), (p, middle - half, middle + half), atol=1e-12)
