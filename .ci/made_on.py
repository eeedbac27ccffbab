"""A page says where its stored numbers come from: the cell that ends it is written when .ci/notebooks.py runs it.

It is a cell, so that JupyterLab, VS Code and the site all show it. A page that was not run since has none, and experiments
have none: papermill would copy it into runs on other machines."""
import platform, re
from importlib.metadata import version

import nbformat

NAME = 'made-on' # of the cell
PACKAGES = {'torch': 'PyTorch', 'numpy': 'NumPy', 'pandas': 'pandas', 'scikit-learn': 'scikit-learn'} # their versions move numbers

def place():
    "This environment in words, as a kernel started from it computes."
    from cxr_influence.runs.runs import _place
    here = _place()
    threads = f'{here["threads"]} thread' + 's'*(here['threads'] != 1)
    packages = ', '.join(f'{name} {version(package)}' for package, name in PACKAGES.items())
    return f'{here["device"].upper()} ({platform.machine()}), {threads}, Python {here["python"]}, {packages}'

def sentences(nb, where):
    "What the reader of a page is told."
    marks = sorted({mark for cell in nb.cells if cell.cell_type == 'code' for mark in re.findall(r'^#\|\s*(data|gpu|slow)\b', cell.source, re.M)})
    marked = f' Cells marked {", ".join(f"`{mark}`" for mark in marks)} keep those of the computer they were last run on.' if marks else ''
    return (f'*Outputs stored with* {where}.{marked} Elsewhere labels, splits and counts are the same; losses and AUROC of a trained network '
            'differ in the second digit, scores of single images as much as between two seeds, and times most.')

def note(nb, file):
    "End a page that shows outputs with where they come from."
    nb.cells = [cell for cell in nb.cells if cell.get('id') != NAME]
    if file.parent.name == 'experiments' or not any(cell.get('outputs') for cell in nb.cells): return
    cell = nbformat.v4.new_markdown_cell(sentences(nb, place()))
    cell.id = NAME
    nb.cells.append(cell)
