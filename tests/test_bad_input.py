"Bad input is answered in one sentence that names it, and leaves nothing half-written."
import json, shutil
import pytest

from conftest import refused, rewrite
from cxr_influence.training.checkpoints import Recipe
from cxr_influence.data.nih import read_nih
from cxr_influence.data.batches import load_data
from cxr_influence.data.store import open_store
from cxr_influence.data.labels import decode_labels, encode_labels
from cxr_influence.training.networks import make_model
from cxr_influence.data.splits import check_splits
from cxr_influence.attribution.scoring import influence
from cxr_influence.training.checkpoints import Checkpoint, list_checkpoints
from cxr_influence.training.resume import fit

@pytest.fixture
def copy(phantom, tmp_path): return shutil.copytree(phantom, tmp_path/'copy')

def table(root): return root/'Data_Entry_2017_v2020.csv'

def test_a_folder_that_is_missing_or_empty(tmp_path):
    with refused('nowhere', 'not a folder', 'https://nihcc', 'cxr_phantom'): read_nih(tmp_path/'nowhere')
    (tmp_path/'empty').mkdir()
    with refused('empty', 'Get NIH ChestX-ray14'): read_nih(tmp_path/'empty')

def test_a_table_that_is_missing_or_another(copy):
    text = table(copy).read_text()
    table(copy).write_text(text.replace('Finding Labels', 'Disease'))
    with refused('Data_Entry_2017_v2020.csv', 'Finding Labels'): read_nih(copy)
    table(copy).write_text(text + text.splitlines()[1] + '\n')
    with refused('comes a second time', text.splitlines()[1].split(',')[0]): read_nih(copy)
    table(copy).write_text('')
    with refused('Data_Entry_2017_v2020.csv'): read_nih(copy)
    table(copy).unlink()
    with refused('No table in', 'Data_Entry_2017.csv'): read_nih(copy)

def test_a_label_that_nobody_knows(copy):
    table(copy).write_text(table(copy).read_text().replace('No Finding', 'No Findings', 1))
    with refused("Unknown finding 'No Findings'"): read_nih(copy)
    with refused("Unknown finding 'Masss'"): encode_labels('Mass|Masss')

def test_a_vector_of_another_length():
    for target in [[1, 0], [0] * 15, []]:
        with refused(f'The vector has {len(target)} values', '14'): decode_labels(target)

def test_a_split_that_nobody_has(data):
    for split in ['val', 'Train', 'none', 'unused', None]:
        with refused(f'No image is of split {split}', 'validation'): data.rows(split)
    frame = data.frame.assign(split=data.frame.split.mask(data.frame.split == 'test', 'unused'))
    other = data.with_frame(frame)
    assert (other.rows('unused') == data.rows('test')).all() and not len(other.rows('test'))

def test_a_patient_in_two_splits(copy):
    frame = read_nih(copy)
    patient = frame.patient[frame.split == 'train'].value_counts().index[0]
    names = frame.index[frame.patient == patient]
    moved = frame.assign(split=frame.split.mask(frame.index == names[0], 'test'))
    with refused(f'patient {patient}'): check_splits(moved)
    (copy/'test_list.txt').write_text('\n'.join([*(copy/'test_list.txt').read_text().split(), names[0]]))
    with refused('test_list.txt', 'train_val_list.txt', names[0], 'one list only'): read_nih(copy)
    (copy/'train_val_list.txt').write_text((copy/'train_val_list.txt').read_text().replace(names[0], ''))
    with refused(f'patient {patient}'): read_nih(copy)

def test_settings_that_make_no_sense(data, tmp_path, phantom):
    for name, value in [('epochs', 0), ('batch_size', -1), ('learning_rate', 0.)]:
        with refused(name): fit(data, tmp_path/'run', Recipe('densenet_small', **{name: value}))
    with refused('densenet9000'): make_model('densenet9000')
    with refused('none.safetensors'): make_model('densenet_small', tmp_path/'none.safetensors')
    with refused('size is 5', 'at least 32'): load_data(phantom, 5, tmp_path)
    with refused("size is '64'"): load_data(phantom, '64', tmp_path)
    with refused('No image store'): open_store(tmp_path)
    with refused('learning_rate'): fit(data, tmp_path/'run', Recipe('densenet_small', learning_rate=1e30))
    assert not [path for path in tmp_path.iterdir() if path.suffix != '.lock']

def test_checkpoints_that_are_missing_or_of_another_model(data, checkpoints, tmp_path):
    with refused('No checkpoints in', 'cxr_baseline'): list_checkpoints(tmp_path)
    copy = shutil.copytree(checkpoints, tmp_path/'checkpoints')
    path = copy/'epoch_002/checkpoint.json'
    facts = json.loads(path.read_text())
    other = copy/'epoch_001/checkpoint.json'
    first = json.loads(other.read_text())
    for change, words in [({'backbone': 'resnet18'}, ['does not fit this backbone', 'epoch_001']),
                          ({'findings': ['Cat', 'Dog']}, ['other findings']), ({'data': 'f' * 12}, ['trained on other images']),
                          ({'image_size': 128}, ['trained at 128 pixels'])]:
        rewrite(path, json.dumps(facts | change))
        with refused('epoch_002'): influence(copy, data, tmp_path/'scores/influence.csv', device='cpu') # another run's
        rewrite(other, json.dumps(first | change))
        with refused(*words): influence(copy, data, tmp_path/'scores/influence.csv', device='cpu')
        rewrite(other, json.dumps(first))
    rewrite(path, json.dumps({name: value for name, value in facts.items() if name != 'learning_rate'}))
    with refused('does not state learning_rate'): Checkpoint(copy/'epoch_002')
    path.write_text('{')
    with refused('checkpoint.json is damaged'): Checkpoint(copy/'epoch_002')
    rewrite(path, '{')
    with refused('is not JSON'): Checkpoint(copy/'epoch_002')
    rewrite(path, json.dumps(facts))
    (copy/'epoch_002/model.safetensors').write_bytes(b'nothing')
    with refused('model.safetensors is damaged', 'epoch_001'): Checkpoint(copy/'epoch_002').model()
    assert not list((tmp_path/'scores').glob('*.csv')) + list((tmp_path/'scores').glob('*.part'))
