"""Execute pages twice, each time from top to bottom in a kernel of its own, in a fresh clone of what is committed.

The first time the clone holds no `_data` and no `_runs`; the second time it holds what the first left there, and must find
it. NIH14 is unset, so cells that need NIH's data must say that they are skipped, and the page goes on. `.ci/twice.py
nbs/tutorials/*.ipynb` takes those pages, nothing all of them, in about three hours on two cores."""
import os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1800 # seconds for a cell

def clone(folder):
    "What is committed, with the changes of the working tree, and none of what git ignores."
    subprocess.run(['git', 'clone', '-q', '--no-hardlinks', ROOT, folder], check=True)
    listed = subprocess.check_output(['git', 'ls-files', '-mdoz', '--exclude-standard'], cwd=ROOT, text=True)
    for name in filter(None, listed.split('\0')):
        if (ROOT/name).is_file():
            (folder/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/name, folder/name)
        else: (folder/name).unlink(missing_ok=True)
    return folder

def pages(names):
    "The pages named, or all that are meant to be read, as paths from the root."
    if names: return [Path(os.path.relpath(Path(name).resolve(), ROOT)) for name in names]
    found = sorted(file.relative_to(ROOT) for file in (ROOT/'nbs').rglob('*.ipynb'))
    return [file for file in found if not any(part[0] in '._' for part in file.parts) and not (ROOT/file.parent/'.notest').exists()]

def execute(file):
    "Run a page of the clone; seconds, the lines `Skipped: ...`, and why it stopped, if it did."
    nb, begun, why = nbformat.read(file, as_version=4), time.monotonic(), ''
    client = NotebookClient(nb, timeout=LIMIT, kernel_name='python3', store_widget_state=False,
                            extra_arguments=['--IPKernelApp.log_level=50'], resources={'metadata': {'path': str(file.parent)}})
    try: client.execute()
    except CellTimeoutError as late: why = str(late).splitlines()[0]
    except DeadKernelError: why = 'the kernel died'
    except CellExecutionError as error: why = f'{error.ename}: {error.evalue}'
    said = ''.join(output.get('text', '') for cell in nb.cells for output in cell.get('outputs', []))
    return time.monotonic() - begun, re.findall(r'^Skipped: .*', said, re.M), why

def check(folder, name):
    "Run a page twice; a line about it, and what is wrong."
    needs_data = re.search(r'"#\|\s*data\b', (folder/name).read_text(encoding='utf-8'))
    first, skipped, why = execute(folder/name)
    if why: return f'{first:6.1f} s  {name}', [why]
    second, _, why = execute(folder/name)
    wrong = [f'the second time: {why}'] if why else []
    if needs_data and not skipped: wrong.append('no cell says that it is skipped')
    if 'tutorials' in name.parts and first > 30 and second > first/2: wrong.append('the second run did not find what the first had kept')
    return f'{first:6.1f} s, again {second:6.1f} s{f", {len(skipped)} cells skipped" if skipped else ""}  {name}', wrong

def main():
    os.environ.pop('NIH14', None)
    os.environ.pop('LONG', None)
    os.environ.setdefault('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = clone(Path(folder).resolve()/'clone')
        os.environ['PYTHONPATH'] = str(folder)
        for name in pages(sys.argv[1:]):
            line, wrong = check(folder, name)
            failed += bool(wrong)
            print(f'{"FAILED" if wrong else "passed":8}{line}', *[f'        {one}' for one in wrong], sep='\n', flush=True)
    return failed > 0

if __name__ == '__main__': sys.exit(main())
