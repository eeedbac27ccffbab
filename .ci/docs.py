"""Build the site and fail on a broken link: with Quarto where it is installed, else with smalldocs. `docs.py [FOLDER]`

It is FOLDER/_docs, by default _docs of the repository. nbdev's processors turn each notebook into a page in _proc. Nothing
is run: `skip_procs` in settings.ini leaves the exported cells on their pages, and outputs are the stored ones. What is added
here: an exported cell can be linked to by the name it defines, names in backticks lead to this site and not to the published
one, and pages are called as their notebooks are; enrich.py adds the reference, citations, alternative texts and cards."""
import ast, json, os, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
INTO = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
os.chdir(ROOT)
import enrich, yaml
from execnb.nbio import mk_cell, read_nb, write_nb
from nbdev.config import get_config
from nbdev.doclinks import _nbpath2html, nbglob
from nbdev.processors import FilterDefaults

PROC, SITE = INTO/'_proc', INTO/'_docs'
notebooks = [f.relative_to(ROOT) for f in nbglob(ROOT, as_path=True).sorted()]
papers = enrich.literature(ROOT/'nbs/references.bib')

def exported(cell):
    "The markdown cells to put around an exported cell: a box that styles.css marks, with an anchor for each name it defines."
    names = [d.name.lower() for d in ast.parse(cell.source).body if isinstance(d, (ast.FunctionDef, ast.ClassDef))]
    anchors = ''.join(f'[]{{#{name}}}' for name in names[1:])
    first = f':::: {{{"#" + names[0] + " " if names else ""}.exported}}'
    return mk_cell(f'{first}\n\n{anchors}' if anchors else first, 'markdown'), mk_cell('::::', 'markdown')

def take(file):
    "Copy a file that a page needs or links to."
    (PROC/file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, PROC/file)

GLOSSARY = Path('nbs/explanations/glossary.ipynb')

def terms_and_uses():
    "The glossary's terms, and for each the pages that use it most often: (title, address from the glossary)."
    prose = {f: '\n'.join(c.source for c in read_nb(f).cells if c.cell_type == 'markdown') for f in notebooks}
    terms = enrich.glossary(prose.pop(GLOSSARY))
    def uses(term):
        count = {f: len(re.findall(rf'(?<![\w-]){re.escape(term)}', text)) for f, text in prose.items() if f.stem != 'index'}
        return [(prose[f].split('\n')[0][2:], os.path.relpath(f, GLOSSARY.parent)) for f in sorted(count, key=count.get, reverse=True)[:3] if count[f] > 1]
    return terms, {term: uses(term) for term in terms}

def pages():
    "Process every notebook into _proc."
    (terms, uses), tags = terms_and_uses(), enrich.tags(notebooks)
    cfg, published = get_config(), {_nbpath2html(f).as_posix(): f for f in notebooks}
    base = re.escape(f'{cfg.doc_host}{cfg.doc_baseurl}/')
    for file in notebooks:
        nb, cells, left = read_nb(file), [], terms.keys() - enrich.COMMON
        FilterDefaults()(nb)
        here = lambda m: os.path.relpath(published[m[1]], file.parent) if m[1] in published else m[0]
        for cell in nb.cells:
            if not cell.source.strip() and not cell.get('outputs'): continue
            if cell.cell_type == 'raw': cell.source = re.sub(r'^output-file:.*\n', '', cell.source, flags=re.M)
            if cell.cell_type == 'markdown':
                cell.source = re.sub(r'\[\[(`[^`]+`)\]\([^)]*\)\](\([^)]*\))', r'[\1]\2', cell.source) # nbdev links a name inside a link
                cell.source = enrich.cite(re.sub(rf'{base}([\w./-]+\.html)', here, cell.source), papers)
                cell.source = enrich.link_back(cell.source, uses) if file == GLOSSARY else \
                    enrich.link_terms(cell.source, terms, left, os.path.relpath(GLOSSARY, file.parent))
                for target in re.findall(r'(?:\]\(|\b(?:src|href)=")([^)"\s#]+)', cell.source):
                    wanted = Path(os.path.normpath(file.parent/target))
                    if wanted.suffix != '.ipynb' and wanted.is_file() and '..' not in wanted.parts: take(wanted)
            around = exported(cell) if {'export', 'exports', 'exporti'} & cell.get('directives_', {}).keys() else ()
            cells += [*around[:1], cell, *around[1:]]
        nb.cells = cells
        enrich.describe_figures(cells)
        enrich.fold_imports(cells)
        front = yaml.safe_load(cells[0].source.strip().strip('-'))
        picture = Path('nbs/images/cards')/f'{"-".join(file.with_suffix("").parts[1:])}.png'
        enrich.card(front['title'], front['description'], enrich.first_picture(cells), PROC/picture)
        front['image'] = os.path.relpath(picture, file.parent)
        if file in tags: front |= {'categories': tags[file], 'order': list(tags).index(file)}
        cells[0].source = f'---\n{yaml.safe_dump(front)}---\n'
        (PROC/file).parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, PROC/file)

def config(quarto):
    "_quarto.yml for _proc: the sidebar's patterns filled in, and for smalldocs without the keys that it has no use for."
    cfg = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    bar, listed = cfg['website']['sidebar'], set()
    cfg['project']['render'].append('404.qmd')
    for section in bar['contents']:
        if isinstance(section['contents'], str):
            written = [*notebooks, *sorted(f.relative_to(PROC) for f in PROC.glob('nbs/*/*.qmd'))]
            pattern = re.sub(r'\.\w+$', '.*', section['contents']) # pages of both kinds
            section['contents'] = [f.as_posix() for f in written if f.match(pattern) and f.stem != 'index'
                                   and len(f.parts) == pattern.count('/') + 1]
        listed |= set(section['contents'])
    bar['contents'] = [section for section in bar['contents'] if section['contents']]
    if lost := {f.as_posix() for f in notebooks} - listed: sys.exit(f'Not in the sidebar of _quarto.yml: {", ".join(sorted(lost))}')
    if not quarto:
        html = cfg['format']['html']
        for key in ('html-math-method', 'grid', 'canonical-url', 'lightbox'): html.pop(key, None)
        html['theme'] = {mode: next(theme for theme in themes if not theme.endswith('.scss')) for mode, themes in html['theme'].items()}
    (PROC/'_quarto.yml').write_text(yaml.safe_dump(cfg, sort_keys=False), encoding='utf-8')

def mathml(site):
    "Turn the TeX in smalldocs' pages into MathML, which browsers draw by themselves: no script from elsewhere."
    from html import unescape
    from latex2mathml.converter import convert
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        for delimiters, display in ((r'\\\((.*?)\\\)', 'inline'), (r'\\\[(.*?)\\\]', 'block')):
            text = re.sub(rf'(<(?:span|div|p) class="math[^"]*">)\s*{delimiters}', lambda m: m[1] + convert(unescape(m[2]), display=display), text, flags=re.S)
        page.write_text(re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?', '', text), encoding='utf-8')

class Page(HTMLParser):
    "What a page offers as anchors, and where it leads."
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ('id', 'name') if given.get(key)}
        if given.get('data-category'): self.anchors.add(f'category={given["data-category"]}') # of a list of pages: its script shows one
        if tag == 'a' and given.get('href'): self.links.append(given['href'])

def broken_anchors(site):
    "Links inside the site to a page or an anchor that is not there."
    pages = {file.resolve(): Page(file.read_text(encoding='utf-8')) for file in site.rglob('*.html')}
    for file, page in pages.items():
        for link in page.links:
            path, _, anchor = unquote(link).partition('#')
            if re.match(r'[a-z]+:|//', path) or (path and not path.endswith('.html')): continue
            target = (file.parent / path).resolve() if path else file
            if target not in pages: yield f'{file.relative_to(site.resolve())}: no page {path}'
            elif anchor and anchor not in pages[target].anchors:
                yield f'{file.relative_to(site.resolve())}: no anchor {link}'

def main():
    quarto, smalldocs = shutil.which('quarto'), shutil.which('smalldocs', path=Path(sys.executable).parent)
    if not quarto and not smalldocs: print('The site needs Quarto, or Python 3.11 for smalldocs.'); return 77
    shutil.rmtree(PROC, ignore_errors=True)
    pages()
    for file in ('nbs/styles.css', 'nbs/site.html', 'nbs/fonts.scss', 'nbs/references.bib', 'nbs/images/icon.svg'): take(Path(file))
    enrich.reference(ROOT, PROC, notebooks, get_config(), papers)
    enrich.other_pages(PROC, papers)
    enrich.tagged_pages(PROC, notebooks)
    config(quarto)
    built = subprocess.run([quarto, 'render', PROC, '--no-execute'] if quarto else [smalldocs, 'render', PROC])
    if built.returncode: return built.returncode
    if not quarto:
        mathml(PROC/'_docs')
        enrich.finish(PROC/'_docs', yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['site-url'])
    root = PROC/'_docs/index.html'
    if not root.exists(): root.write_text('<!DOCTYPE html><meta http-equiv="refresh" content="0; url=nbs/index.html"><title>cxr_influence</title>\n')
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(PROC/'_docs', SITE)
    broken = []
    if smalldocs:
        config(quarto=False)
        said = subprocess.run([smalldocs, 'check', PROC], text=True, stdout=subprocess.PIPE).stdout.splitlines()
        broken = [line for line in said if not re.search(r'unknown key|is ignored|is not read by smalldocs', line)]
    broken += sorted(set(broken_anchors(SITE)))
    print(*broken, f'The site is in {SITE}/index.html', sep='\n')
    return bool(broken)

if __name__ == '__main__': sys.exit(main())
