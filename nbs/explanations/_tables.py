"""Tables of runs that take hours, kept beside the pages that read them.

The cell that makes such a run is skipped where there is no data or no time for it; what it kept is read everywhere,
and says which commit made it."""
import json, shutil, tempfile
from pathlib import Path

import pandas as pd

from cxr_influence.data.files import InputError, _checksum

KEPT = Path(__file__).resolve().parent / 'tables'
FACTS = ['experiment', 'parameters', 'version', 'source', 'commit', 'device', 'cores',
         'threads', 'python', 'torch', 'start', 'seconds', 'attempts', 'results']

def keep_tables(folder, to=KEPT) -> Path: # of the kept tables
    "Keep the tables of a complete run of committed code, and what made them. Raises `InputError`."
    folder = Path(folder)
    record = json.loads((folder / 'run.json').read_text(encoding='utf-8'))
    if record['status'] != 'complete':
        raise InputError(f'{folder} is {record["status"]}: keep the tables of a complete run.')
    if record.get('changed_since') or 'commit' not in record:
        raise InputError(f'{folder} was made by code that is in no commit: commit, and run '
                         'it again.')
    tables = {name: noted for name, noted in record['results'].items() if name.endswith('.csv')}
    facts = {key: record[key] for key in FACTS if key in record} | {'results': tables}
    facts['parameters'] = {key: _without_place(value)
                           for key, value in facts['parameters'].items()}
    target = Path(to) / record['experiment'] / folder.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as part:
        part = Path(part) / 'tables'
        part.mkdir()
        for name in tables: shutil.copyfile(folder / name, part / name)
        (part / 'run.json').write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
        check_tables(part)
        if target.exists(): target.rename(part.with_name('before'))
        part.rename(target)
    return target

def _without_place(value): # a folder elsewhere is of no use to a reader; its name is
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

def check_tables(folder) -> dict: # what made them
    "Compare kept tables with their checksums. Raises `InputError`."
    facts = json.loads((Path(folder) / 'run.json').read_text(encoding='utf-8'))
    for name, noted in facts['results'].items():
        if not (Path(folder) / name).is_file() or _checksum(Path(folder) / name) != noted:
            raise InputError(f'{Path(folder) / name} is not as the run wrote it.')
    return facts

def kept_runs(places:dict) -> dict: # name -> folder
    "Find kept tables, `experiment/run` each, and check them. Raises `InputError`."
    folders = {name: KEPT / place for name, place in places.items()}
    for folder in folders.values(): check_tables(folder)
    return folders

def describe_runs(folders:dict) -> pd.DataFrame: # one row per run
    "Say what made kept tables."
    rows = {}
    for name, folder in folders.items():
        facts = check_tables(folder)
        rows[name] = {'commit': facts['commit'], 'day': facts['start'][:10],
                      'device': facts['device'], 'cores': facts['cores'],
                      'torch': facts['torch']}
    return pd.DataFrame(rows).T
