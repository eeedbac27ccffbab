"""What the site has beyond its notebooks' text: the reference, citations, alternative texts, cards, pictures as files.

Everything that changes what a page says is done before the page is rendered, and so holds for Quarto and for its stand-in;
`finish` then gives the stand-in's pages what Quarto's have of themselves."""
import ast, base64, hashlib, importlib, inspect, io, json, re, struct, sys, textwrap
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote

# --- literature ---------------------------------------------------------------------------------------------------------

def literature(file):
    "The entries of a .bib file by (first surname in lower case, year): key, authors, title and address."
    entries = {}
    for key, body in re.findall(r'^@\w+\{(\w+),(.*?)\}\}?\s*(?=^@|\Z)', file.read_text(encoding='utf-8'), re.M | re.S):
        given = {name: value for name, value in re.findall(r'(\w+) = \{(.*?)\}(?:,\s|\s*$|$)', body + '}', re.S)}
        names = [name.split(',')[0] for name in given['author'].split(' and ')]
        entries[re.sub(r'\W', '', names[0]).lower(), given['year']] = dict(given, key=key, names=names)
    return entries

CITED = re.compile(r"\b([A-Z][\w\-]+)( et al\.| and [A-Z][\w'\-]+)?,? (\((?:19|20)\d\d\)|(?:19|20)\d\d\b)")
UNTOUCHED = re.compile(r'(```.*?```|`[^`\n]*`|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|\$\$.*?\$\$|\$[^$\n]+\$)', re.S)

def _key(name, year): return re.sub(r'\W', '', name).lower(), year.strip('()')

def cite(markdown, entries):
    "Link each citation, `Pruthi et al. 2020`, to the paper; code, links and mathematics stay."
    def linked(match):
        entry = entries.get(_key(match[1], match[3]))
        return f'[{match[0]}]({entry["url"]})' if entry else match[0]
    parts = UNTOUCHED.split(markdown)
    return ''.join(part if number % 2 else CITED.sub(linked, part) for number, part in enumerate(parts))

def uncited(markdown, entries):
    "The citations in a text, `Name et al. 2020`, that the bibliography does not have."
    found = CITED.findall(' '.join(UNTOUCHED.split(markdown)[::2]))
    return sorted({f'{name}{more} {year}' for name, more, year in found if more and _key(name, year) not in entries})

def bibliography(entries):
    "The page of the literature, as Markdown."
    rows = sorted(entries.values(), key=lambda entry: (entry['names'][0].lower(), entry['year']))
    def line(entry):
        names = [name for name in entry['names'] if name != 'others']
        who = ', '.join(names) + (' et al.' if 'others' in entry['names'] else '')
        return f'* []{{#{entry["key"]}}}{who} ({entry["year"]}). [{entry["title"]}]({entry["url"]}).'
    return '\n'.join(map(line, rows))

# --- glossary -----------------------------------------------------------------------------------------------------------

COMMON = {'finding', 'split', 'run', 'margin', 'recipe', 'influence', 'checkpoint', 'budget', 'top', 'bottom', 'stratified', 'redundancy', 'cosine', 'smoothness'}
ROW = re.compile(r'^\| ([^|$]+?) \|([^|]*)\|(.*)\|$', re.M)

def glossary(markdown):
    "The terms of the glossary's tables: term -> anchor. What is common in every sentence is not linked from the pages."
    cells = [match[1] for match in ROW.finditer(markdown) if match[1] not in ('term', 'symbol', '---')]
    return {term.strip(): re.sub(r'\W+', '-', cell.lower()).strip('-') for cell in cells for term in cell.split(',')}

def link_terms(markdown, terms, left, page):
    "Link the first use of each glossary term on a page; `left` are those not linked yet, and shrinks."
    def in_text(part):
        for term in sorted(left, key=len, reverse=True):
            found = re.search(rf'(?<![\w-])({re.escape(term)}s?)(?![\w-])', part)
            if found and '](' not in part[max(0, found.start() - 1):found.end() + 2]:
                left.discard(term)
                return in_text(part[:found.start()]) + f'[{found[1]}]({page}#{terms[term]}){{.term}}' + in_text(part[found.end():])
        return part
    def in_line(line):
        if re.match(r'\s*(#|\||>|:::|---)', line): return line
        return ''.join(part if n % 2 else in_text(part) for n, part in enumerate(UNTOUCHED.split(line)))
    blocks = re.split(r'(```.*?```|\$\$.*?\$\$)', markdown, flags=re.S)
    return ''.join(block if n % 2 else '\n'.join(map(in_line, block.split('\n'))) for n, block in enumerate(blocks))

def link_back(markdown, uses):
    "Give each row of the glossary an anchor, and the pages that use its term most: `uses` is term -> [(title, address)]."
    def row(match):
        if match[1] in ('term', 'symbol', '---'): return match[0]
        anchor = re.sub(r'\W+', '-', match[1].lower()).strip('-')
        pages = dict.fromkeys(place for term in match[1].split(',') for place in uses.get(term.strip(), []) if place[1] not in match[3])
        pages = list(pages)[:2]
        more = '. See ' + ', '.join(f'[{title}]({address})' for title, address in pages) + '.' if pages else ''
        return f'| []{{#{anchor}}}{match[1]} |{match[2]}|{match[3].rstrip()}{more} |'
    return ROW.sub(row, markdown)

# --- alternative texts --------------------------------------------------------------------------------------------------

LABELS = {'set_title', 'suptitle', 'title', 'set_xlabel', 'set_ylabel', 'xlabel', 'ylabel', 'supxlabel', 'supylabel', 'fig_title'}

def _words(node):
    "The text of a string, with an ellipsis for what is computed."
    if isinstance(node, ast.Constant): return node.value if isinstance(node.value, str) else ''
    if isinstance(node, ast.JoinedStr): return ''.join(_words(part) if isinstance(part, ast.Constant) else '…' for part in node.values)
    return ''

def _written_in_figure(code):
    "The titles and the axis labels that a cell gives its figure."
    titles, axes = [], []
    try: tree = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', code, flags=re.M))
    except SyntaxError: return titles, axes
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
        given = [(name, call.args[0])] if name in LABELS and call.args else []
        given += [(k.arg, k.value) for k in call.keywords if k.arg in LABELS]
        for label, value in given:
            text = re.sub(r'\s+', ' ', _words(value)).strip(' …')
            if text: (titles if 'title' in label else axes).append(text)
    return list(dict.fromkeys(titles)), list(dict.fromkeys(axes))

def _sentence(markdown, last=False):
    "The first, or the last, sentence of a text, without its markup."
    text = re.sub(r'(^#.*$|^>.*$|^:::.*$|^\|.*$|```.*?```)', '', markdown, flags=re.M | re.S)
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', text)
    text = re.sub(r'\[\]\{[^}]*\}|\{\.\w+\}|[*`$\\]|^\s*[-*] ', '', text, flags=re.M)
    sentences = [s for s in re.split(r'(?<=[.:?!])\s+(?=[A-Z])', re.sub(r'\s+', ' ', text).strip()) if s]
    return (sentences[-1 if last else 0] if sentences else '').rstrip(':')

def describe(code, before, after):
    "An alternative text for a cell's figure: its titles and axes, and the sentence beside it."
    titles, axes = _written_in_figure(code)
    said = _sentence(before, last=True) or _sentence(after)
    parts = ['Figure' + (f': {"; ".join(titles[:4])}' if titles else '')]
    if axes: parts.append('Axes: ' + ', '.join(axes[:4]))
    if said: parts.append(said)
    text = '. '.join(part.rstrip('. ') for part in parts) + '.'
    return text if len(text) <= 400 else text[:398].rsplit(' ', 1)[0] + ' …'

def describe_figures(cells):
    "Give each cell that shows a picture Quarto's option `fig-alt`."
    def near(places): return next((cells[i].source for i in places if cells[i].cell_type == 'markdown' and _sentence(cells[i].source)), '')
    for number, cell in enumerate(cells):
        shows = any(kind.startswith('image/') for out in cell.get('outputs', []) for kind in out.get('data', {}))
        if cell.cell_type != 'code' or not shows or 'fig-alt:' in cell.source: continue
        text = describe(cell.source, near(range(number - 1, max(-1, number - 4), -1)), near(range(number + 1, min(len(cells), number + 3))))
        cell.source = f'#| fig-alt: {json.dumps(text, ensure_ascii=False)}\n{cell.source}'

def fold_imports(cells):
    "Fold the cells of many lines that only import: a page begins with what it is about. Printed pages show them."
    for cell in cells:
        if cell.cell_type != 'code' or cell.get('outputs') or len(cell.source.splitlines()) < 6: continue
        try: lines = ast.parse(cell.source).body
        except SyntaxError: continue
        if lines and all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in lines[:-1]) and isinstance(lines[0], (ast.Import, ast.ImportFrom)) \
           and (isinstance(lines[-1], (ast.Import, ast.ImportFrom)) or cell.source.rstrip().splitlines()[-1].startswith('guard_cells')):
            cell.source = f'#| code-fold: true\n#| code-summary: "Imports"\n{cell.source}'

# --- cards --------------------------------------------------------------------------------------------------------------

def card(title, line, picture, file):
    "Draw the card that a link to a page is shown with: its title, its line and its first figure."
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont
    def font(size, weight='normal'): return ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(family='DejaVu Sans', weight=weight)), size)
    sheet = Image.new('RGB', (1200, 630), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, 1200, 14), fill='#1f6f8b')
    draw.text((50, 44), 'cxr_influence', fill='#1f6f8b', font=font(26, 'bold'))
    lines = textwrap.wrap(title, 40)[:2]
    draw.multiline_text((50, 92), '\n'.join(lines), fill='#111', font=font(44, 'bold'), spacing=12)
    top = 104 + 60*len(lines)
    words = textwrap.wrap(line, 84)[:2]
    draw.multiline_text((50, top), '\n'.join(words), fill='#444', font=font(24), spacing=8)
    top += 34*len(words) + 16
    if picture:
        with Image.open(io.BytesIO(picture)) as figure:
            figure = figure.convert('RGBA')
            figure.thumbnail((1100, 610 - top))
            sheet.paste(figure, ((1200 - figure.width)//2, top), figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(64).save(file, optimize=True)

def first_picture(cells):
    "The first PNG that a page shows."
    found = (out['data']['image/png'] for cell in cells for out in cell.get('outputs', []) if 'image/png' in out.get('data', {}))
    value = next(found, None)
    return base64.b64decode(''.join(value)) if value else None

# --- tags by task -------------------------------------------------------------------------------------------------------

TAGS = { # what a reader wants to do -> the pages that help, the first to read first
    'find label errors': 'tutorials/find_mislabeled_images explanations/what_the_evidence_says 6_evidence/05_label_errors experiments/label_errors',
    'review images': 'tutorials/find_mislabeled_images 7_review/01_queue 7_review/02_widget experiments/relabelled',
    'choose training images': 'tutorials/quickstart tutorials/how_small explanations/what_the_evidence_says 6_evidence/03_subsets 6_evidence/04_comparison '
                              '5_attribution/06_pools experiments/subsets',
    'explain a prediction': 'tutorials/follow_one_diagnosis 5_attribution/05_pairwise',
    'compute influence': 'tutorials/quickstart 5_attribution/01_tracin 5_attribution/04_scoring 5_attribution/07_unrolling 5_attribution/08_whole_run '
                         '5_attribution/09_every_step experiments/influence howto/scores_into_pandas',
    'test a score': 'explanations/what_the_evidence_says explanations/what_tracin_measures explanations/predictable_runs explanations/claims 6_evidence/02_valuations '
                    '6_evidence/06_faithfulness 6_evidence/07_stability 6_evidence/09_bank 6_evidence/10_peers experiments/faithfulness experiments/board',
    'use NIH ChestX-ray14': 'howto/real_nih explanations/real_radiographs explanations/splits explanations/datasheet 1_data/02_splits 1_data/03_nih '
                            '1_data/08_annotations 1_data/09_duplicates 1_data/10_composition 1_data/11_download',
    'use your own data': 'howto/other_datasets 1_data/06_tables',
    'use your own model': 'howto/own_model 4_training/10_imports 4_training/00_weights',
    'train and evaluate': 'experiments/baseline explanations/real_radiographs 4_training/05_loop 4_training/08_recipes 4_training/07_evaluation 4_training/09_model_card '
                          '3_measures/01_metrics 3_measures/02_calibration 3_measures/03_intervals',
    'use GPUs or a cluster': 'howto/several_gpus howto/sweep_on_a_cluster 4_training/03_distributed benchmarks/accelerators',
    'estimate time and memory': 'explanations/what_it_costs explanations/why_it_is_fast benchmarks/scoring_speed benchmarks/training_speed benchmarks/loading '
                                'benchmarks/whole_jobs benchmarks/rows',
    'run and report': '8_runs/06_pipeline 8_runs/02_runs 8_runs/03_sweeps 8_runs/04_report 8_runs/05_cli benchmarks/faults',
    'extend or contribute': 'howto/add_a_valuation explanations/architecture project/contributing',
}

def tags(notebooks):
    "The tags of each page that has any. A page that is not there is an error."
    found = {}
    for tag, names in TAGS.items():
        for name in names.split(): found.setdefault(Path('nbs', f'{name}.ipynb'), []).append(tag)
    if gone := found.keys() - set(notebooks): raise SystemExit(f'TAGS of .ci/enrich.py name pages that are not there: {", ".join(map(str, sorted(gone)))}')
    return found

def tagged_pages(proc, notebooks):
    "Write the page that lists the tagged pages: a click on a tag leaves those of a task."
    listing = {'contents': [f'../{file.relative_to("nbs").as_posix()}' for file in tags(notebooks)], 'type': 'table', 'sort': 'order', 'page-size': 100,
               'fields': ['title', 'description', 'categories'], 'field-display-names': {'title': 'page', 'description': 'what it is about', 'categories': 'task'},
               'categories': 'unnumbered', 'sort-ui': False, 'filter-ui': False}
    front = {'title': 'Pages by task', 'description': 'Choose a task: the pages that help with it are left, the first to be read first.', 'toc': False, 'listing': listing}
    tasks = ' · '.join(f'[{tag}](#category={quote(tag)})' for tag in TAGS)
    (proc/'nbs/explanations/by_task.qmd').write_text(f'---\n{json.dumps(front, indent=1)}\n---\n\n{tasks}\n', encoding='utf-8')

# --- the reference ------------------------------------------------------------------------------------------------------

TASKS = { # what a user comes for -> the verbs that do it, and a page that shows them at work
    'Read a data set, or make one': ('read_nih read_dataset findings_of load_data Data make_phantom project_path', '../howto/other_datasets.ipynb'),
    'Train a classifier, or bring one': ('Recipe fit trained list_checkpoints evaluate_checkpoint import_checkpoint', '../howto/own_model.ipynb'),
    'Score training images by their influence': ('influence pairwise open_pairwise show_extremes score_images load_pool query_losses peer_scores', '../tutorials/follow_one_diagnosis.ipynb'),
    'Follow influence through a whole training': ('unroll along every_step smoothness', '../explanations/predictable_runs.ipynb'),
    'Find mislabeled images': ('valuations label_error_scores', '../tutorials/find_mislabeled_images.ipynb'),
    'Have them reviewed': ('review_queue batch_for_review review_page read_review review_agreement review_differences apply_review', '../tutorials/find_mislabeled_images.ipynb'),
    'Retrain on some images, and compare': ('subset_grid run_subsets subset_draws compare', '../tutorials/how_small.ipynb'),
    'Run experiments, and report': ('run repeat sweep plan collect report', '../howto/sweep_on_a_cluster.ipynb'),
}

def by_task(verbs, root):
    "The tables of the verbs: heading, the page that shows them, their names. Each verb has its place in one of them."
    placed = [name for names, _ in TASKS.values() for name in names.split()]
    assert sorted(placed) == sorted(verbs), f'TASKS of .ci/enrich.py and the verbs of the package differ: {sorted(set(placed) ^ set(verbs))}'
    for task, (names, page) in TASKS.items():
        title = json.loads((root/'nbs/reference'/page).resolve().read_text(encoding='utf-8'))['cells'][0]['source']
        yield task, re.search(r'^# (.*)', ''.join(title), re.M)[1], page, names.split()

def reference(root, proc, notebooks, cfg, entries):
    "Write one page a wing into _proc: each public name with signature, parameters, errors, literature, code and lesson."
    from smalldocs import api # reads docments, types and docstrings
    folder = proc/'nbs/reference'
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(root))
    wings, names = {}, []
    for page in notebooks:
        made = re.search(r'default_exp\s+([\w.]+)', (root/page).read_text(encoding='utf-8'))
        if made: wings.setdefault(page.parts[1], []).append((page, made[1]))
    for wing, pages in wings.items():
        number, _, short = wing.partition('_')
        parts = [f'---\ntitle: "Reference: {short}"\ndescription: "Every public name of `{cfg.lib_path.name}.{short}`, with its parameters, '
                 f'what it raises, its source and the lesson that builds it."\n---\n']
        for page, name in pages:
            module = importlib.import_module(f'{cfg.lib_path.name}.{name}')
            public = api.own(module)
            if not public: continue
            lesson = f'../{wing}/{page.name}'
            parts.append(f'## {name} {{#{name.replace(".", "-")}}}\n\n{cite(api.summary(module), entries)} Built in [the lesson]({lesson}).')
            for symbol in public:
                parts.append(_entry(api, symbol, 3, lesson, cfg, root, entries))
                names.append((symbol.__name__, short, api.summary(symbol)))
                if inspect.isclass(symbol): parts += [_entry(api, m, 4, lesson, cfg, root, entries) for m in api.methods(symbol)]
        (folder/f'{number}_{short}.qmd').write_text('\n\n'.join(parts) + '\n', encoding='utf-8')
    where = {short: f'{number}_{short}.qmd' for number, _, short in (wing.partition('_') for wing in wings)}
    verbs = [name for name in importlib.import_module(cfg.lib_path.name).__all__ if name != '__version__']
    listed = {name: f'| [`{name}`]({where[wing]}#{name}) | {wing} | {api.cell(cite(line, entries))} |' for name, wing, line in names}
    head = '| name | wing | what it does |\n|---|---|---|'
    tasks = [line for task, title, page, done_by in by_task(verbs, root)
             for line in (f'## {task}', '', f'At work in [{title}]({page}).', '', head, *(listed[name] for name in done_by), '')]
    (folder/'0_names.qmd').write_text('\n'.join([
        '---', 'title: "Reference: by task"', 'description: "The names of the package by task, and all of them in alphabetical order."', '---', '',
        f'`import {cfg.lib_path.name} as cxr` gives the names of the first tables. Every other name is imported from its module.', '', *tasks,
        '## All names', '', head, *(listed[name] for name in sorted(listed, key=str.lower)), '']), encoding='utf-8')
    return names

def _entry(api, symbol, level, lesson, cfg, root, entries):
    "One public name: its anchor, code, signature, docstring and parameters."
    name, module = symbol.__qualname__, sys.modules[symbol.__module__]
    head, *rest = api.entry(symbol, level).split('\n\n')
    file = Path(module.__file__).resolve().relative_to(root).as_posix()
    links = [f'[code]({cfg.git_url}/blob/{cfg.branch}/{file}#L{api.line_of(symbol)})']
    if level == 3: links.append(f'[lesson]({lesson}#{name.lower()})')
    rest = [part if part.startswith('```') else cite(part.replace(' | None | `None` |', ' |  | `None` |'), entries) for part in rest]
    rest = [re.sub(r'(Raises? `\w+`.*?\.)(?=\s|$)', r'**\1**', part) if not part.startswith(('```', '|')) else part for part in rest]
    return '\n\n'.join([f'{head} {{#{name}}}', f'::: {{.links}}\n{" · ".join(links)}\n:::', *map(_signature, rest)])

def _signature(part):
    "A long signature with one parameter a line."
    if not part.startswith('```python') or len(part) < 110: return part
    tree = re.match(r'```python\n(async )?([\w.]+)\((.*)\)( -> .*)?\n```$', part, re.S)
    if not tree: return part
    pieces, depth, quoted = [''], 0, ''
    for letter in tree[3]:
        if quoted: quoted = '' if letter == quoted else quoted
        elif letter in '"\'': quoted = letter
        depth += (letter in '([{') - (letter in ')]}') if not quoted else 0
        if letter == ',' and not depth and not quoted: pieces.append('')
        else: pieces[-1] += letter
    inner = ''.join(f'    {piece.strip()},\n' for piece in pieces)
    return f'```python\n{tree[1] or ""}{tree[2]}(\n{inner}){tree[4] or ""}\n```'

# --- pages without a notebook ---------------------------------------------------------------------------------------------

def other_pages(proc, entries):
    "The page of the literature, and the one for an address that leads nowhere."
    (proc/'nbs/project/references.qmd').write_text('\n'.join([
        '---', 'title: References', 'description: "The publications whose methods and data this project uses, as BibTeX too."', '---', '',
        'Citations on every page lead to the publication itself. The list as a file: [references.bib](../references.bib).', '',
        bibliography(entries), '']), encoding='utf-8')
    (proc/'404.qmd').write_text('\n'.join([
        '---', 'title: Page not found', 'search: false', 'toc: false', '---', '',
        'This address leads nowhere: the page was renamed, or it belongs to another version. Search above, or go on from here:', '',
        '* [Home](nbs/index.ipynb)', '* [Reference](nbs/reference/0_names.qmd)', '* [Glossary](nbs/explanations/glossary.ipynb)', '']), encoding='utf-8')

# --- the stand-in's pages -----------------------------------------------------------------------------------------------

def finish(site, address):
    "Pictures as files, loaded late; no font from elsewhere; canonical addresses; names for icons."
    for sheet in (site/'site_libs/themes').glob('*.css'):
        text = sheet.read_text(encoding='utf-8')
        sheet.write_text(re.sub(r'@import\s+url\(["\']?https?:[^)]*\);?', '', text), encoding='utf-8')
    pictures = site/'nbs/images/figures'
    for page in site.rglob('*.html'):
        text, here = page.read_text(encoding='utf-8'), page.parent
        def as_file(match):
            data = base64.b64decode(match[2])
            file = pictures/f'{hashlib.sha256(data).hexdigest()[:16]}.{match[1]}'
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists(): file.write_bytes(data)
            size = f' width="{struct.unpack(">I", data[16:20])[0]}" height="{struct.unpack(">I", data[20:24])[0]}"' if match[1] == 'png' else ''
            return f'src="{"../"*len(here.relative_to(site).parts)}nbs/images/figures/{file.name}" loading="lazy"{size}'
        text = re.sub(r'src="data:image/(png|jpeg|gif|webp);base64,([^"]+)"', as_file, text)
        text = text.replace(' role="img"></i>', ' aria-hidden="true"></i>')
        text = re.sub(r'(<a [^>]*data-bs-toggle="collapse"[^>]*?) role="navigation"', r'\1 role="button"', text)
        own = f'{address}/{page.relative_to(site).as_posix()}'
        if page.name != '404.html': text = text.replace('<title>', f'<link rel="canonical" href="{escape(own)}"><title>', 1)
        else: text = text.replace('<head>', f'<head><base href="{escape(re.sub(r"^https?://[^/]+", "", address))}/">', 1)
        page.write_text(text, encoding='utf-8')
