"Tables of other data sets become the same frame; bad ones end in a sentence; unknown labels are honoured to the end."
import copy, gzip, json, os, shutil, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from conftest import refused
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.data import nih, store, tables
from cxr_influence.data.batches import Data, load_data
from cxr_influence.data.nih import fingerprint, read_nih
from cxr_influence.data.store import decode
from cxr_influence.data.images import read_image
from cxr_influence.data.labels import FINDINGS, NO_FINDING
from cxr_influence.data.files import InputError
from cxr_influence.training.losses import FocalLoss, class_weights, training_loss
from cxr_influence.measures.calibration import pooled_calibration_error
from cxr_influence.measures.intervals import bootstrap_auroc
from cxr_influence.measures.metrics import choose_thresholds
from cxr_influence.measures.results import evaluate
from cxr_influence.data.splits import take_patients
from cxr_influence.data.tables import (folder_findings, from_medmnist, from_torchxrayvision,
    read_dataset, _read_grey, to_torchxrayvision)
from cxr_influence.attribution.scoring import influence
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.resume import fit

RNG = np.random.default_rng()
COLUMNS = ['patient', 'age', 'sex', 'view', 'follow_up', 'split', *FINDINGS]
CHEXPERT = {name: name for name in ['No Finding', 'Atelectasis', 'Cardiomegaly', 'Pneumonia', 'Pneumothorax', 'Consolidation',
                                    'Edema']} | {'Effusion': 'Pleural Effusion'}

def draw(root, names):
    for number, name in enumerate(names):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), number % 256).save(root/name)

def rows(frame): return {(row['what'], row['state']): row for row in frame.attrs['report']}

# ---- one made table of each kind

def test_chexpert(tmp_path):
    (tmp_path/'train.csv').write_text(
        'Path,Sex,Age,AP/PA,No Finding,Lung Opacity,' + ','.join(list(CHEXPERT.values())[1:]) + '\n'
        + ''.join(f'CheXpert-v1.0-small/{split}/patient{p:05d}/study1/view1_frontal.jpg,{sex},{50 + p},AP,{labels}\n'
                  for p, split, sex, labels in [(1, 'train', 'Male', '1.0,,,,,,,,'), (2, 'train', 'Female', ',1.0,-1.0,1.0,,,0.0,,1.0'),
                                                (3, 'train', 'Unknown', ',,,,,,,,'), (4, 'valid', 'Male', '0.0,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0')]))
    table = pd.read_csv(tmp_path/'train.csv', dtype=str)
    draw(tmp_path, table.Path)
    arguments = dict(image='Path', patient=lambda t: t.Path.str.extract(r'/(patient\d+)/'), findings=CHEXPERT, age='Age', sex='Sex',
                     view='AP/PA', split=lambda t: np.where(t.Path.str.contains('/valid/'), 'test', 'train'))
    frame = read_dataset(tmp_path/'train.csv', tmp_path, **arguments)
    inner = read_dataset(tmp_path/'train.csv', tmp_path/'CheXpert-v1.0-small', **arguments)
    assert frame.equals(inner) and list(frame.columns) == COLUMNS and frame.index.name == 'image'
    assert list(frame.patient) == ['patient00001', 'patient00002', 'patient00003', 'patient00004']
    known = ['Atelectasis', 'Cardiomegaly', 'Edema', 'Effusion']
    expected = [[0, 0, 0, 0], [np.nan, 1, np.nan, 1], [np.nan] * 4, [0, 1, 0, 0]]
    np.testing.assert_array_equal(frame[known].to_numpy(), np.array(expected, 'float32'))
    assert frame[['Mass', 'Hernia', 'Infiltration']].isna().all(axis=None) and (frame[list(FINDINGS)].dtypes == 'float32').all()
    assert list(frame.sex.fillna('?')) == ['M', 'F', '?', 'M'] and rows(frame)['sex', 'repaired']['count'] == 1
    assert frame.split.iloc[3] == 'test' and sorted(frame.split[:3]) == ['train', 'train', 'validation']
    assert ('validation', 'absent') in rows(frame) and 'Lung Opacity' in rows(frame)['columns', 'skipped']['detail']
    store = decode(frame, frame.attrs['root'], 8, tmp_path/'store') # a name that is a path is found again
    assert (store.pixels[:, 0, 0] == [0, 1, 2, 3]).all()
    zeros = read_dataset(tmp_path/'train.csv', tmp_path, **arguments, blank=0)
    assert list(zeros.Edema.fillna(-1)) == [0, 0, 0, 0] and list(zeros.Atelectasis.fillna(-1)) == [0, -1, 0, 0] # -1 is no blank
    assert zeros.Hernia.isna().all() # a finding the table does not know is unknown, whatever a blank means

def test_mimic(tmp_path):
    labels = pd.DataFrame({'subject_id': ['10000001', '10000002', '11000003'], 'study_id': ['51', '52', '53'],
                           'Pleural Effusion': ['1.0', '-1.0', ''], 'Edema': ['0.0', '', '1.0']})
    images = pd.DataFrame({'dicom_id': ['a-1', 'a-2', 'b-1', 'c-1'], 'study_id': ['51', '51', '52', '53'],
                           'ViewPosition': ['PA', 'LATERAL', 'AP', 'PA'], 'split': ['train', 'train', 'validate', 'test']})
    table = images.merge(labels, on='study_id')
    path = lambda t: 'files/p' + t.subject_id.str[:2] + '/p' + t.subject_id + '/s' + t.study_id + '/' + t.dicom_id + '.jpg'
    draw(tmp_path, path(table))
    frame = read_dataset(table[table.ViewPosition != 'LATERAL'], tmp_path, image=path, patient='subject_id', split='split',
                         view='ViewPosition', findings={'Effusion': 'Pleural Effusion', 'Edema': 'Edema'})
    assert list(frame.index) == ['files/p10/p10000001/s51/a-1.jpg', 'files/p10/p10000002/s52/b-1.jpg', 'files/p11/p11000003/s53/c-1.jpg']
    assert list(frame.split) == ['train', 'validation', 'test'] and frame.patient.dtype == 'int64'
    assert list(frame.Effusion.fillna(-1)) == [1, -1, -1] and list(frame.Edema.fillna(-1)) == [0, -1, 1]
    assert read_dataset(table, tmp_path, image=path, patient='subject_id', split='split', view='ViewPosition',
                        findings={'Edema': 'Edema'})['view'].tolist() == ['PA', 'L', 'AP', 'PA']

def test_padchest(tmp_path):
    texts = ["['normal']", "['nodule', ' pleural effusion']", "['pseudonodule', 'subcutaneous emphysema']", "['']", '', "['emphysema']"]
    table = pd.DataFrame({'ImageID': [f'{n}_x.png' for n in range(6)], 'PatientID': [f'{n}' * 39 for n in range(1, 7)], 'Labels': texts,
                          'Projection': ['PA', 'AP_horizontal', 'PA', 'L', 'COSTAL', 'PA']})
    draw(tmp_path/'0', table.ImageID)
    findings = {'Nodule': ['nodule', 'multiple nodules'], 'Emphysema': 'emphysema', 'Effusion': 'pleural effusion', 'Mass': 'pulmonary mass'}
    frame = read_dataset(table, tmp_path, image='ImageID', patient='PatientID', labels='Labels', findings=findings, view='Projection')
    assert list(frame.Nodule.fillna(-1)) == [0, 1, 0, -1, -1, 0] and list(frame.Emphysema.fillna(-1)) == [0, 0, 0, -1, -1, 1]
    assert frame.Mass.isna().all() and "'pulmonary mass'" in rows(frame)['Mass', 'absent']['detail'] # never a silent zero
    assert frame.patient.iloc[0] == '1' * 39 and list(frame['view'].fillna('?')) == ['PA', 'AP', 'PA', 'L', '?', 'PA']
    assert rows(frame)['labels', 'skipped']['count'] == 3
    zeros = read_dataset(table, tmp_path, image='ImageID', patient='PatientID', labels='Labels', findings=findings, blank=0)
    assert list(zeros.Nodule) == [0, 1, 0, 0, 0, 0] and zeros.Mass.isna().sum() == 0

def test_one_label_may_mean_two_findings(tmp_path):
    draw(tmp_path, ['a.png', 'b.png', 'c.png'])
    table = pd.DataFrame({'image': ['a.png', 'b.png', 'c.png'], 'split': ['train', 'val', 'test'], 'seen': ['Lump', 'none', 'Lump']})
    frame = read_dataset(table, tmp_path, image='image', patient='image', split='split', labels='seen', findings={'Mass': 'Lump', 'Nodule': 'Lump'})
    assert list(frame.Mass) == list(frame.Nodule) == [1, 0, 1]

def test_vindr_has_no_patients_and_says_so(tmp_path):
    table = pd.DataFrame({'image_id': list('abcdef'), 'Pleural effusion': [1., 0., np.nan, 0., 1., 0.]})
    draw(tmp_path, [f'train/{name}.png' for name in 'abcdef'])
    findings = {'Effusion': 'Pleural effusion'}
    frame = read_dataset(table, tmp_path, image='image_id', patient=None, findings=findings)
    assert list(frame.patient) == list('abcdef') and frame.Effusion.isna().sum() == 1
    assert 'nothing here can tell' in rows(frame)['patients', 'absent']['detail'] and 'No splits given' in rows(frame)['splits', 'absent']['detail']
    with pytest.raises(TypeError): read_dataset(table, tmp_path, image='image_id', findings=findings) # never without asking
    with refused("the table, row 6 ('a')", 'a second time'):
        read_dataset(pd.concat([table, table]), tmp_path, image='image_id', patient=None, findings=findings)

def own(root, n=60, **columns):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({'file': [f'scan{k:03d}.png' for k in range(n)], 'person': rng.integers(0, n // 2, n), 'years': '40',
                          'Mass': rng.integers(-1, 2, n), 'Nodule': rng.choice(['0', '1', 'U', ''], n)}).assign(**columns)
    draw(root, table.file)
    table.to_csv(root/'own.csv', index=False)
    return table

ASKED = dict(image='file', patient='person', findings=['Mass', 'Nodule'], age='years')

def test_own_from_file_and_from_memory_are_the_same(tmp_path):
    table = own(tmp_path)
    frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED)
    assert frame.equals(read_dataset(table, tmp_path, **ASKED))
    assert frame.equals(read_dataset(table.astype({'Mass': float}).set_index('years', drop=False), tmp_path, **ASKED))
    (tmp_path/'own.csv.gz').write_bytes(gzip.compress((tmp_path/'own.csv').read_bytes()))
    assert frame.equals(read_dataset(tmp_path/'own.csv.gz', tmp_path, **ASKED))
    assert (frame.Mass.isna().to_numpy() == (table.Mass == -1)).all() and (frame.Nodule.isna().to_numpy() == table.Nodule.isin(['U', ''])).all()
    assert frame.groupby('patient').split.nunique().max() == 1 and (frame.age == 40).all()
    assert not (read_dataset(table, tmp_path, **ASKED, seed=1).split == frame.split).all()

def test_the_frame_goes_on(tmp_path):
    own(tmp_path)
    frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED)
    assert 25 < len(take_patients(frame, 30)) < 40 and len(fingerprint(frame)) == 12
    store = decode(frame, frame.attrs['root'], 16, tmp_path/'store')
    assert (store.pixels[:, 0, 0] == np.arange(60)).all()

def test_images_that_are_absent_are_left_out_and_counted(tmp_path):
    own(tmp_path)
    (tmp_path/'scan005.png').unlink()
    frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED)
    assert len(frame) == 59 and rows(frame)['images', 'absent']['count'] == 1

@pytest.mark.parametrize('ending', ['', '.png'])
def test_a_name_that_two_files_have_is_reported_or_refused(tmp_path, ending):
    own(tmp_path)
    table = pd.read_csv(tmp_path/'own.csv').drop(columns='split', errors='ignore')
    column = ASKED['image']
    table[column] = [name.removesuffix('.png') + ending for name in table[column]]
    asked = {key: value for key, value in ASKED.items() if key != 'split'}
    (tmp_path/'copies').mkdir()
    for path in tmp_path.glob('*.png'): shutil.copy(path, tmp_path/'copies')
    assert rows(read_dataset(table, tmp_path, **asked))['images', 'repaired']['count'] == len(table)
    (tmp_path/'copies/scan005.png').unlink()
    (tmp_path/'copies/scan005.png').symlink_to(tmp_path/'nowhere.png')
    assert rows(read_dataset(table, tmp_path, **asked))['images', 'repaired']['count'] == len(table) - 1
    Image.new('L', (8, 8), 255).save(tmp_path/'copies/scan003.png') # such as its mask
    with refused('scan003', 'copies', 'these differ', 'give the folder'): read_dataset(table, tmp_path, **asked)

# ---- bad input

def test_columns_and_findings_that_are_not_there(tmp_path):
    own(tmp_path)
    def read(**changed): return read_dataset(tmp_path/'own.csv', tmp_path, **ASKED | changed)
    with refused("no column 'patient_id' for patient", 'person'): read(patient='patient_id')
    with refused("no column 'Effusion' for Effusion"): read(findings={'Effusion': 'Effusion'})
    with refused("Unknown finding 'Tumour'", 'Hernia'): read(findings={'Tumour': 'Mass'})
    with refused('findings is empty'): read(findings={})
    with refused("findings['Mass']", 'labels='): read(findings={'Mass': ['Mass', 'Nodule']})
    with refused("no column 'seen' for labels"): read(labels='seen')
    with refused('function for patient fails', 'AttributeError'): read(patient=lambda t: t.persona)
    with refused('for age', 'the 60 rows'): read(age=lambda t: [40])
    with refused('blank is 0.5'): read(blank=.5)
    with refused('no column None for image'): read(image=None)

def test_tables_that_cannot_be_read(tmp_path):
    table = own(tmp_path)
    def read(given): return read_dataset(given, tmp_path, **ASKED)
    with refused('no rows'): read(table[:0])
    (tmp_path/'head.csv').write_text('file,person,Mass,Nodule,years\n')
    with refused('no rows'): read(tmp_path/'head.csv')
    (tmp_path/'empty.csv').write_text('')
    with refused('empty.csv'): read(tmp_path/'empty.csv')
    with refused('nowhere.csv'): read(tmp_path/'nowhere.csv')
    (tmp_path/'bare').mkdir(); (tmp_path/'bare/notes.txt').touch()
    with refused('own.csv', 'None of the 60 images'): read_dataset(tmp_path/'own.csv', tmp_path/'bare', **ASKED)

@pytest.mark.parametrize('change, words', [
    (dict(file='../scan004.png'), 'path below the root'), (dict(file='/etc/scan004.png'), 'path below the root'),
    (dict(file='a/../scan004.png'), 'path below the root'), (dict(file='C:/scan004.png'), 'path below the root'),
    (dict(file='..\\scan004.png'), 'path below the root'), (dict(file=''), 'path below the root'),
    (dict(file='scan003.png'), 'a second time'), (dict(person=''), 'has no patient'), (dict(Mass='2'), 'label that is none of'),
    (dict(Mass='maybe'), 'label that is none of'), (dict(split='holdout'), 'split that is none of'), (dict(split=''), 'split that is none of')],
    ids=lambda value: '-'.join(map(str, value.values())) if isinstance(value, dict) else '')
def test_a_row_that_cannot_be_used(tmp_path, change, words):
    table = own(tmp_path).assign(split=['train', 'valid', 'test'] * 20).astype(str)
    table.person = [f'p{k}' for k in range(60)]
    for column, value in change.items(): table.loc[4, column] = value
    table.to_csv(tmp_path/'own.csv', index=False)
    with refused('own.csv', 'row 6', words): read_dataset(tmp_path/'own.csv', tmp_path, **ASKED, split='split')
    with refused('the table', 'row 4', words): read_dataset(table, tmp_path, **ASKED, split='split')
    frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED, split='split', on_error='skip')
    assert len(frame) == 59 and frame.attrs['report'].skipped() == [change.get('file', 'scan004.png').replace('\\', '/')]

def test_a_patient_in_two_roles_and_a_role_that_nobody_has(tmp_path):
    table = own(tmp_path, person=[k // 2 for k in range(60)])
    with refused('30 patients have images in two splits', 'patient 0'):
        read_dataset(table.assign(split=['train', 'val'] * 30), tmp_path, **ASKED, split='split')
    with refused('No image has the split test'):
        read_dataset(table.assign(split=['train', 'train', 'val', 'val'] * 15), tmp_path, **ASKED, split='split')

def test_no_finding_and_a_finding_contradict_each_other(tmp_path):
    table = own(tmp_path, healthy='').astype(str)
    table.loc[7, ['healthy', 'Mass', 'Nodule']] = ['1.0', '1', '']
    asked = ASKED | {'findings': {NO_FINDING: 'healthy', 'Mass': 'Mass', 'Nodule': 'Nodule'}}
    with refused("row 7 ('scan007.png')", 'No Finding and something else'): read_dataset(table, tmp_path, **asked)
    table.loc[7, 'Mass'] = '-1' # may be there, says the same row: stays unknown
    frame = read_dataset(table, tmp_path, **asked)
    assert np.isnan(frame.Mass.iloc[7]) and frame.Nodule.iloc[7] == 0 and np.isnan(frame.Effusion.iloc[7])

cells = st.one_of(st.text(max_size=6), st.sampled_from(
    ['1', '0', '-1', '', 'U', 'scan001.png', '../x', 'Mass', 'train', '1e999', 'nan', '"', '\n', ',']))

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_table_gives_a_frame_or_a_sentence(tmp_path, data):
    if not (tmp_path/'own.csv').exists(): own(tmp_path, 12, split=['train', 'valid', 'test', 'test'] * 3)
    table = pd.read_csv(tmp_path/'own.csv', dtype=str, keep_default_na=False)
    for _ in range(data.draw(st.integers(1, 4))):
        table.iloc[data.draw(st.integers(0, 11)), data.draw(st.integers(0, table.shape[1] - 1))] = data.draw(cells)
    on_error = data.draw(st.sampled_from(['raise', 'skip']))
    kind = data.draw(st.sampled_from([dict(split='split'), dict(labels='Nodule'), dict(patient=None, sex='Mass', view='Nodule')]))
    try: frame = read_dataset(table, tmp_path, **ASKED | kind, on_error=on_error)
    except InputError as error: assert len(str(error)) > 20 and str(error).endswith('.')
    else: assert list(frame.columns) == COLUMNS and frame[list(FINDINGS)].isin([0, 1]).where(frame[list(FINDINGS)].notna(), True).all(axis=None)

# ---- the tables as they really are

def shipped(start):
    folder = Path(pytest.importorskip('torchxrayvision').__file__).parent/'data'
    return next(folder.glob(f'{start}*.csv.gz'))

def test_the_real_tables_have_the_columns_and_values_of_the_how_to(tmp_path):
    table = pd.read_csv(shipped('chexpert_train'), dtype=str, keep_default_na=False)
    assert (table['No Finding'] == '1.0').sum() == 22_381 and (table['Atelectasis'] == '').sum() == 154_971
    some = table[table['Frontal/Lateral'] == 'Frontal'][::2000]
    draw(tmp_path/'chexpert', some.Path)
    frame = read_dataset(some, tmp_path/'chexpert', image='Path', patient=lambda t: t.Path.str.extract(r'/(patient\d+)/'), age='Age', sex='Sex',
                         view='AP/PA', findings=CHEXPERT)
    assert len(frame) == len(some) and frame[['age', 'sex', 'view']].notna().all(axis=None) and set(frame['view']) == {'AP', 'PA'}
    assert (frame.Effusion == 1).sum() == (some['Pleural Effusion'] == '1.0').sum()

    table = pd.read_csv(shipped('PADCHEST'), dtype=str)
    some = table[table.Projection.isin(['PA', 'AP', 'AP_horizontal'])][::2000]
    draw(tmp_path/'padchest', some.ImageID)
    frame = read_dataset(some, tmp_path/'padchest', image='ImageID', patient='PatientID', sex='PatientSex_DICOM', view='Projection', labels='Labels',
                         age=lambda t: t.StudyDate_DICOM.str[:4].astype(int) - t.PatientBirth.astype(float),
                         findings={'Cardiomegaly': 'cardiomegaly'})
    assert len(frame) == len(some) and frame[['sex', 'view']].notna().all(axis=None) and frame.age.between(0, 100).all()
    assert (frame.Cardiomegaly == 1).sum() == some.Labels.str.contains("'cardiomegaly'").sum() > 0

    marks = pd.read_csv(shipped('vinbigdata-train'), dtype=str)
    marks = marks[marks.image_id.isin(marks.image_id.unique()[:60])]
    share = pd.crosstab([marks.image_id, marks.rad_id], marks.class_name).clip(upper=1).groupby('image_id').mean()
    assert (marks.groupby('image_id').rad_id.nunique() == 3).all() and not (share == .5).any(axis=None)
    draw(tmp_path/'vindr', share.index + '.png')
    frame = read_dataset(share.gt(.5).astype(int).reset_index(), tmp_path/'vindr', image='image_id', patient=None,
                         findings={'Effusion': 'Pleural effusion', 'Pleural_Thickening': 'Pleural thickening'})
    assert len(frame) == 60 and frame.Effusion.sum() == share['Pleural effusion'].gt(.5).sum()

# ---- torchxrayvision

def test_nih_through_torchxrayvision_and_back(phantom):
    xrv = pytest.importorskip('torchxrayvision')
    nih, table = read_nih(phantom), str(phantom/'Data_Entry_2017_v2020.csv')
    whole = from_torchxrayvision(xrv.datasets.NIH_Dataset(str(phantom/'images'), table, views=['*'], unique_patients=False))
    pd.testing.assert_frame_equal(whole[['patient', *FINDINGS]], nih.loc[whole.index, ['patient', *FINDINGS]])
    assert len(whole) == len(nih) and ('views', 'found') not in rows(whole) and 'No splits given' in rows(whole)['splits', 'absent']['detail']
    default = from_torchxrayvision(xrv.datasets.NIH_Dataset(str(phantom/'images'), table))
    assert set(default['view']) == {'PA'} and default.patient.is_unique and len(default) < len(nih)
    assert 'only PA' in rows(default)['views', 'found']['detail'] and 'unique_patients' in rows(default)['patients', 'found']['detail']
    some = from_torchxrayvision(xrv.datasets.SubsetDataset(xrv.datasets.NIH_Dataset(str(phantom/'images'), table), range(20)), root=phantom)
    assert list(some.index) == list(default.index[:20])

def test_a_frame_as_a_torchxrayvision_data_set(phantom):
    xrv = pytest.importorskip('torchxrayvision')
    frame = read_nih(phantom)
    frame.loc[frame.index[::3], 'Mass'] = np.nan
    frame['Hernia'] = np.float32(np.nan)
    theirs = to_torchxrayvision(frame)
    assert isinstance(theirs, xrv.datasets.Dataset) and len(theirs) == len(frame) and theirs.pathologies == list(FINDINGS)
    np.testing.assert_array_equal(theirs.labels, frame[list(FINDINGS)].to_numpy())
    assert theirs.totals()['Hernia'] == {} and theirs.totals()['Mass'][1.] == (frame.Mass == 1).sum()
    sample = theirs[3]
    path = phantom/'images'/frame.index[3]
    assert set(sample) == {'idx', 'lab', 'img'} and sample['idx'] == 3 and sample['img'].dtype == np.float32
    np.testing.assert_allclose(sample['img'][0], (2. * np.asarray(Image.open(path)) / 255 - 1) * 1024, atol=1e-3)
    nih = xrv.datasets.NIH_Dataset(str(phantom/'images'), str(phantom/'Data_Entry_2017_v2020.csv'), views=['*'], unique_patients=False)
    np.testing.assert_array_equal(sample['img'], nih[3]['img'])
    back = from_torchxrayvision(theirs)
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert fingerprint(back) == fingerprint(frame)
    small = to_torchxrayvision(frame, read=lambda path: read_image(path, 32)[0], transform=xrv.datasets.XRayCenterCrop())
    assert small[0]['img'].shape == (1, 32, 32) and copy.copy(small)[0]['img'].shape == (1, 32, 32)
    merged = xrv.datasets.MergeDataset([theirs, small])
    assert len(merged) == 2 * len(frame) and merged[len(frame)]['img'].shape == (1, 32, 32)
    xrv.datasets.relabel_dataset(xrv.datasets.default_pathologies, theirs, silent=True)
    assert np.isnan(theirs.labels[:, -1]).all() and theirs[0]['lab'].shape == (18,)

def test_torchxrayvision_without_what_is_needed(phantom, tmp_path):
    xrv = pytest.importorskip('torchxrayvision')
    frame = read_nih(phantom)
    (tmp_path/frame.index[0]).write_bytes(b'no picture')
    with refused(f'{len(frame) - 1} images are not in', frame.index[1]): to_torchxrayvision(frame, tmp_path)
    with refused('give root'): to_torchxrayvision(pd.DataFrame(frame.to_dict())) # without its attributes
    with refused(frame.index[0], 'cannot be decoded'): to_torchxrayvision(frame[:1], tmp_path)[0]
    class Bare(xrv.datasets.Dataset): csv, labels, pathologies = pd.DataFrame({'x': [1]}), np.zeros((1, 1)), ['Mass']
    with refused('Bare', 'give root and image'): from_torchxrayvision(Bare())

def test_without_torchxrayvision_one_sentence_says_what_to_install(phantom, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchxrayvision', None)
    with refused('pip install torchxrayvision'): to_torchxrayvision(read_nih(phantom))

# ---- ChestMNIST

def medmnist_file(path, **changed):
    rng = np.random.default_rng(1)
    arrays = {f'{split}_{what}': rng.integers(0, top, (n, *shape)).astype('uint8')
              for split, n in [('train', 12), ('val', 4), ('test', 5)] for what, top, shape in [('images', 256, (28, 28)), ('labels', 2, (14,))]}
    np.savez_compressed(path, **{name: value for name, value in (arrays | changed).items() if value is not None})
    return arrays

def test_chestmnist(tmp_path):
    medmnist = pytest.importorskip('medmnist')
    arrays = medmnist_file(tmp_path/'chestmnist.npz')
    frame = from_medmnist(medmnist.ChestMNIST('val', root=str(tmp_path), download=False), tmp_path/'out')
    assert list(frame.columns) == COLUMNS and frame.split.value_counts().to_dict() == {'train': 12, 'test': 5, 'validation': 4}
    for split, theirs in [('train', 'train'), ('validation', 'val'), ('test', 'test')]:
        part = frame[frame.split == split]
        np.testing.assert_array_equal(part[list(FINDINGS)].to_numpy(), arrays[f'{theirs}_labels'])
        np.testing.assert_array_equal(np.stack([_read_grey(tmp_path/'out/images'/name) for name in part.index]), arrays[f'{theirs}_images'])
    assert 'not NIH' in str(frame.attrs['report']) and 'nothing here can tell' in rows(frame)['patients', 'absent']['detail']
    written = os.stat(tmp_path/'out/images/val_000000.png').st_mtime_ns
    assert from_medmnist(tmp_path/'chestmnist.npz', tmp_path/'out').equals(frame)
    assert os.stat(tmp_path/'out/images/val_000000.png').st_mtime_ns == written
    store = decode(frame, tmp_path/'out', 28, tmp_path/'store')
    np.testing.assert_array_equal(store.pixels[:12], arrays['train_images'])
    names = [name[:7] for name in medmnist.INFO['chestmnist']['label'].values()]
    assert names == [finding.lower()[:7] for finding in FINDINGS]

@pytest.mark.parametrize('changed', [dict(val_images=None), dict(test_labels=np.zeros((5, 1), 'uint8')),
                                     dict(train_images=np.zeros((12, 28, 28, 3), 'uint8')),
                                     dict(val_labels=np.full((4, 14), 3, 'uint8')), dict(val_images=np.array([{}] * 4, dtype=object))],
                         ids=['absent', 'other-task', 'colour', 'no-labels', 'pickled'])
def test_a_file_that_is_not_chestmnist_leaves_nothing_behind(tmp_path, changed):
    medmnist_file(tmp_path/'chestmnist.npz', **changed)
    with refused('chestmnist'): from_medmnist(tmp_path/'chestmnist.npz', tmp_path/'out')
    assert not (tmp_path/'out/images').exists() or 'val_labels' in changed
    assert not [path for path in tmp_path.iterdir() if 'part' in path.name]

def test_chestmnist_that_is_cut_or_no_file(tmp_path):
    medmnist_file(tmp_path/'chestmnist.npz')
    (tmp_path/'cut.npz').write_bytes((tmp_path/'chestmnist.npz').read_bytes()[:3000])
    np.save(tmp_path/'one.npy', np.zeros(3))
    for name in ['cut.npz', 'nowhere.npz', 'one.npy']:
        with refused(name, 'cannot be unpacked'): from_medmnist(tmp_path/name, tmp_path/'out')
    (tmp_path/'out').mkdir()
    with refused('choose another folder'): from_medmnist(tmp_path/'chestmnist.npz', tmp_path/'out')

# ---- unknown labels, to the end

@pytest.fixture(scope='module')
def unknown(data):
    "The phantom with a finding that nobody knows, and a tenth of all other labels unknown."
    frame, store = data.frame, data.store
    frame = frame.copy()
    labels = frame[list(FINDINGS)].mask(np.random.default_rng(0).random((len(frame), 14)) < .1)
    frame[list(FINDINGS)] = labels.assign(Hernia=np.nan).astype('float32')
    return frame, store

def test_losses_honour_nan(unknown):
    targets = torch.tensor(unknown[0][list(FINDINGS)].to_numpy())
    weights = class_weights(targets)
    assert weights.isfinite().all() and weights[FINDINGS.index('Hernia')] == 1
    for loss in [FocalLoss(), FocalLoss(gamma=0, class_weights=weights), training_loss('focal', unknown[0])]:
        logits = (torch.randn(targets.shape) * 30).requires_grad_()
        values = loss(logits, targets)
        values.sum().backward()
        assert values.isfinite().all() and logits.grad.isfinite().all()
        assert (values[targets.isnan()] == 0).all() and (logits.grad[targets.isnan()] == 0).all() and (logits.grad[~targets.isnan()] != 0).any()
    moved = logits.detach() + targets.isnan() * 5.
    torch.testing.assert_close(loss(moved, targets), values.detach()) # what the model says of an unknown label is all the same

def test_metrics_honour_nan(unknown):
    targets, rng = unknown[0][list(FINDINGS)].to_numpy(), np.random.default_rng(0)
    probabilities = rng.random(targets.shape)
    patients = unknown[0].patient.to_numpy()
    thresholds = choose_thresholds(targets, probabilities)
    assert thresholds[FINDINGS.index('Hernia')] == .5 and np.isfinite(thresholds).all()
    draws = bootstrap_auroc(targets, probabilities, patients, 50)
    assert draws.Hernia.isna().all() and draws.Effusion.notna().all()
    table = evaluate(targets, probabilities, thresholds, patients, 50)
    assert table.loc['Hernia', ['images', 'positives']].tolist() == [0, 0] and table.loc['Hernia'][2:].isna().all()
    known = ~np.isnan(targets[:, FINDINGS.index('Mass')])
    assert table.loc['Mass', 'images'] == known.sum() < len(targets)
    assert table.loc['macro'].notna().all() and np.isfinite(pooled_calibration_error(targets, probabilities))
    moved = np.where(np.isnan(targets), rng.random(targets.shape), probabilities)
    pd.testing.assert_frame_equal(evaluate(targets, moved, thresholds, patients, 50), table)

def test_training_and_influence_honour_nan(unknown, tmp_path):
    frame, store = unknown
    history = fit(Data(frame, store), tmp_path/'run', Recipe('densenet_small', epochs=1, batch_size=32), device='cpu')
    assert np.isfinite(history[['train_loss', 'validation_loss', 'validation_auroc']]).all(axis=None)
    checkpoint = list_checkpoints(tmp_path/'run')[0]
    assert evaluate_checkpoint(checkpoint, Data(frame, store), 'cpu').table.loc['Hernia', 'auroc'] != 0
    scores = influence(tmp_path/'run', Data(frame, store), tmp_path/'influence.csv', device='cpu')
    assert len(scores) == (frame.split == 'train').sum() and np.isfinite(scores.drop(columns='rank')).all(axis=None)
    assert (scores.influence_Hernia == 0).all() and scores.influence_Effusion.abs().max() > 0

def test_a_row_that_ends_early_is_no_row_of_blanks(tmp_path):
    own(tmp_path)
    path = tmp_path/'own.csv'
    path.write_text(path.read_text().rstrip('\n').rpartition(',')[0])
    with refused('own.csv', 'too few columns'): read_dataset(path, tmp_path, **ASKED, blank=0)
    assert 'skipped' in str(read_dataset(path, tmp_path, **ASKED, blank=0, on_error='skip').attrs['report'])

def test_sixteen_bits_are_not_clipped_in_silence(tmp_path):
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path/'deep.png')
    assert (_read_grey(tmp_path/'deep.png') == round(30_000 / 257)).all()
    Image.fromarray(np.full((8, 8), .5, 'float32')).save(tmp_path/'float.tiff')
    with refused('float.tiff', 'unknown range'): _read_grey(tmp_path/'float.tiff')

# ---- arguments of another kind, as a file may hold them

WRONG = [(dict(seed=seed), 'seed is') for seed in ['0', 1.5, -1, None, True]]
WRONG += [(dict(blank=blank), 'blank is') for blank in ['0', 2, None, [0]]]
WRONG += [(dict(separator=separator), 'separator is') for separator in ['[', '+', '', 'a*', '||', 5, None]]
WRONG += [(dict(only=only), 'only is') for only in ['false', 0, None]]
WRONG += [(dict(findings=findings), 'findings is') for findings in [None, 'Mass', [['Mass']], 5, [5]]]
WRONG += [(dict(findings={'Mass': source}), "findings['Mass'] is") for source in [5, None, ['Mass']]]
WRONG += [(dict(labels='Nodule', findings={'Mass': source}), "findings['Mass'] is") for source in [5, None, [['1']]]]
WRONG += [(dict(table=table), 'table is') for table in [5, None, ['own.csv']]]

@pytest.mark.parametrize('given, words', WRONG, ids=repr)
def test_arguments_of_another_kind(tmp_path, given, words):
    own(tmp_path, 8)
    if 'table' not in given:
        with refused(words): read_dataset(tmp_path/'own.csv', tmp_path, **ASKED | given)
    (tmp_path/'dataset.json').write_text(json.dumps({'table': 'own.csv', **ASKED, **given}))
    with refused(words): load_data(tmp_path, 32, tmp_path/'stores')
    if given.keys() & {'only'} or words == 'findings is':
        with refused(words): folder_findings(tmp_path)

def test_a_table_that_is_described_in_part(tmp_path):
    own(tmp_path, 8)
    with refused('incomplete'): load_data(tmp_path, 32, tmp_path/'stores', table=dict(image='file', patient='person', findings=['Mass']))

@pytest.mark.parametrize('separator', ['|', '[|]', '(?P<bar>[|])|(;)'])
def test_the_separator_of_nih(tmp_path, separator):
    texts = RNG.choice(['Mass', 'Mass|Nodule', 'Nodule|Hernia', 'none'], 60)
    own(tmp_path, seen=texts)
    frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED, labels='seen', separator=separator)
    for name in ['Mass', 'Nodule']: assert (frame[name] == [name in text.split('|') for text in texts]).all()

@pytest.mark.parametrize('kind', ['gz', 'bz2', 'xz', 'zip', 'GZ'])
def test_packed_tables(tmp_path, kind):
    table = own(tmp_path)
    path = tmp_path/f'own.csv.{kind}'
    table.to_csv(path, index=False, compression={'GZ': 'gzip'}.get(kind, 'infer'))
    assert read_dataset(path, tmp_path, **ASKED).equals(read_dataset(tmp_path/'own.csv', tmp_path, **ASKED))
    whole = path.read_bytes()
    for content in [whole[:RNG.integers(1, len(whole) // 2)], bytes(reversed(whole)), b'']:
        path.write_bytes(content)
        with refused(path.name): read_dataset(path, tmp_path, **ASKED)

def test_a_number_is_one_patient_however_it_is_exported(tmp_path):
    people = RNG.integers(0, 20, 60)
    plain = own(tmp_path, person=people)
    expected = read_dataset(plain, tmp_path, **ASKED)
    for written in [np.where(RNG.random(60) < .5, people.astype(str), people.astype(float).astype(str)), people.astype(float).astype(str)]:
        own(tmp_path, person=written)
        frame = read_dataset(tmp_path/'own.csv', tmp_path, **ASKED)
        assert frame.patient.dtype == 'int64' and frame.equals(expected)
    own(tmp_path, person=['x', *people[1:].astype(float).astype(str)]) # not all are numbers: as they are written
    assert read_dataset(tmp_path/'own.csv', tmp_path, **ASKED).patient.iloc[1] == str(float(people[1]))

def test_a_described_folder_is_walked_once(tmp_path, monkeypatch):
    own(tmp_path, n=40)
    (tmp_path/'dataset.json').write_text(json.dumps({'table': 'own.csv', **ASKED}))
    walked = []
    def find(root):
        walked.append(root)
        return nih.find_files(root)
    for module in [tables, store]: monkeypatch.setattr(module, 'find_files', find)
    data = load_data(tmp_path, 32, tmp_path/'stores', n=30)
    assert len(walked) == 1 and len(data) < 40
    assert data.store.pixels[:, 0, 0].tolist() == [int(name[4:7]) for name in data.frame.index]
