"""Run notebooks in place to renew their outputs: those named, or all. Cells marked gpu, slow or data keep what they have.

What a notebook keeps is what its reader would see on any machine: no progress, no line about which run was found, no
folder of this computer. Warnings stay, for pages show them on purpose."""
import os, re, sys, tempfile, time
from configparser import ConfigParser
from pathlib import Path

os.environ.update(TQDM_DISABLE='1', PYTHONPATH=os.pathsep.join(filter(None, [os.getcwd(), os.environ.get('PYTHONPATH')])))
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

sys.path.insert(0, str(Path(__file__).parent))
from made_on import note # what a page says of where its numbers come from

ROOT = Path(__file__).resolve().parents[1]
config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini')
SKIP = re.compile(rf'^#\|\s*({"|".join(config["DEFAULT"]["tst_flags"].split())}|eval:\s*false)(\s+\d+\s*(min|h))?\s*$', re.M)
PROGRESS = re.compile(r'.*\r|W\d{4} .*CUDA_HOME|.*\d+%\||(Found|Trained) \S+$|\d+ retrainings of about ')
TEMPORARY = rf'{re.escape(tempfile.gettempdir())}/tmp\w{{8}}' # as tempfile names folders
CELL = rf'{re.escape(tempfile.gettempdir())}/ipykernel_\d+/\d+\.py' # as warnings name cells
HERE = re.compile(rf'{re.escape(str(ROOT))}/|{TEMPORARY}/(?=\w)|{TEMPORARY}|{CELL}')
WIDGET = 'application/vnd.jupyter.widget-view+json' # of no use without its kernel

class Client(NotebookClient):
    async def async_execute_cell(self, cell, *args, **kwargs):
        return cell if SKIP.search(cell.source) else await super().async_execute_cell(cell, *args, **kwargs)

def anywhere(text):
    "Leave out of a text where this computer keeps the project and temporary files."
    return HERE.sub(lambda found: '' if found[0].startswith(str(ROOT)) else '…' + '/'*found[0].endswith('/'), text)

def tidy(outputs):
    "The outputs of a cell without progress and this computer's folders."
    kept = []
    for output in outputs:
        if output.get('name') == 'stderr':
            lines = re.split(r'(?<=[\n\r])', output['text'])
            output['text'] = ''.join(line for line in lines if not PROGRESS.match(line.rstrip('\n')))
            if not output['text'].strip(): continue
        if 'text' in output: output['text'] = anywhere(output['text'])
        if 'text/html' in output.get('data', {}): output['data'].pop(WIDGET, None) # what stands in for it stays
        for kind, content in output.get('data', {}).items():
            if kind.startswith('text/') and isinstance(content, str): output['data'][kind] = anywhere(content)
        kept.append(output)
    return kept

def renew(file):
    "Execute a notebook in its folder, and keep what it shows."
    nb = nbformat.read(file, as_version=4)
    try: Client(nb, timeout=3600, store_widget_state=False, kernel_name='python3', resources={'metadata': {'path': str(file.parent)}}).execute()
    except CellExecutionError as error: sys.exit(f'{file} stopped, and was left as it was:\n{error}')
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = tidy(cell.outputs)
    note(nb, file)
    nbformat.write(nb, file)

def main():
    files = [Path(a) for a in sys.argv[1:]] or [f for f in sorted(Path('nbs').rglob('*.ipynb')) if not any(p[0] in '._' for p in f.parts)]
    for file in files:
        start = time.time()
        renew(file)
        print(f'{time.time() - start:6.1f} s  {file}', flush=True)

if __name__ == '__main__': main()
