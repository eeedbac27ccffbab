"Run notebooks in place to renew their outputs: those named, or all. Cells marked gpu, slow or data keep what they have."
import os, re, sys, time
from configparser import ConfigParser
from pathlib import Path

os.environ.update(TQDM_DISABLE='1', PYTHONPATH=os.pathsep.join(filter(None, [os.getcwd(), os.environ.get('PYTHONPATH')])))
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from made_on import note # what a page says of where its numbers come from

config = ConfigParser(delimiters=['='])
config.read('settings.ini')
SKIP = re.compile(rf'^#\|\s*({"|".join(config["DEFAULT"]["tst_flags"].split())}|eval:\s*false)(\s+\d+\s*(min|h))?\s*$', re.M)

class Client(NotebookClient):
    async def async_execute_cell(self, cell, *args, **kwargs):
        return cell if SKIP.search(cell.source) else await super().async_execute_cell(cell, *args, **kwargs)

files = [Path(a) for a in sys.argv[1:]] or [f for f in sorted(Path('nbs').rglob('*.ipynb')) if not any(p[0] in '._' for p in f.parts)]
for file in files:
    start, nb = time.time(), nbformat.read(file, as_version=4)
    try: Client(nb, timeout=3600, store_widget_state=False, kernel_name='python3', resources={'metadata': {'path': str(file.parent)}}).execute()
    except CellExecutionError as error: sys.exit(f'{file} stopped, and was left as it was:\n{error}')
    note(nb, file)
    nbformat.write(nb, file)
    print(f'{time.time() - start:6.1f} s  {file}', flush=True)
