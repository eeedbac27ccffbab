"The style sheet of the figures."
import itertools, re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat, numpy as np
import pytest
from matplotlib.colors import to_rgb

ROOT = Path(__file__).resolve().parents[1]

# Machado et al. (2009), severity 1, on linear RGB.
SEEN_WITH = {
    'normal vision': np.eye(3),
    'protanopia': [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    'deuteranopia': [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    'tritanopia': [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}
TO_XYZ = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])

def lab(color, seen): # CIELAB of what is seen
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= .04045, rgb/12.92, ((rgb + .055)/1.055)**2.4)
    xyz = TO_XYZ @ np.clip(np.array(SEEN_WITH[seen]) @ linear, 0, 1)/np.array([.9505, 1, 1.089])
    f = np.where(xyz > (6/29)**3, np.cbrt(xyz), xyz/(3*(6/29)**2) + 4/29)
    return np.array([116*f[1] - 16, 500*(f[0] - f[1]), 200*(f[1] - f[2])])

def apart(colors, seen): return min(np.linalg.norm(lab(a, seen) - lab(b, seen)) for a, b in itertools.combinations(colors, 2))

@pytest.mark.parametrize('seen', SEEN_WITH)
def test_colors_are_told_apart_by_everyone(seen):
    with plt.style.context('cxr_influence.figures'):
        colors = plt.rcParams['axes.prop_cycle'].by_key()['color']
    assert len(colors) == 7 and apart(colors, seen) > 15
    assert apart(['tab:red', 'tab:green'], 'deuteranopia') < apart(colors, 'deuteranopia') # those it takes the place of

def test_figures_name_no_color_that_the_sheet_does_not_set():
    "Where a page uses the sheet, its colors are the sheet's, by their place, or greys."
    pages = [nbformat.read(file, 4) for file in ROOT.glob('nbs/*/*.ipynb')]
    sources = ['\n'.join(cell.source for cell in page.cells if cell.cell_type == 'code') for page in pages]
    styled = [source for source in sources if "style.use('cxr_influence.figures')" in source]
    assert len(styled) > 20
    for source in styled: assert not re.findall(r"""'(?:tab:\w+|#[0-9a-fA-F]{6}|skyblue|red|green|blue|orange)'""", source)

def test_the_package_draws_in_the_colors_of_the_sheet():
    "A figure of the package takes the cycle of whatever style is in use; maps are for images and tables alone."
    drawing = [file for file in ROOT.glob('cxr_influence/*/*.py') if 'plt.' in file.read_text()]
    assert len(drawing) > 5
    for file in drawing:
        source = file.read_text()
        assert not re.findall(r"""get_cmap|['"](?:tab:\w+|tab[12]0\w?|#[0-9a-fA-F]{6}|skyblue|red|green|blue|orange)['"]""", source), file
        assert set(re.findall(r"""cmap=['"](\w+)""", source)) <= {'gray', 'Blues'}, file

def test_detection_curves_draw_every_score_and_no_two_alike():
    import pandas as pd
    from cxr_influence.evidence.label_errors import plot_detection
    rng, names = np.random.default_rng(0), [f'score {k}' for k in range(16)]
    scores = pd.DataFrame(rng.random((40, 16)), columns=names)
    lines = plot_detection([(scores, pd.Series(rng.random(40) < .2))], names).axes[0].lines[:16]
    assert [line.get_label() for line in lines] == names
    with plt.style.context('cxr_influence.figures'):
        lines = plot_detection([(scores, pd.Series(rng.random(40) < .2))], names).axes[0].lines[:16]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 16
