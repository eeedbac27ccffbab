"""Results that claims cite: tables that pages store, each with the commit that stored it.

`python nbs/explanations/_claims.py` writes them to `_claims.json`; run it once a page with new
outputs is committed."""
import json, re, subprocess
from pathlib import Path
from string import Formatter

from bs4 import BeautifulSoup

HERE = Path(__file__).resolve().parent
NBS, KEPT = HERE.parent, HERE / '_claims.json'
INTERVAL = re.compile(r'\s*([-+]?[\d.]+)(%?) \[([-+]?[\d.]+), ([-+]?[\d.]+)\]\s*')

class Number(float):
    "A number of a stored table, with the interval that stands beside it, if any."
    def __new__(cls, value, low=None, high=None):
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self
    @property
    def minus(self): # the same, counted the other way
        if self.low is None: return Number(-self)
        return Number(-self, -self.high, -self.low)
    def __format__(self, spec): # `.2fi`: with its interval
        if not spec.endswith('i'): return super().__format__(spec)
        one = [format(float(value), spec[:-1]) for value in (self, self.low, self.high)]
        return f'{one[0]} [{one[1]}, {one[2]}]'

def number(text):
    "Read a table's cell: `0.3`, `12%`, `0.3 [0.1, 0.4]`."
    if found := INTERVAL.fullmatch(text.replace('−', '-')):
        return Number(found[1], float(found[3]), float(found[4]))
    try: return Number(float(text.rstrip('%')) / (100 if text.endswith('%') else 1))
    except ValueError: return text

def _grid(rows): # cells of an HTML table's rows, each where it stands, and spans filled
    grid = {}
    for i, row in enumerate(rows):
        j = 0
        for cell in row(['th', 'td']):
            while (i, j) in grid: j += 1
            height, width = (int(cell.get(key, 1)) for key in ('rowspan', 'colspan'))
            for place in ((i + a, j + b) for a in range(height) for b in range(width)):
                grid[place] = cell
            j += width
    width = max((j for _, j in grid), default=-1) + 1
    return [[grid.get((i, j)) for j in range(width)] for i in range(len(rows))]

def _label(cells): # of a row or column: its levels, joined
    words = [cell.get_text(' ', strip=True) for cell in cells if cell is not None]
    return ' / '.join(word for word in words if word)

def parse_table(html):
    "[row label, column label -> text] of each row of a table as pandas writes it."
    table = BeautifulSoup(html, 'html.parser').find('table')
    body = _grid(table.tbody('tr'))
    if not body: return []
    first = next((j for j, cell in enumerate(body[0]) if cell.name == 'td'), 0)
    head = _grid(table.thead('tr'))
    head = [row for row in head if _label(row[first:])] # without the names of the index
    names = [_label(column) for column in list(zip(*head))[first:]]
    return [[_label(row[:first]), dict(zip(names, (_label([cell]) for cell in row[first:])))]
            for row in body]

def stored_tables(notebook):
    "Cell id -> the first table among its outputs, of a notebook as JSON."
    tables = {}
    for cell in notebook['cells']:
        pages = [''.join(o.get('data', {}).get('text/html', ''))
                 for o in cell.get('outputs', [])]
        pages = [html for html in pages if '<tbody' in html]
        if pages: tables[cell['id']] = parse_table(pages[0])
    return tables

def git(*arguments): # its answer, of this repository
    return subprocess.run(['git', *arguments], cwd=NBS, capture_output=True, text=True,
                          encoding='utf-8', check=True).stdout

def _versions(page): # (commit, date, path at that time) of a page, the newest first
    lines = git('log', '--first-parent', '-m', '--follow', '--format=%h %as',
                '--name-only', '--abbrev=12', '--',
                f'{NBS}/{page}').split()
    return list(zip(lines[::3], lines[1::3], lines[2::3]))

def first_stored(rows, versions):
    "The commit that stored these numbers first, and since when they stand unchanged."
    since = None
    for commit, date, path in versions:
        tables = stored_tables(json.loads(git('show', f'{commit}:{path}'))).values()
        if not any(_same_numbers(table, rows) for table in tables): break
        since = commit, date
    return since

def _same_numbers(table, rows): # names of rows and columns may have changed
    values = [[list(texts.values()) for _, texts in one] for one in (table, rows)]
    return values[0] == values[1]

def runs_of(notebook):
    "Experiment and name of the runs that a page reads; of an experiment's page, its own."
    source = '\n'.join(''.join(cell['source']) for cell in notebook['cells'])
    read = re.findall(r"\brun\('(\w+)', '([\w-]+)'", source)
    own = re.findall(r"\bstart_run\('(\w+)'", source)
    return {'/'.join(pair) for pair in read} | {f'{name}/by-hand' for name in own}

def read_sources(tables, history=True):
    "Name -> page, cell, runs, rows and, from git, the commit of each table that is cited."
    found, versions, pages = {}, {}, {}
    for name, (page, cell, *runs) in tables.items():
        if page not in pages: pages[page] = json.loads((NBS / page).read_text(encoding='utf-8'))
        stored = stored_tables(pages[page])
        if cell not in stored: raise LookupError(f'{page} has no table in cell {cell}: {name}')
        if lost := set(runs) - runs_of(pages[page]):
            raise LookupError(f'{page} reads no run {", ".join(sorted(lost))}: {name}')
        found[name] = dict(page=page, cell=cell, runs=runs, rows=stored[cell])
        if not history: continue
        if page not in versions: versions[page] = _versions(page)
        since = first_stored(stored[cell], versions[page])
        if not since: raise LookupError(f'Commit {page} first: its cell {cell} has new numbers.')
        found[name] |= dict(commit=since[0], date=since[1])
    return found

class Table(dict):
    "A kept table: `table[row][column]` is a `Number` or a text."
    def __init__(self, name, kept):
        self.name, self.page, self.runs = name, kept['page'], kept['runs']
        self.commit, self.date = kept['commit'], kept['date']
        rows = {}
        for label, texts in kept['rows']: rows.setdefault(label, []).append(texts)
        super().__init__(rows)
    def __missing__(self, row): raise LookupError(f'{self.name} has no row {row!r}')
    def __getitem__(self, row):
        rows = super().__getitem__(str(row))
        if len(rows) > 1: raise LookupError(f'{self.name} has {len(rows)} rows {row!r}')
        return Row({column: number(text) for column, text in rows[0].items()})

class Row(dict):
    def __missing__(self, column):
        if str(column) in self: return self[str(column)] # `format` makes 0 of '0'
        raise LookupError(f'no column {column!r}, but {", ".join(self)}')

def kept_tables():
    "Name -> `Table`, of what `_claims.json` keeps."
    kept = json.loads(KEPT.read_text(encoding='utf-8'))
    return {name: Table(name, entry) for name, entry in kept.items()}

def at(tables, place): # 'found[influence][at 10%]' -> its number
    return Formatter().get_field(place, (), tables)[0]

def page_text(page):
    "The words of a page's markdown cells, in one line."
    cells = json.loads((NBS / page).read_text(encoding='utf-8'))['cells']
    text = ' '.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return ' '.join(text.split())

def wrong_sentences(text, sentences, tables):
    "The sentences, numbers filled in from the tables, that a text does not have."
    filled = [' '.join(sentence.format(**tables).split()) for sentence in sentences]
    return [sentence for sentence in filled if sentence not in text]

def uncited_numbers(text, sentences, tables):
    "Decimal numbers of a text that stand in none of the sentences."
    for sentence in sentences:
        text = text.replace(' '.join(sentence.format(**tables).split()), ' ')
    return re.findall(r'(?<![\w.])[-−]?\d+\.\d+(?![\w.])', re.sub(r'\]\([^)]*\)', ']', text))

if __name__ == '__main__':
    from _claims_list import TABLES
    text = json.dumps(read_sources(TABLES), indent=1, ensure_ascii=False)
    KEPT.write_text(text + '\n', encoding='utf-8')
