"A copy of NIH ChestX-ray14 is found in every layout it circulates in, and read as the same frame."
import shutil

import pandas as pd
import pytest

from cxr_influence.data.nih import fingerprint, read_nih

def box(root): pass

def readme(root): (root/'Data_Entry_2017_v2020.csv').rename(root/'Data_Entry.csv')

def kaggle(root):
    "Images in twelve folders, the table of 2017 with its empty last column."
    for number, image in enumerate(sorted((root/'images').iterdir())):
        folder = root/f'images_{number % 12 + 1:03d}/images'
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder/image.name)
    header, *rows = (root/'Data_Entry_2017_v2020.csv').read_text().splitlines()
    (root/'Data_Entry_2017.csv').write_text('\n'.join([f'{header},', *(f'{row},' for row in rows)]))
    (root/'Data_Entry_2017_v2020.csv').unlink()

def mirror(root):
    "A mirror at 224 pixels, lists of another name, Windows line ends, no last one."
    (root/'images-224').mkdir()
    (root/'images').rename(root/'images-224/images-224')
    for name in ['train_val_list', 'test_list']:
        names = (root/f'{name}.txt').read_text().split()
        (root/f'{name}.txt').unlink()
        (root/f'{name}_NIH.txt').write_bytes('\r\n'.join(names).encode())
    table = root/'Data_Entry_2017_v2020.csv'
    table.write_bytes(table.read_text().strip().replace('\n', '\r\n').encode())

def sex(root):
    "Another name of a column, ages as text."
    table = pd.read_csv(root/'Data_Entry_2017_v2020.csv', dtype=str)
    table['Patient Age'] = table['Patient Age'].str.zfill(3) + 'Y'
    table.rename(columns={'Patient Gender': 'Patient Sex'}).to_csv(root/'Data_Entry_2017_v2020.csv', index=False)

@pytest.mark.parametrize('layout', [box, readme, kaggle, mirror, sex], ids=lambda layout: layout.__name__)
def test_a_layout_is_found_from_its_root(phantom, tmp_path, layout):
    root = shutil.copytree(phantom, tmp_path/'copy')
    layout(root)
    frame, expected = read_nih(root), read_nih(phantom)
    pd.testing.assert_frame_equal(frame, expected, check_like=True)
    assert fingerprint(frame) == fingerprint(expected)

def test_without_lists_patients_are_split_and_it_says_so(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path/'copy')
    (root/'test_list.txt').unlink()
    frame = read_nih(root)
    assert 'No lists found' in str(frame.attrs['report'])
    assert frame.groupby('patient').split.nunique().max() == 1 and set(frame.split) == {'train', 'validation', 'test'}

def test_absent_and_unlisted_images_are_left_out_and_counted(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path/'copy')
    whole = read_nih(root)
    names = (root/'train_val_list.txt').read_text().split()
    (root/'train_val_list.txt').write_text('\n'.join(names[1:]))
    (root/'images'/names[5]).unlink()
    frame = read_nih(root)
    assert set(whole.index) - set(frame.index) == {names[0], names[5]}
    rows = {(row['what'], row['state']): row for row in frame.attrs['report']}
    assert rows['Data_Entry_2017_v2020.csv', 'found']['count'] == len(whole) and rows['images', 'found']['count'] == len(whole) - 1
    assert rows['images', 'absent']['count'] == 1 and names[5] in rows['images', 'absent']['detail']
    assert rows['images', 'skipped']['names'] == [names[0]]
