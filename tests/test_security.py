"Files from elsewhere are data: none of them runs code, leaves its folder or fills the memory; parameters are values; tables are text."
import ast, base64, gzip, io, json, os, pickle, random, re, struct, subprocess, sys, tarfile, types, warnings, zipfile, zlib
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import sentence
from cxr_influence.data import download
from cxr_influence.data import tables
from cxr_influence.data.files import InputError
from cxr_influence.data.images import read_image
from cxr_influence.data.nih import read_nih
from cxr_influence.data.store import open_store
from cxr_influence.data.tables import from_medmnist, read_dataset
from cxr_influence.training.checkpoints import Checkpoint
from cxr_influence.training.networks import make_model

ROOT = Path(__file__).resolve().parents[1]

class Evil:
    "Unpickled, it makes a file; so does whatever runs its text."
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return eval, (self.text,)
    @property
    def text(self): return f'open({self.mark!r}, "w").close()'

@pytest.fixture
def evil(tmp_path):
    "Something that leaves a mark if it is run; after the test there must be none."
    thing = Evil(tmp_path/'ran')
    with pytest.MonkeyPatch.context(): pickle.loads(pickle.dumps(thing))
    assert (tmp_path/'ran').exists(), 'it does not even work'
    (tmp_path/'ran').unlink()
    yield thing
    assert not (tmp_path/'ran').exists(), 'code from a file was run'

# --- weights and arrays ---

@pytest.mark.parametrize('kind', ['pickle', 'zip', 'legacy', 'in a state dict'])
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.bin', '.safetensors'])
def test_weights_that_are_a_program(evil, tmp_path, kind, suffix):
    path = tmp_path/f'evil{suffix}'
    if kind == 'pickle': path.write_bytes(pickle.dumps(evil))
    elif kind == 'in a state dict': torch.save({'state_dict': {'classifier.bias': torch.zeros(14), 'x': evil}}, path)
    else: torch.save(evil, path, _use_new_zipfile_serialization=kind == 'zip')
    assert path.name in sentence(make_model, 'densenet_small', path)

@pytest.mark.parametrize('state', [5, [torch.zeros(2)], {'a': 5}, {3: torch.zeros(2)}, {'state_dict': 'x'}, {'classifier.bias': torch.zeros(14, device='meta')},
                                   {'classifier.bias': torch.zeros(14).to_sparse()}, {}], ids=str)
def test_weights_that_are_no_tensors(tmp_path, state):
    torch.save(state, tmp_path/'odd.pth')
    assert 'odd.pth' in sentence(make_model, 'densenet_small', tmp_path/'odd.pth')

def test_weights_that_swell(tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as file:
        with file.open('archive/data/0', 'w', force_zip64=True) as member:
            for _ in range(300): member.write(bytes(1 << 20))
    assert 'bomb.pth unpacks to more than' in sentence(make_model, 'densenet_small', tmp_path/'bomb.pth')

def test_a_store_whose_pixels_are_objects(evil, tmp_path):
    np.save(tmp_path/'pixels.npy', np.array([evil], object), allow_pickle=True)
    (tmp_path/'store.json').write_text(json.dumps({'size': 32, 'images': 1, 'index_sha256': '', 'skipped': []}))
    assert 'pixels.npy' in sentence(open_store, tmp_path) or str(tmp_path) in sentence(open_store, tmp_path)

def test_a_medmnist_file_of_objects(evil, tmp_path):
    arrays = {f'{split}_{what}': np.array([evil], object) for split in ('train', 'val', 'test') for what in ('images', 'labels')}
    np.savez(tmp_path/'chestmnist.npz', **arrays)
    assert 'chestmnist.npz' in sentence(from_medmnist, tmp_path/'chestmnist.npz', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_a_medmnist_file_that_promises_too_much(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 28, 28)})
    with zipfile.ZipFile(tmp_path/'chestmnist.npz', 'w') as file: file.writestr('train_images.npy', header.getvalue())
    assert 'chestmnist.npz' in sentence(from_medmnist, tmp_path/'chestmnist.npz', tmp_path/'out')

def test_a_parquet_file_with_a_pickled_type(evil, tmp_path):
    field = pa.field('image', pa.string(), metadata={'ARROW:extension:name': 'arrow.py_extension_type', 'ARROW:extension:metadata': pickle.dumps(evil)})
    pq.write_table(pa.table({'image': ['a']}, schema=pa.schema([field])), tmp_path/'a.parquet')
    try: pd.read_parquet(tmp_path/'a.parquet')
    except Exception: pass # it may refuse; `evil` sees whether it ran

# --- checkpoints ---

@pytest.mark.parametrize('change', [{'backbone': '../../evil'}, {'backbone': '__import__("os")'}, {'findings': [['x']]}], ids=str)
def test_facts_of_a_checkpoint_from_elsewhere(checkpoints, tmp_path, change):
    facts = json.loads((checkpoints/'epoch_001/checkpoint.json').read_text()) | change
    (tmp_path/'checkpoint.json').write_text(json.dumps(facts))
    sentence(lambda: Checkpoint(tmp_path).model())

# --- names ---

OUTSIDE = ['../secret.png', '..\\secret.png', 'images/../../secret.png', '{root}/../secret.png', 'C:\\secret.png', 'C:/secret.png', 'C:secret.png', '/etc/passwd',
           '\\\\server\\share\\secret.png', '.', '..', 'images/..', 'a\0b.png', 'a\nb.png', '~/secret.png', 'file:///etc/passwd', '$HOME/secret.png']

@pytest.fixture
def folder(tmp_path):
    (tmp_path/'root/images').mkdir(parents=True)
    for name in ('root/images/good.png', 'secret.png'): Image.new('L', (40, 40), 90).save(tmp_path/name)
    return tmp_path/'root'

@pytest.mark.parametrize('name', OUTSIDE)
def test_a_table_names_no_image_outside_its_folder(folder, name):
    name = name.format(root=folder)
    table = pd.DataFrame({'image': [name, 'good.png'], 'Mass': [1, 0]})
    settings = dict(image='image', patient=None, findings={'Mass': 'Mass'})
    try: frame = read_dataset(table, folder, on_error='skip', **settings)
    except InputError as error: assert '\n' not in str(error)
    else: assert list(frame.index) == ['good.png']

@pytest.mark.parametrize('name', OUTSIDE)
def test_nihs_table_names_no_image_outside_its_folder(phantom, tmp_path, name):
    path = next(phantom.glob('Data_Entry*.csv'))
    table = pd.read_csv(path, dtype=str)
    (tmp_path/'root').mkdir()
    for entry in phantom.iterdir(): os.symlink(entry, tmp_path/'root'/entry.name)
    (tmp_path/'root'/path.name).unlink()
    table.iloc[0, 0] = name.format(root=tmp_path/'root')
    table.to_csv(tmp_path/'root'/path.name, index=False)
    try: frame = read_nih(tmp_path/'root')
    except InputError as error: assert path.name in str(error) and '\n' not in str(error)
    else: assert name == 'C:secret.png' and name not in frame.index # a name like others here, and no file has it

# --- archives ---

def tar_of(path, *members, compress=True):
    with tarfile.open(path, 'w:gz' if compress else 'w') as tar:
        for info, content in members: tar.addfile(info, io.BytesIO(content))

def plain(name, content=b'1'):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content

def of_kind(name, kind, target='/etc/passwd'):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b''

def with_pax(name, headers, content=b'1'):
    info, content = plain(name, content)
    info.pax_headers = headers
    return info, content

LEAVING = {**{name: plain(name) for name in ['../x.png', '/x.png', 'a/../../x.png', '..\\x.png', 'a\\..\\..\\x.png', 'C:\\x.png', 'D:x.png', '\\\\server\\x.png', '..']},
           'pax': with_pax('a.png', {'path': '../x.png'}), 'zero': with_pax('a.png', {'path': 'a\0/../../x.png'}),
           **{kind: of_kind('a.png', getattr(tarfile, kind)) for kind in ['SYMTYPE', 'LNKTYPE', 'CHRTYPE', 'BLKTYPE', 'FIFOTYPE']}}

@pytest.mark.parametrize('kind', LEAVING)
def test_a_tar_stays_in_its_folder(tmp_path, kind):
    (tmp_path/'deep/in').mkdir(parents=True)
    tar_of(tmp_path/'deep/in/a.tar.gz', plain('good.png'), LEAVING[kind])
    assert 'nothing of it was unpacked' in sentence(download._unpack, tmp_path/'deep/in/a.tar.gz', tmp_path/'deep/in/out')
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['a.tar.gz']

def test_a_link_and_then_a_file_through_it(tmp_path):
    tar_of(tmp_path/'a.tar.gz', of_kind('sub', tarfile.SYMTYPE, str(tmp_path)), plain('sub/x.png'))
    sentence(download._unpack, tmp_path/'a.tar.gz', tmp_path/'out')
    assert [path.name for path in tmp_path.iterdir()] == ['a.tar.gz']

@pytest.mark.parametrize('name, mode', [('../x.png', 0o100644), ('/x.png', 0o100644), ('C:/x.png', 0o100644), ('..\\x.png', 0o100644), ('link', 0o120777)])
def test_a_zip_stays_in_its_folder(tmp_path, name, mode):
    info = zipfile.ZipInfo('name')
    info.filename, info.external_attr = name, mode << 16
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as file: file.writestr('good.png', b'1'), file.writestr(info, b'/etc/passwd')
    assert 'nothing of it was unpacked' in sentence(download._unpack, tmp_path/'a.zip', tmp_path/'out')
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']

def test_a_zip_with_a_password(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as file: file.writestr('good.png', b'1')
    content = bytearray((tmp_path/'a.zip').read_bytes())
    for mark, place in [(b'PK\x03\x04', 6), (b'PK\x01\x02', 8)]: content[content.index(mark) + place] |= 1
    (tmp_path/'a.zip').write_bytes(content)
    assert 'a.zip is damaged' in sentence(download._unpack, tmp_path/'a.zip', tmp_path/'out')

# --- bombs ---

@pytest.fixture
def small(monkeypatch): # bombs are as good small, and quicker
    for module in (download, tables): monkeypatch.setattr(module, '_MOST_BYTES', 200_000)

def bomb(path, content=bytes(40_000_000)):
    if path.name.endswith('.tar.gz'): tar_of(path, plain('a.png', content))
    else:
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file: file.writestr('a.png', content)

@pytest.mark.parametrize('name', ['a.tar.gz', 'a.zip'])
def test_an_archive_that_swells(small, tmp_path, name):
    bomb(tmp_path/name)
    said = sentence(download._unpack, tmp_path/name, tmp_path/'out')
    assert name in said and 'times its size' in said and [path.name for path in tmp_path.iterdir()] == [name]

def test_an_archive_of_many_small_bombs_and_one_with_a_swelling_tail(small, tmp_path):
    tar_of(tmp_path/'many.tar.gz', *[plain(f'{i}.png', bytes(30_000)) for i in range(999)])
    plain_tar = io.BytesIO()
    with tarfile.open(fileobj=plain_tar, mode='w') as tar: tar.addfile(*[one if i == 0 else io.BytesIO(one) for i, one in enumerate(plain('a.png'))])
    (tmp_path/'tail.tar.gz').write_bytes(gzip.compress(plain_tar.getvalue() + bytes(30_000_000)))
    for name in ('many', 'tail'): assert 'times its size' in sentence(download._unpack, tmp_path/f'{name}.tar.gz', tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_a_sparse_member_is_not_written_out(tmp_path):
    header, size = tarfile.TarInfo('a.png'), 10**12
    header.pax_headers = {'GNU.sparse.major': '0', 'GNU.sparse.minor': '1', 'GNU.sparse.name': 'a.png', 'GNU.sparse.size': str(size), 'GNU.sparse.map': '0,1'}
    header.size = 1
    tar_of(tmp_path/'a.tar.gz', (header, b'1'))
    sentence(download._unpack, tmp_path/'a.tar.gz', tmp_path/'out')
    assert [path.name for path in tmp_path.iterdir()] == ['a.tar.gz']

def test_an_honest_archive_is_unpacked(small, tmp_path):
    content = random.Random(os.urandom(8)).randbytes(900_000)
    for name in ('a.tar.gz', 'b.zip'):
        bomb(tmp_path/name, content)
        assert (download._unpack(tmp_path/name, tmp_path/name[0])/'a.png').read_bytes() == content

@pytest.mark.parametrize('suffix', ['.gz', '.bz2', '.xz', '.zip'])
def test_a_table_that_swells(small, folder, suffix):
    path = folder/f'table.csv{suffix}'
    table = pd.DataFrame({'image': ['good.png'] * 50_000, 'Mass': 1})
    table.to_csv(path, index=False)
    assert len(table.to_csv(index=False)) > 100 * path.stat().st_size, 'no bomb'
    assert f'table.csv{suffix} unpacks to more than' in sentence(read_dataset, path, folder, image='image', patient=None, findings={'Mass': 'Mass'})

def png_of(path, width, height): # without pixels: a header is enough of a promise
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b''))

@pytest.mark.parametrize('limit', ['Pillow\'s own', 'switched off'])
@pytest.mark.parametrize('size', [(60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1), (89_478_486, 1)])
def test_an_image_that_swells(tmp_path, monkeypatch, limit, size):
    if limit == 'switched off': monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    png_of(tmp_path/'bomb.png', *size)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        for read in (lambda path: read_image(path, 32), tables._read_grey): assert 'bomb.png cannot be decoded' in sentence(read, tmp_path/'bomb.png')

def dicom(path, **elements):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = elements.pop('syntax', ExplicitVRLittleEndian)
    file.SOPClassUID, file.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 40, 40, 1, 'MONOCHROME2'
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation, file.PixelData = 8, 8, 7, 0, bytes(1600)
    for name, value in elements.items(): setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path

def test_a_dicom_file_that_swells(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless
    from pydicom.encaps import encapsulate
    assert read_image(dicom(tmp_path/'good.dcm'), 32)[0].shape == (32, 32)
    assert 'pixels' in sentence(read_image, dicom(tmp_path/'large.dcm', Rows=65_000, Columns=65_000), 32)
    assert 'pixels' in sentence(read_image, dicom(tmp_path/'frames.dcm', NumberOfFrames=10**6), 32)
    rle = struct.pack('<16L', 1, 64, *[0] * 14) + b'\x81\0' * 64
    assert 'pixels' in sentence(read_image, dicom(tmp_path/'rle.dcm', syntax=RLELossless, Rows=65_000, Columns=65_000, PixelData=encapsulate([rle])), 32)
    assert 'deflated' in sentence(read_image, dicom(tmp_path/'deflated.dcm', syntax=DeflatedExplicitVRLittleEndian), 32)

def test_an_image_that_is_a_program(evil, tmp_path):
    (tmp_path/'x.png').write_text(f'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n({evil.mark}) (w) file closefile\nshowpage\n')
    with pytest.MonkeyPatch.context() as patch: # Pillow would start Ghostscript
        patch.setattr(subprocess, 'Popen', lambda *a, **k: pytest.fail('a program was started'))
        assert 'x.png cannot be decoded' in sentence(read_image, tmp_path/'x.png', 32)
        assert 'x.png cannot be decoded' in sentence(tables._read_grey, tmp_path/'x.png')

# --- the package itself ---

FILES = [path for path in (ROOT/'cxr_influence').rglob('*.py')] + [path for path in (ROOT/'.ci').glob('*.py')]
NOTEBOOKS = sorted(path for path in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts)
IMPORTS = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'shelve', 'marshal', 'jsonpickle', 'imp', 'code', 'codeop'}
CALLS = {'eval', 'exec', 'compile', 'os.system', 'os.popen', 'joblib.load', 'joblib.dump', 'pd.read_pickle', 'pandas.read_pickle', 'torch.hub.load', 'pd.eval',
         'yaml.unsafe_load', 'yaml.full_load', 'yaml.load_all', 'tempfile.mktemp', 'torch.jit.load', 'shutil.unpack_archive', 'subprocess.getoutput'}
METHODS = {'read_pickle', 'to_pickle', 'extractall', 'unsafe_load', 'eval', 'query'} # of frames and archives; `model.eval()` has no argument

def dangers(tree):
    "What runs or unpickles what it is given, as (line, text)."
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or '']
            if {name.split('.')[0] for name in names} & IMPORTS: yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call): continue
        name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        def stated(key, default=None): return getattr(given[key], 'value', '?') if key in given else default
        method, constant = name.split('.')[-1], all(isinstance(argument, ast.Constant) for argument in node.args)
        if (name in CALLS or name == 'torch.load' and stated('weights_only') is not True or name == 'yaml.load' and 'Safe' not in ast.unparse(node)
                or stated('shell', False) is not False or stated('allow_pickle', False) is not False or stated('escape', True) is not True
                or '.' in name and method in METHODS and node.args and not (method == 'query' and constant)): yield node.lineno, ast.unparse(node)

def code_of(path):
    if path.suffix == '.py': return path.read_text(encoding='utf-8')
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
    return re.sub(r'^\s*[%!].*$', 'pass', text, flags=re.M)

@pytest.mark.parametrize('path', FILES + NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_here_unpickles_or_runs_what_it_reads(path):
    found = list(dangers(ast.parse(code_of(path))))
    if path.suffix == '.ipynb': found = [one for one in found if '.query(' not in one[1]] # of a page's own text
    assert found == []

@pytest.mark.parametrize('line', ['import pickle', 'from pickle import loads', 'import dill as d', 'eval(x)', 'exec(x)', 'torch.load(path)', 'torch.load(path, weights_only=False)',
    'yaml.load(x)', 'yaml.load(x, Loader=yaml.Loader)', 'subprocess.run(x, shell=True)', 'np.load(x, allow_pickle=True)', 'joblib.load(x)', 'frame.to_html(escape=False)',
    'tar.extractall(x)', 'frame.query(x)', 'frame.eval(x)', 'pd.read_pickle(x)', 'os.system(x)', 'np.load(x, allow_pickle=flag)'])
def test_the_search_finds_what_it_is_for(line): assert list(dangers(ast.parse(line)))

@pytest.mark.parametrize('line', ['model.eval()', 'torch.load(path, weights_only=True)', 'yaml.safe_load(x)', 'yaml.load(x, Loader=SafeLoader)', 'frame.query("a == 1")',
                                  'subprocess.run([x])', 'np.load(x)', 'frame.to_html()', 'from joblib import Parallel'])
def test_and_nothing_else(line): assert not list(dangers(ast.parse(line)))

# --- parameters and grids ---

HOSTILE = ['"', "'", '"""', "'''", '\\', '\\"', '\n', '\r\n', '\0', '"\nopen("{mark}", "w").close()\n"', "'; open('{mark}', 'w').close(); '", '{{mark}}', '${mark}', '%s %d',
           '__import__("os").system("touch {mark}")', '\\N{BULLET}', '\u2028import os', '#| eval: true\nopen("{mark}", "w")', '`touch {mark}`', '$(touch {mark})', '%%bash\ntouch {mark}',
           '!touch {mark}', '\ud7ff\uffff', '🫁', '</script><script>alert(1)</script>']

@pytest.fixture
def experiment(tmp_path):
    code = {'parameters': 'text: str = "" # any\ntexts: list[str] = []\ncount: int = 0\nout: str = "_runs/echo/by-hand"',
            '1': 'import json\nfrom cxr_influence.runs.runs import end_run, start_run\nfolder = start_run("echo", globals())',
            '2': '(folder/"seen.json").write_text(json.dumps([text, texts, count]))', '3': 'import pandas as pd\nend_run(pd.DataFrame([{"count": count}]))'}
    cells = [nbformat.v4.new_code_cell(text, metadata={'tags': [name]} if name == 'parameters' else {}) for name, text in code.items()]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'Python', 'language': 'python'}}), tmp_path/'echo.ipynb')
    return tmp_path/'echo.ipynb'

@pytest.mark.long
def test_parameters_reach_a_notebook_as_values(evil, experiment, tmp_path):
    from cxr_influence.runs.runs import run
    texts = [text.replace('{mark}', evil.mark) for text in HOSTILE] + [evil.text, ''.join(random.Random(os.urandom(8)).choices('"\'\\\n{}$%`;#()', k=60))]
    folder = run(experiment, runs=tmp_path/'runs', text='\n'.join(texts), texts=texts)
    assert json.loads((folder/'seen.json').read_text()) == ['\n'.join(texts), texts, 0]

@pytest.mark.parametrize('name, value', [('count', '__import__("os").getpid()'), ('count', '1; import os'), ('count', '0x'), ('text; import os', 'x'), ('out\nimport os', 'x'),
                                         ('__import__', 'x'), ('count', {'a': 1})], ids=str)
def test_what_is_no_value_is_refused_before_anything_runs(experiment, tmp_path, name, value):
    from cxr_influence.runs.runs import run
    sentence(run, experiment, runs=tmp_path/'runs', **{name: value})
    assert not list(tmp_path.glob('runs/**/notebook.ipynb'))

def test_the_name_of_a_run_stays_in_its_folder(experiment, tmp_path):
    from cxr_influence.runs.runs import run
    for name in ('../../out', '/tmp/cxr_out', 'a/../../../out'):
        sentence(run, experiment, name=name, runs=tmp_path/'in/runs', count=1)
    assert not (tmp_path/'out').exists() and not Path('/tmp/cxr_out').exists() and not (tmp_path/'in/out').exists()

def test_listing_the_parameters_of_a_notebook_runs_none_of_it(evil, tmp_path):
    from cxr_influence.runs.parameters import parameters_of
    cells = [nbformat.v4.new_code_cell(f'count: int = {evil.text} # {evil.text}\nout: str = str({evil.text})', metadata={'tags': ['parameters']})]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path/'n.ipynb')
    assert [one.name for one in parameters_of(tmp_path/'n.ipynb')] == ['count', 'out']

@pytest.mark.parametrize('text', ['seed: !!python/object/apply:{call}', 'seed: !!python/object/apply:builtins.open ["{mark}", "w"]', '!!python/module:os', 'seed: !!python/name:os.system',
                                  '- !!python/object/new:os.system ["touch {mark}"]', 'seed: !evil x'])
def test_a_grid_is_no_program(evil, tmp_path, text):
    from cxr_influence.runs.cli import _load_yaml
    text = text.replace('{mark}', evil.mark).replace('{call}', f'builtins.eval [{json.dumps(evil.text)}]')
    (tmp_path/'grid.yaml').write_text(text)
    assert 'grid.yaml' in sentence(_load_yaml, tmp_path/'grid.yaml')

# --- reports ---

SCRIPT = '<script>alert(1)</script><img src=x onerror=alert(1)>'

def test_what_tables_brought_stays_text_in_a_report_of_the_data(folder):
    names, splits = ['a"><b>.png', 'b.png', 'c.png'], ['train', 'validation', 'test']
    for name in names: Image.new('L', (40, 40)).save(folder/name)
    table = pd.DataFrame({'image': names, 'split': splits, 'Mass': [1, 0, 0], 'sex': [SCRIPT, 'M', 'F'], SCRIPT: 1})
    frame = read_dataset(table, folder, image='image', patient=None, findings={'Mass': 'Mass'}, sex='sex', split='split')
    html = frame.attrs['report']._repr_html_()
    assert '<script' not in html and '<img' not in html and '&lt;script' in html
