"What people bring: pixels of any depth, names that are text, groups, scores of others, few images."
import math, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEGLSLossless

from conftest import sentence
from cxr_influence.attribution.scoring import influence, query_losses
from cxr_influence.data.annotations import _join_answers
from cxr_influence.data.batches import load_data
from cxr_influence.data.images import read_image
from cxr_influence.data.labels import FINDINGS
from cxr_influence.data.nih import find_files, find_images, match_names, read_nih
from cxr_influence.data.store import decode, open_store, verify_store
from cxr_influence.data.tables import read_dataset
from cxr_influence.evidence.retraining import without
from cxr_influence.evidence.subsets import read_scores, subset_grid
from cxr_influence.training.checkpoints import Recipe, best_checkpoint
from cxr_influence.training.evaluation import evaluate_checkpoint
from cxr_influence.training.resume import fit

RNG = np.random.default_rng()
H, W = 40, 56

def values(bits, height=H, width=W):
    "Random values whose extremes are those of the bits."
    made = RNG.integers(0, 2**bits, (height, width))
    made.flat[:2] = 0, 2**bits - 1
    return made.astype(np.uint16)

def grey(made, top, low=0): return np.floor(255 * (made.astype(float) - low) / (top - low) + .5).astype(np.uint8)

def dicom(path, made, kind='MONOCHROME2', bits=12, syntax=ExplicitVRLittleEndian, **elements):
    file = Dataset()
    file.file_meta = FileMetaDataset(TransferSyntaxUID=ExplicitVRLittleEndian)
    file.SOPClassUID = DigitalXRayImageStorageForPresentation
    file.set_pixel_data(made, kind, bits)
    for name, value in elements.items(): setattr(file, name, value)
    if syntax.is_compressed:
        file.PixelData, file.file_meta.TransferSyntaxUID = encapsulate([bytes(64)]), syntax
        file['PixelData'].VR, file['PixelData'].is_undefined_length = 'OB', True
    file.save_as(path, enforce_file_format=True)
    return path

def plain(path): return read_image(path)[0]

def check(path, expected, atol=0):
    pixels, width, height = read_image(path)
    assert pixels.dtype == np.uint8 and (height, width) == expected.shape
    np.testing.assert_allclose(pixels.astype(int), expected.astype(int), atol=atol)

# --- the range of a file ---

@pytest.mark.parametrize('bits', [8, 9, 10, 12, 13, 14, 16])
@pytest.mark.parametrize('suffix', ['.png', '.tif', 'LZW.tif', '32.tif'])
def test_a_file_of_16_bits_is_scaled_by_the_bits_it_uses(tmp_path, bits, suffix):
    made, path = values(bits), tmp_path/f'x{suffix}'
    image = Image.fromarray(made.astype(np.int32) if '32' in suffix else made)
    image.save(path, **({'compression': 'tiff_lzw'} if 'LZW' in suffix else {}))
    check(path, grey(made, 2**(bits + bits % 2) - 1))
    assert len(np.unique(plain(path))) >= 128

@pytest.mark.parametrize('kind', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('slope', [None, 2, -.5])
@pytest.mark.parametrize('used, stored', [(10, 10), (12, 12), (12, 16), (10, 16), (16, 16), (14, 14)])
def test_dicom_of_any_bits_slope_and_polarity(tmp_path, kind, slope, used, stored):
    made = values(used)
    rescale = {} if slope is None else dict(RescaleSlope=slope, RescaleIntercept=-700)
    path = dicom(tmp_path/'x.dcm', made, kind, stored, **rescale)
    inverted = (kind == 'MONOCHROME1') ^ (slope is not None and slope < 0)
    top = 2**(used if stored == 16 else stored) - 1
    check(path, 255 - grey(top - made, top) if not inverted else grey(top - made, top), atol=1)
    check(path, grey(top - made if inverted else made, top), atol=1)

@pytest.mark.parametrize('kind', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('slope, intercept', [(1, 0), (2, -1000), (-1, 4095), (-.25, 30)])
@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
def test_dicom_windows_by_their_definition(tmp_path, kind, slope, intercept, function):
    made = values(12)
    x = made * float(slope) + intercept
    c, w = float(round(x.mean())), float(round(np.ptp(x) / 3))
    path = dicom(tmp_path/'x.dcm', made, kind, 12, RescaleSlope=slope, RescaleIntercept=intercept,
                 WindowCenter=c, WindowWidth=w, VOILUTFunction=function)
    if function == 'LINEAR': y = ((x - (c - .5)) / (w - 1) + .5).clip(0, 1)
    if function == 'LINEAR_EXACT': y = ((x - c) / w + .5).clip(0, 1)
    if function == 'SIGMOID': y = 1 / (1 + np.exp(-4 * (x - c) / w))
    if kind == 'MONOCHROME1': y = 1 - y
    check(path, np.floor(255 * y + .5), atol=1)

def test_dicom_of_signed_values(tmp_path):
    made = values(12).astype(np.int32)
    check(dicom(tmp_path/'a.dcm', (made - 2048).astype(np.int16), bits=12), grey(made, 4095))
    check(dicom(tmp_path/'b.dcm', (made - 2048).astype(np.int16), bits=16), grey(made, 4095))
    check(dicom(tmp_path/'c.dcm', made.astype(np.int16), bits=16), grey(made, 4095)) # a sign that no value has
    check(dicom(tmp_path/'d.dcm', (made - 2048).astype(np.int16), bits=16, RescaleSlope=1, RescaleIntercept=2048), grey(made, 4095))

def test_dicom_padding_is_black_and_not_of_the_range(tmp_path):
    made = values(12)
    made[:5] = 65535
    for kind in ['MONOCHROME1', 'MONOCHROME2']:
        inside = grey(4095 - made.clip(0, 4095) if kind == 'MONOCHROME1' else made.clip(0, 4095), 4095)
        inside[:5] = 0
        check(dicom(tmp_path/f'{kind}.dcm', made, kind, 16, PixelPaddingValue=65535), inside)

def test_dicom_of_a_lookup_table(tmp_path):
    made = values(12)
    for name, bits in {'VOILUTSequence': 10, 'ModalityLUTSequence': 16}.items():
        table, curve = Dataset(), np.sort(RNG.integers(0, 2**bits, 4096)).astype('<u2')
        table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4096, 0, bits], curve.tobytes(), 'US'
        table['LUTDescriptor'].VR, table['LUTData'].VR = 'US', 'OW'
        path = dicom(tmp_path/f'{name}.dcm', made, **{name: pydicom.Sequence([table])})
        check(path, grey(curve[made], 2**bits - 1), atol=1)

def test_white_may_be_zero_in_tiff(tmp_path):
    made = values(12)
    Image.fromarray(made).save(tmp_path/'x.tif', tiffinfo={262: 0})
    check(tmp_path/'x.tif', grey(4095 - made, 4095), atol=1)

# --- orientation ---

TURNS = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.rot90(np.fliplr(a)),
         6: lambda a: np.rot90(a), 7: lambda a: np.rot90(np.fliplr(a), 3), 8: lambda a: np.rot90(a, 3)}

@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'LZW', 'deep PNG', 'deep TIFF', 'deep LZW', 'JPEG', 'color JPEG'])
@pytest.mark.parametrize('orientation', TURNS)
def test_every_exif_orientation(tmp_path, orientation, kind):
    made = np.add.outer(np.arange(H) * 2, np.arange(W)).astype(np.uint8)
    made[:8, :8] = 250 # a corner
    stored = np.ascontiguousarray(TURNS[orientation](made))
    image, tag, path = Image.fromarray(stored.astype(np.uint16) * 16 if 'deep' in kind else stored), Image.Exif(), tmp_path/'x'
    if 'color' in kind: image = image.convert('RGB')
    tag[274] = orientation
    more = {'compression': 'tiff_lzw'} if 'LZW' in kind else {'quality': 95} if 'JPEG' in kind else {}
    image.save(path, {'LZW': 'TIFF'}.get(kind.split()[-1], kind.split()[-1]), exif=tag, **more)
    expected = grey(made.astype(np.uint16) * 16, 4095) if 'deep' in kind else made
    check(path, expected, atol=14 if 'JPEG' in kind else 0)

# --- other kinds ---

@pytest.mark.parametrize('mode', ['P', 'PA', 'RGBX', 'CMYK', 'YCbCr'])
def test_other_modes_give_their_grey(tmp_path, mode):
    made = values(8).astype(np.uint8)
    kind = {'CMYK': 'TIFF', 'YCbCr': 'TIFF', 'RGBX': 'TIFF', 'PA': 'PNG'}.get(mode, 'PNG')
    image = Image.fromarray(made).convert('RGB').convert(mode) if mode not in ('P', 'PA') else Image.fromarray(made).convert('P')
    image.save(tmp_path/'x', kind, **({'transparency': 3} if mode == 'PA' else {}))
    check(tmp_path/'x', made, atol=1)

def test_a_palette_is_looked_up(tmp_path):
    made, order = values(8).astype(np.uint8), RNG.permutation(256).astype(np.uint8)
    image = Image.fromarray(made)
    image.putpalette(np.repeat(order, 3).tobytes())
    image.save(tmp_path/'x.png')
    check(tmp_path/'x.png', order[made])

def test_one_bit_and_interlaced(tmp_path):
    made = RNG.random((H, W)) < .5
    Image.fromarray(made).save(tmp_path/'one.png')
    check(tmp_path/'one.png', made * 255)
    Image.fromarray(grey(values(12), 4095)).save(tmp_path/'p.jpg', progressive=True, quality=95)
    assert plain(tmp_path/'p.jpg').shape == (H, W)

def bad_files(folder):
    made, more = values(12), values(12)
    deep = Image.fromarray(made)
    deep.save(folder/'pages.tif', save_all=True, append_images=[Image.fromarray(more)])
    Image.fromarray(made.astype(np.float32) / 4095).save(folder/'float.tif')
    Image.fromarray(made.astype(np.int32) * 100).save(folder/'wide.tif')
    Image.fromarray(made.astype(np.int32) - 100).save(folder/'below.tif')
    Image.fromarray(made.astype(np.uint8)).save(folder/'moving.gif', save_all=True, append_images=[Image.fromarray(more.astype(np.uint8))])
    deep.save(folder/'whole.png')
    (folder/'cut.png').write_bytes((folder/'whole.png').read_bytes()[:-600])
    (folder/'whole.png').unlink()
    (folder/'sixteen.png').write_bytes(png16(np.stack([made] * 3, -1)))
    dicom(folder/'frames.dcm', np.stack([made, more]))
    dicom(folder/'ls.dcm', made, syntax=JPEGLSLossless)
    palette = dicom(folder/'palette.dcm', made.astype(np.uint8), bits=8)
    file = pydicom.dcmread(palette)
    file.PhotometricInterpretation = 'PALETTE COLOR'
    file.save_as(palette)
    return {'pages.tif': '2 pages', 'moving.gif': '2 pages', 'float.tif': 'floating-point', 'wide.tif': '16 bits', 'below.tif': 'below 0', 'cut.png': 'truncated',
            'sixteen.png': '16 bits', 'frames.dcm': 'one grey frame', 'ls.dcm': 'pip install python-gdcm', 'palette.dcm': 'PALETTE COLOR'}

def png16(rgb):
    "A PNG of 48 bits a pixel, which Pillow cannot write."
    import struct, zlib
    def chunk(kind, content): return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in rgb)
    head = struct.pack('>IIBBBBB', rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')

def test_what_has_no_one_meaning_is_refused(tmp_path):
    for name, word in bad_files(tmp_path).items():
        said = sentence(read_image, tmp_path/name, 32)
        assert name in said and word in said, said

# --- the range of a data set ---

def deepened(phantom, root, bits, tops=None):
    "A copy of the phantom whose files are of 16 bits and use some; a few are dark."
    shutil.copytree(phantom, root)
    for number, path in enumerate(sorted((root/'images').glob('*.png'))):
        top = 2**bits - 1 if number % 5 == 4 else 2**bits // 9
        made = np.asarray(Image.open(path).convert('L')) / 255 * top
        made.flat[0] = top
        Image.fromarray(made.astype(np.uint16)).save(path)
    return root

@pytest.mark.parametrize('bits', [10, 12, 16])
def test_one_range_for_the_whole_data_set(phantom, tmp_path, bits):
    root = deepened(phantom, tmp_path/'data', bits)
    data = load_data(root, 64, tmp_path/'stores')
    assert data.store.bits == {16: bits}
    said = [row['detail'] for row in data.frame.attrs['report'] if row['what'] == 'pixels']
    assert len(said) == 1 and f'{bits} bits' in said[0] and f'{2**bits - 1:,}' in said[0]
    for row in RNG.choice(len(data), 6, replace=False):
        made = np.asarray(Image.open(root/'images'/data.frame.index[row]))
        expected = Image.fromarray(grey(made, 2**bits - 1)).resize((64, 64), Image.Resampling.LANCZOS)
        assert (data.store.pixels[row] == np.asarray(expected)).all()
    dark = data.frame[[number % 5 != 4 for number in range(len(data))]]
    alone = decode(dark, root, 64, tmp_path/'dark') # the others are of the data set all the same
    assert (alone.pixels == data.store[data.frame.index.get_indexer(dark.index)]).all()
    few = load_data(root, 64, tmp_path/'stores', n=40)
    assert (few.store.pixels == data.store[data.frame.index.get_indexer(few.frame.index)]).all()

def test_a_brighter_image_changes_the_range_and_the_checksum(phantom, tmp_path):
    root = deepened(phantom, tmp_path/'data', 12)
    frame, out = read_nih(root), tmp_path/'store'
    before = decode(frame[:-1], root, 64, out).checksum
    made = np.asarray(Image.open(root/'images'/frame.index[-1]))
    Image.fromarray((made * 3).clip(0, 65535).astype(np.uint16) + 20_000).save(root/'images'/frame.index[-1])
    after = decode(frame, root, 64, out)
    assert after.bits == {16: 16} and after.checksum != before
    assert (after.pixels == decode(frame, root, 64, tmp_path/'fresh').pixels).all()
    with open(out/'pixels.npy', 'r+b') as file: # damaged rows come back by the range of the data set
        file.seek(after.pixels.offset + 3 * 64 * 64)
        file.write(bytes(99))
    verify_store(open_store(out, root))

def test_killed_before_the_end_the_range_is_kept(phantom, tmp_path, monkeypatch):
    from cxr_influence.data import store as stores
    root = deepened(phantom, tmp_path/'data', 12)
    frame, out = read_nih(root), tmp_path/'store'
    monkeypatch.setattr(stores, '_seal', lambda *_: (_ for _ in ()).throw(stores.InputError('stopped')))
    sentence(decode, frame, root, 64, out)
    monkeypatch.undo()
    counted = []
    monkeypatch.setattr(stores, 'read_image', lambda *a: (counted.append(a[0]), read_image(*a))[1])
    resumed = decode(frame, root, 64, out)
    assert not counted and resumed.bits == {16: 12} and not list(out.glob('bits*'))
    assert (resumed.pixels == decode(frame, root, 64, tmp_path/'fresh').pixels).all()

def test_an_earlier_store_of_deep_or_turned_images_is_decoded_again(phantom, tmp_path):
    from cxr_influence.data.files import _remove
    from json import dumps
    for number, kind in enumerate(['plain', 'deep', 'turned']):
        root, out = tmp_path/kind, tmp_path/f'{kind} store'
        if kind == 'deep': deepened(phantom, root, 12)
        else: shutil.copytree(phantom, root)
        frame = read_nih(root)
        if kind == 'turned':
            path, tag = root/'images'/frame.index[3], Image.Exif()
            tag[274] = 3
            Image.open(path).save(path, exif=tag)
        store = decode(frame, root, 64, out)
        right = store.pixels.copy()
        info = {name: value for name, value in store.info.items() if name != 'bits'}
        for name in ['store.json']: _remove(out/name)
        (out/'store.json').write_text(dumps(info))
        stat = (out/'pixels.npy').stat().st_ino
        again = decode(frame, root, 64, out)
        assert (again.pixels == right).all() and 'bits' in again.info
        assert ((out/'pixels.npy').stat().st_ino == stat) == (kind == 'plain')

def test_dicom_sets_of_several_detectors(tmp_path):
    names, made = [f'{n}' for n in range(6)], [values(bits) for bits in (10, 10, 12, 12, 12, 9)]
    for n, (name, one) in enumerate(zip(names, made)):
        dicom(tmp_path/f'{name}.dcm', one // (3 if n == 5 else 1), bits=[10, 10, 16, 16, 12, 16][n])
    frame = pd.DataFrame(index=pd.Index(names, name='image'))
    store = decode(frame, tmp_path, 32, tmp_path/'store/store')
    assert store.bits == {16: 12}
    for n, top in enumerate([1023, 1023, 4095, 4095, 4095, 4095]):
        whole = Image.fromarray(grey(made[n] // (3 if n == 5 else 1), top)).resize((32, 32), Image.Resampling.LANCZOS)
        assert abs(store.pixels[n].astype(int) - np.asarray(whole)).max() <= 1

# --- names are text ---

TABLE = 'Data_Entry_2017_v2020.csv'

def renamed(phantom, root, in_table=None, in_files=None, in_lists=None, separator='\n', encoding='utf-8'):
    "A copy of the phantom under other names."
    shutil.copytree(phantom, root)
    def same(name): return name
    table = pd.read_csv(root/TABLE, dtype=str, keep_default_na=False)
    for old in table['Image Index']:
        path = root/'images'/(in_files or same)(old)
        path.parent.mkdir(parents=True, exist_ok=True)
        (root/'images'/old).rename(path)
    table['Image Index'] = table['Image Index'].map(in_table or same)
    table.to_csv(root/TABLE, index=False)
    for name in ['train_val_list.txt', 'test_list.txt']:
        lines = [(in_lists or same)(one) for one in (root/name).read_text().split()]
        (root/name).write_bytes((separator.join(lines) + separator).encode(encoding))
    return root

def nfd(name): return 'Ro\u0308ntgen ' + name
def nfc(name): return 'Röntgen ' + name
def jpg(name): return name.replace('.png', '.jpg')

LAYOUTS = {
    'blanks': dict(in_table=lambda n: f'view {n}', in_files=lambda n: f'view {n}', in_lists=lambda n: f'view {n}'),
    'a copy': dict.fromkeys(['in_table', 'in_files', 'in_lists'], lambda n: n.replace('.png', ' copy.png')),
    'labels behind': dict(in_lists=lambda n: f'{n} 0 0 1'),
    'blanks and labels behind': dict(in_table=lambda n: f'view {n}', in_files=lambda n: f'view {n}', in_lists=lambda n: f'view {n},0,1'),
    'quotes': dict(in_lists=lambda n: f'"{n}"'),
    'another ending': dict(in_lists=jpg),
    'an ending in capitals': dict(in_lists=lambda n: n.replace('.png', '.PNG')),
    'no ending': dict(in_lists=lambda n: n.removesuffix('.png')),
    'no ending and labels': dict(in_lists=lambda n: n.removesuffix('.png') + '\t0\t1'),
    'folders': dict(in_lists=lambda n: f'images_004/images/{n}'),
    'backslashes': dict(in_lists=lambda n: f'images\\{n}'),
    'absolute': dict(in_lists=lambda n: f'C:\\data\\images\\{n}'),
    'a dot': dict(in_lists=lambda n: f'./{n}'),
    'macOS files': dict(in_table=nfc, in_files=nfd, in_lists=nfc),
    'macOS lists': dict(in_table=nfc, in_files=nfc, in_lists=nfd),
    'macOS table': dict(in_table=nfd, in_files=nfc, in_lists=nfc),
    'capitals on the disk': dict(in_files=str.upper),
    'blanks in the table': dict(in_table=lambda n: f' {n} '),
    'Windows': dict(separator='\r\n'), 'a byte-order mark': dict(encoding='utf-8-sig'),
}

@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_layout_is_read_as_the_data_it_is(phantom, tmp_path, layout):
    right, frame = read_nih(phantom), read_nih(renamed(phantom, tmp_path/'copy', **LAYOUTS[layout]))
    pd.testing.assert_frame_equal(frame.reset_index(drop=True), right.reset_index(drop=True))

def test_a_name_that_may_be_two_images_is_refused(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path/'copy')
    table = pd.read_csv(root/TABLE, dtype=str, keep_default_na=False)
    first = table['Image Index'][0]
    extra = table.iloc[[0]].assign(**{'Image Index': jpg(first)})
    pd.concat([table, extra]).to_csv(root/TABLE, index=False)
    shutil.copy(root/'images'/first, root/'images'/jpg(first))
    for name in ['train_val_list.txt', 'test_list.txt']:
        (root/name).write_text('\n'.join(one.removesuffix('.png') for one in (root/name).read_text().split()))
    said = sentence(read_nih, root)
    assert first in said and jpg(first) in said

def test_another_folder_is_another_image():
    known = pd.Index(['a/view1.png', 'b/view1.png', 'b/view2.png'])
    found = match_names(['c/view1.png', 'view2.png', 'data/b/view1.png', 'view2', 'b\\VIEW1', 'iew2.png', '', np.nan, 7], known)
    assert found.fillna('').tolist() == ['', 'b/view2.png', 'b/view1.png', 'b/view2.png', 'b/view1.png', '', '', '', '']
    assert 'a/view1.png or b/view1.png' in sentence(match_names, ['view1.png'], known)

WORDS = {'zeros': lambda i: f'{i:05}', 'numbers': lambda i: f'{1000 + i}', 'powers': lambda i: f'{i + 1}e5', 'decimals': lambda i: f'{i}.10',
         'nothing': lambda i: ['NA', 'nan', 'null', 'None', 'True', 'False', 'inf', '-inf', 'NaN', '<NA>'][i] if i < 10 else f'x{i}',
         'dates': lambda i: f'2020-{1 + i // 28:02}-{1 + i % 28:02}', 'hexadecimal': lambda i: f'0x{i:x}', 'with commas': lambda i: f'a,{i}',
         'quotes': lambda i: f'a "{i}"', 'blanks': lambda i: f'a  {i}', 'accents': lambda i: f'ö{i}', 'long numbers': lambda i: f'{10**19 + i}'}

@pytest.mark.parametrize('kind', WORDS)
def test_names_survive_a_table_of_scores(phantom, tmp_path, kind):
    frame = read_nih(phantom)
    names = [WORDS[kind](i) for i in range(len(frame))]
    for old, new in zip(frame.index, names):
        (tmp_path/'data').mkdir(exist_ok=True)
        shutil.copy(phantom/'images'/old, tmp_path/'data'/f'{new}.png')
    frame.set_axis(names).reset_index(names='image').to_csv(tmp_path/'table.csv', index=False)
    data = read_dataset(tmp_path/'table.csv', tmp_path/'data', image='image', patient='patient', findings=FINDINGS, split='split')
    assert list(data.index) == names and (data.split.to_numpy() == frame.split.to_numpy()).all()
    values = pd.DataFrame({'influence': RNG.normal(size=len(data))}, data.index).rename_axis('image')
    values.to_csv(tmp_path/'s.csv')
    read = read_scores(tmp_path/'s.csv')
    assert list(read.index) == names and np.allclose(read.influence, values.influence)
    wanted = subset_grid(values.influence, data, {'remove': [.3]}, seeds=[0])
    others = {'as it is': read, 'with endings': read.rename(lambda n: f'{n}.png'), 'in a folder': read.rename(lambda n: f'images/{n}.JPG')}
    for other in others.values():
        grid = subset_grid(other.influence, data, {'remove': [.3]}, seeds=[0])
        assert [list(kept) for kept in grid.kept] == [list(kept) for kept in wanted.kept]

def test_leaving_out_and_labels_by_other_names(data):
    names = list(data.train.index[:5])
    right = without(data, names)
    assert without(data, [f'images\\{name.upper()}' for name in names]).frame.equals(right.frame)
    answers = pd.DataFrame({'seen': 1.}, [jpg(name) for name in names])
    joined = _join_answers(data.frame, answers)
    assert joined.seen.notna().sum() == 5 and (joined.seen[names] == 1).all()
    assert 'twice' in sentence(_join_answers, data.frame, pd.concat([answers, answers.rename(lambda n: n[:-4])]))

# --- scores of others ---

def test_a_published_ranking_by_its_own_columns(data, tmp_path, capsys):
    names = data.frame.index
    table = pd.DataFrame({'Image Index': names, 'tracin score': RNG.normal(size=len(names)), 'note': 'of 2023'})
    table.to_csv(tmp_path/'theirs.csv', index=False)
    read = read_scores(tmp_path/'theirs.csv', ['tracin score'], image='Image Index')
    assert read.index.equals(names) and (read.note == 'of 2023').all() and not capsys.readouterr().err
    assert len(subset_grid(read['tracin score'], data.frame, {'select': [.2]}, seeds=[0])) == 5
    said = sentence(read_scores, tmp_path/'theirs.csv', ['score'])
    assert 'image and score' in said and 'Image Index' in said and 'tracin score' in said
    for bad in ['high', '0,12', 'inf']:
        table.astype(str).replace({'tracin score': {str(table['tracin score'][7]): bad}}).to_csv(tmp_path/'bad.csv', index=False)
        said = sentence(read_scores, tmp_path/'bad.csv', ['tracin score'], image='Image Index')
        assert repr(bad) in said and names[7] in said

@pytest.mark.parametrize('size', [2, 8, 32])
def test_equal_groups_are_reported(tmp_path, capsys, size):
    values = pd.Series(RNG.normal(size=331), [f'{i}' for i in range(331)], name='s').rename_axis('image')
    for scores, warned in [(values, False), (values.groupby(np.arange(331) // size).transform('mean').sample(frac=1), True)]:
        scores.to_csv(tmp_path/'s.csv')
        assert len(read_scores(tmp_path/'s.csv', ['s'])) == 331
        said = capsys.readouterr().err
        assert bool(said) == warned and (not warned or f'groups of {size}' in said and 's.csv' in said)

# --- groups ---

def weights_of(names, named): # the definition: the mean over the names, each as often as it is named
    counts = np.array([list(names).count(one) for one in named])
    return np.repeat(counts[:, None] / len(names), len(FINDINGS), axis=1)

def test_a_group_in_any_form(data):
    frame, named = data.frame, data.validation.index
    mask = pd.Series(RNG.random(len(frame)) < .4, frame.index)
    mask[named[:2]] = [True, False]
    chosen = named[mask[named]]
    forms = {'mask': mask, 'array': mask.to_numpy(), 'list': mask.tolist(), 'nullable': mask.astype('boolean'), 'objects': mask.astype(object),
             'of the targets': mask[named], 'array of the targets': mask[named].to_numpy(), 'shuffled': mask.sample(frac=1),
             'names': list(chosen), 'index': chosen, 'series': pd.Series(chosen), 'numpy': chosen.to_numpy(), 'tuple': tuple(chosen),
             'set': set(chosen), 'generator': (name for name in chosen), 'rows': frame.loc[chosen], 'other endings': [jpg(name) for name in chosen],
             'folders': ['images/' + name for name in chosen], 'unknown is no': mask.astype('boolean').where(mask), 'positions': mask[named].reset_index(drop=True)}
    for form, group in forms.items():
        found = query_losses(frame, groups={'some': group})['influence_some']
        np.testing.assert_allclose(found, weights_of(chosen, named), err_msg=form)
    one = query_losses(frame, groups={'one': named[3]})['influence_one']
    np.testing.assert_allclose(one, weights_of([named[3]], named))

def test_an_image_twice_counts_twice(data):
    named = data.validation.index
    sample = list(RNG.choice(named, len(named))) # a bootstrap sample
    found = query_losses(data.frame, groups={'sample': sample})['influence_sample']
    np.testing.assert_allclose(found, weights_of(sample, named))
    twice = query_losses(data.frame, False, groups={'a': [named[0], named[0]], 'b': [named[0], jpg(named[0]), named[1]]})
    np.testing.assert_allclose(twice['influence_a'], weights_of([named[0]], named))
    np.testing.assert_allclose(twice['influence_b'], weights_of([named[0], named[0], named[1]], named))

@pytest.mark.parametrize('name', ['Effusion', 'effusion', ' Mass ', 'influence_Mass', 'influence', 'rank', 'self_influence', 'Optimiser_Aware', 'cosine', 'loss', '', ' ', 7, None])
def test_a_group_that_takes_the_name_of_a_column_is_refused(data, name):
    said = sentence(query_losses, data.frame, groups={name: data.validation.index[:1]})
    assert str(name) in said

def test_groups_that_are_none(data):
    named, frame = data.validation.index, data.frame
    for group, words in [([], 'no validation image'), ([True, False], 'mask of 2 values'), (None, 'give names'), (3, 'give names'), ([0, 1], 'is no validation image'),
                         ([named[0], np.nan], 'is no validation image'), (['nobody.png'], 'nobody.png'), (data.train.index[:1], 'one of split train'),
                         (frame.age > 500, 'no validation image'), (frame[['age']].iloc[:0], 'no validation image')]:
        said = sentence(query_losses, frame, groups={'some': group})
        assert words in said and 'some' in said, said
    for groups in [[named[0]], 'women', frame.sex == 'F']: assert 'name -> images' in sentence(query_losses, frame, groups=groups)

# --- small numbers ---

def few(data, split, keep, **changes):
    "The data with only these images of a split."
    frame = data.frame.assign(split=data.frame.split.mask((data.frame.split == split) & ~data.frame.index.isin(keep), 'unused'))
    for name, value in changes.items(): frame.loc[frame.split == name, list(FINDINGS)] = value
    return data.with_frame(frame)

def one_patient(data):
    patients = data.validation.patient.value_counts()
    return data.validation.index[data.validation.patient == patients.index[0]]

SMALL = {
    'one patient': lambda data: few(data, 'validation', one_patient(data)),
    'one image': lambda data: few(data, 'validation', data.validation.index[:1]),
    'no positive': lambda data: few(data, 'validation', data.validation.index, validation=0.),
    'positives only': lambda data: few(data, 'validation', data.validation.index, validation=1.),
    'one image without findings': lambda data: few(data, 'validation', data.validation.index[:1], validation=0.),
    'one test image': lambda data: few(data, 'test', data.test.index[:1]),
    'no positive in test': lambda data: few(data, 'test', data.test.index, test=0.),
    'two training images': lambda data: few(data, 'train', data.train.index[:2]),
    'no positive anywhere': lambda data: few(data, 'train', data.train.index, train=0., validation=0., test=0.),
}

@pytest.mark.long
@pytest.mark.parametrize('case', SMALL)
@pytest.mark.filterwarnings('ignore')
def test_few_images_give_a_result_whose_gaps_are_named(data, tmp_path, case):
    small = SMALL[case](data)
    fit(small, tmp_path/'run', Recipe('densenet_small', epochs=1, batch_size=16), device='cpu')
    found = evaluate_checkpoint(best_checkpoint(tmp_path/'run'), small, device='cpu')
    targets = small.test[list(FINDINGS)]
    for finding in FINDINGS: # what cannot be computed is NaN, what can be is not
        assert np.isnan(found.table.auroc[finding]) == (targets[finding].nunique() < 2)
    assert np.isfinite(found.probabilities).all(axis=None)
    assert found.held_out.isna().all(axis=None) == (small.validation.patient.nunique() == 1)
    scores = influence(tmp_path/'run', small, tmp_path/'s.csv', device='cpu')
    assert np.isfinite(scores).all(axis=None) and len(scores) == len(small.train)

@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_a_split_without_a_known_label_is_refused_before_the_training(data, tmp_path, split):
    unknown = few(data, split, data.frame.index, **{split: np.nan})
    assert split in sentence(fit, unknown, tmp_path/'run', Recipe('densenet_small', epochs=1), device='cpu')
    frame = unknown.frame.copy()
    frame.loc[frame.index[frame.split == split][0], 'Mass'] = 1. # one label suffices
    fit(data.with_frame(frame), tmp_path/'run', Recipe('densenet_small', epochs=1), device='cpu')
    assert not (tmp_path/'run/epoch_002').exists()

@pytest.mark.parametrize('name', ['batch_size', 'epochs'])
@pytest.mark.parametrize('value', [0, -1, 1.5, True, '16', None, math.nan, math.inf])
def test_counts_that_are_none(data, tmp_path, name, value):
    said = sentence(fit, data, tmp_path/'run', Recipe('densenet_small', **{name: value}), device='cpu')
    assert f'{name} is {value!r}' in said and not (tmp_path/'run').exists()

@pytest.mark.parametrize('seed', [-1, 1.5, '3', None, True])
def test_seeds_that_are_none(data, tmp_path, seed):
    assert f'seed is {seed!r}' in sentence(fit, data, tmp_path/'run', Recipe('densenet_small'), seed=seed, device='cpu')

@pytest.mark.long
def test_numbers_of_numpy_and_a_batch_of_everything(data, tmp_path):
    numbers = Recipe('densenet_small', epochs=np.int64(1), batch_size=np.float32(10**6), learning_rate=np.float32(.5) / 512, clip=np.int32(10))
    found = fit(data, tmp_path/'a', numbers, seed=np.int64(3), device='cpu')
    plain = Recipe('densenet_small', epochs=1, batch_size=len(data.train), learning_rate=.5 / 512, clip=10.)
    expected = fit(data, tmp_path/'b', plain, seed=3, device='cpu')
    columns = ['learning_rate', 'train_loss', 'validation_loss', 'validation_auroc']
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    scores = [influence(tmp_path/'a', data, tmp_path/f'{size}.csv', per_finding=False, device='cpu', batch_size=size).influence for size in (10**6, 7)]
    assert np.allclose(*scores, rtol=1e-3, atol=1e-4 * scores[0].abs().max())

def test_an_image_of_another_folder_is_never_taken(tmp_path):
    "Paths as CheXpert's: the same file names in every patient's folder."
    names = [f'CheXpert/train/patient{number:05}/study1/view1.png' for number in (1, 2, 31)]
    for name in names:
        path = tmp_path/name.removeprefix('CheXpert/')
        path.parent.mkdir(parents=True)
        path.write_bytes(b'')
    def found(names, root): return {name: Path(path).parts[-3] for name, path in find_images(pd.Index(names), find_files(root), root).items()}
    right = {name: Path(name).parts[2] for name in names}
    assert found(names, tmp_path) == found(names, tmp_path/'train') == right # the folder CheXpert is called otherwise here
    written = [names[0].upper(), names[1].replace('/', '\\'), names[2]]
    assert list(found(written, tmp_path).values()) == list(right.values())
    for name in names: # one patient's folder, and all names or another patient's
        folder = tmp_path/'train'/Path(name).parts[2]
        assert found(names, folder) == {} # each could be the file
        assert all(found([other], folder) == {} for other in names if other != name)
        assert found([name], folder) == {name: right[name]}
