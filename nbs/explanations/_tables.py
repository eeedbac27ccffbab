"""Tables of runs that take hours, kept beside the pages that read them.

The cell that makes such a run is skipped where there is no data or no time for it; what it kept is read everywhere,
and says which commit made it."""
import json
from pathlib import Path

import pandas as pd

from cxr_influence.data.files import InputError, _write_whole
from cxr_influence.runs.report import _read_run, _status
from cxr_influence.runs.runs import _damaged

KEPT = Path(__file__).resolve().parent / 'tables'
FACTS = ['experiment', 'parameters', 'version', 'source', 'commit', 'device', 'cores',
         'threads', 'python', 'torch', 'start', 'seconds', 'attempts']

def _undamaged(folder:Path) -> dict: # what made the tables of a run, or kept tables
    facts = _read_run(folder).facts
    if damaged := _damaged(folder):
        raise InputError(f'{folder / damaged[0]} is not as the run wrote it: run it again.')
    return facts

def keep_tables(folder, to=KEPT) -> Path: # of the kept tables
    "Keep the tables of a complete run of committed code, and what made them. Raises `InputError`."
    folder = Path(folder)
    facts = _undamaged(folder)
    if (status := _status(_read_run(folder))) != 'complete':
        raise InputError(f'{folder} is {status}: keep the tables of a complete run.')
    if facts.get('changed_since') or 'commit' not in facts:
        raise InputError(f'{folder} was made by code that is in no commit: commit, and run '
                         'it again.')
    target = Path(to) / facts['experiment'] / folder.name
    tables = {name: noted for name, noted in facts['results'].items() if name.endswith('.csv')}
    kept = {name: facts[name] for name in FACTS if name in facts} | dict(results=tables)
    kept['parameters'] = {name: _without_place(value)
                          for name, value in facts['parameters'].items()}
    for name in tables: _write_whole(target / name, (folder / name).read_bytes())
    _write_whole(target / 'run.json', json.dumps(kept, indent=1) + '\n') # last: it has the checksums
    for path in target.iterdir():
        if path.name not in {*tables, 'run.json'}: path.unlink() # of the run that was kept before
    return target

def _without_place(value): # a folder elsewhere is of no use to a reader; its name is
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

def kept_runs(places:dict) -> dict: # name -> folder
    "Find kept tables, `experiment/run` each. Raises `InputError` for none, or changed ones."
    folders = {name: KEPT / place for name, place in places.items()}
    for folder in folders.values(): _undamaged(folder)
    return folders

def describe_runs(folders:dict) -> pd.DataFrame: # one row per run
    "Say what made kept tables."
    facts = pd.DataFrame({name: _read_run(folder).facts for name, folder in folders.items()}).T
    return facts.assign(day=facts.start.str[:10])[['commit', 'day', 'device', 'cores', 'torch']]
