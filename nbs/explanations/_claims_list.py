"""The claims of this site: which table holds the number, and which sentences repeat it."""
from typing import NamedTuple

EVIDENCE = 'explanations/what_the_evidence_says.ipynb'
NOISY = 'label_errors/phantom', 'label_errors/nih14-mini'
HALVES = 'faithfulness/phantom', 'faithfulness/nih14-mini'
REMOVED = 'subsets/nih14-mini-remove', 'subsets/nih14-mini-select'

TABLES = { # name -> page, cell of the table, runs that it was read from
    'found': (EVIDENCE, 'wes-goals', *NOISY),
    'best': (EVIDENCE, 'wes-rival', *NOISY),
    'repaired': (EVIDENCE, 'wes-mend-table', *NOISY),
    'heads': (EVIDENCE, 'wes-lds-run', *HALVES),
    'stable': (EVIDENCE, 'wes-stable', *HALVES),
    'networks': (EVIDENCE, 'ev-ens', *HALVES),
    'seeds': (EVIDENCE, 'ev-by-seed', 'baseline/nih14-mini-small'),
    'tracks': (EVIDENCE, 'wes-partial', *HALVES),
    'counts': (EVIDENCE, 'ev-count', *REMOVED),
    'removed': (EVIDENCE, 'ev-strat', REMOVED[0]),
    'budgets': (EVIDENCE, 'ev-steps', 'subsets/nih14-mini-select-steps'),
    'left': (EVIDENCE, 'wes-sums', *REMOVED),
    'real': ('explanations/real_radiographs.ipynb', '54d3258f', 'baseline/nih14-mini'),
    'calibration': ('explanations/real_radiographs.ipynb', '237cabd4', 'baseline/nih14-mini'),
    'definition': ('5_attribution/01_tracin.ipynb', 'fafd3559'),
    'batched': ('5_attribution/01_tracin.ipynb', 'b11c13a1'),
    'fused': ('5_attribution/03_densenet.ipynb', 'd44c2c8d'),
    'captum': ('benchmarks/scoring_speed.ipynb', '4a00aea8'),
    'kronfluence': ('benchmarks/scoring_speed.ipynb', 'kr0nsee1'),
    'passes': ('benchmarks/scoring_speed.ipynb', 'f21e9279'),
    'tried': ('benchmarks/scoring_speed.ipynb', 'tr1ed0ut'),
    'jobs': ('benchmarks/scoring_speed.ipynb', 'j0bsec0n'),
    'loading': ('benchmarks/loading.ipynb', '1743b45a'),
    'training': ('benchmarks/training_speed.ipynb', '779d065a'),
    'gpu': ('explanations/what_it_costs.ipynb', 'c0570012'),
    'differences': ('explanations/why_it_is_fast.ipynb', '5138bb89'),
    'five_seeds': ('explanations/what_tracin_measures.ipynb', 'b6b841b4'),
    'bank': ('6_evidence/09_bank.ipynb', 'bank0030'),
    'board': ('experiments/board.ipynb', 'board021', 'board/by-hand'),
    'within': ('6_evidence/05_label_errors.ipynb', 'win19004'),
    'small_runs': ('experiments/label_errors.ipynb', 'wl-row', 'label_errors/by-hand'),
    'tutorial': ('tutorials/find_mislabeled_images.ipynb', 'win19022'),
    'pool': ('5_attribution/06_pools.ipynb', 'pool0020'),
    'subsets': ('experiments/subsets.ipynb', 'exp008', 'subsets/by-hand'),
    'steps': ('tutorials/how_small.ipynb', 'stepshare'),
}

class Claim(NamedTuple):
    "A number, and what it is claimed to be above or below."
    question: str
    text: str
    value: str # its place: table[row][column]
    than: float | str = 0. # a number by definition, or the place of the control's
    above: bool = True
    ends: tuple = () # places of the interval's ends, where they stand in other columns
    exact: bool = False # no chance is involved: the number is its own interval

def _best(data, kind): # a variant of influence against the best baseline
    row = dict(zip(['phantom / one_finding', 'phantom / one_of_fourteen', 'phantom / swapped',
                    'NIH / one_finding', 'NIH / one_of_fourteen', 'NIH / swapped'],
                   ['optimiser_aware', 'cosine', 'worst_influence', 'cosine', 'last_layer',
                    'last_layer']))[f'{data} / {kind}']
    place = f'best[{data} / {kind} / {row}]'
    return Claim('errors', f'{data}, {kind.replace("_", " ")}: the best variant of influence '
                 f'({row}) finds fewer than the best baseline', f'{place}[mean]', 0., False,
                 (f'{place}[low]', f'{place}[high]'))

def _repair(data, repair, by):
    place = f'repaired[{data} / {repair} / {by}]'
    return Claim('help', f'{data}: to {repair} what {by} flags recovers more than a random '
                 'tenth, in shares of what label errors cost', f'{place}[over_random]', 0.,
                 True, (f'{place}[over_low]', f'{place}[over_high]'))

def _without(score, rule, what, above):
    side = 'costs less than' if above else 'costs more than'
    return Claim('help', f'NIH: to remove the third that {score} calls {what} {side} a random '
                 'third, AUROC', f'removed[{score} / 0.35][{rule}]', 0., above)

def _bank(score, than, text):
    place = f'bank[random 5 % / {score}]'
    return Claim('retraining', f'Phantom, one smooth run, its last epochs: {text}',
                 f'{place}[lds]', than, True, (f'{place}[low]', f'{place}[high]'))

HEAD, DOT = 'influence with the inverse Hessian', 'influence, product of gradients'
CLAIMS = [
    Claim('classifier', 'DenseNet-121 on real radiographs at 64 pixels ranks findings better '
          'than chance, AUROC', 'real[auroc][baseline]', .5, True,
          ('real[auroc_low][baseline]', 'real[auroc_high][baseline]')),
    Claim('classifier', "Scaling repairs its probabilities for patients like validation's, ECE",
          'calibration[ECE, pooled][held-out validation patients]',
          'calibration[ECE, pooled][before scaling]', False),
    Claim('exact', 'Forward mode gives the definition in float64',
          'definition[forward mode and definition][largest difference, float64]', 1e-9, False,
          exact=True),
    Claim('exact', 'The fused pass for DenseNet gives it in float32',
          'fused[densenet_directional_scores][relative error in float32]', 1e-6, False,
          exact=True),
    Claim('exact', 'captum gives the same influence in float64',
          'captum[influence][largest difference, of the largest score]', 1e-9, False,
          exact=True),
    Claim('exact', 'captum gives the same pairwise influence in float64',
          'captum[pairs][largest difference, of the largest score]', 1e-9, False, exact=True),
    Claim('exact', 'captum gives the same pairwise influence of the last layer',
          'captum[pairs, last layer][largest difference, of the largest score]', 1e-9, False,
          exact=True),
    Claim('exact', 'kronfluence gives the same influence in float32',
          'kronfluence[influence][largest difference, of the largest score]', 1e-5, False,
          exact=True),
    Claim('retraining', 'Phantom, convex head: influence with the inverse Hessian reaches an '
          'LDS of 0.9 for single images', f'heads[{HEAD}][phantom / single images]', .9),
    Claim('retraining', 'NIH, convex head: the same', f'heads[{HEAD}][NIH / single images]',
          .9),
    Claim('retraining', 'NIH, convex head: it reaches 0.9 for the mean loss',
          f'heads[{HEAD}][NIH / mean loss]', .9),
    Claim('retraining', 'NIH, convex head: so does the dot product of gradients, for single '
          'images', f'heads[{DOT}][NIH / single images]', .9),
    Claim('retraining', 'NIH, convex head: the loss predicts more than chance',
          'heads[loss][NIH / mean loss]', 0.),
    _bank('unrolled', .85, 'the unrolled score reaches an LDS of 0.85'),
    _bank('TracIn', 0., 'TracIn predicts more than chance'),
    Claim('retraining', 'Phantom, a smooth run: the unrolled score has a higher LDS than a '
          'random one', 'board[smooth: unrolled][0]', 'board[smooth: random][0]'),
    Claim('retraining', 'Phantom, the usual run: the unrolled score has a higher LDS than '
          'TracIn', 'board[small: unrolled][0]', 'board[small: TracIn][0]'),
    Claim('seeds', 'Phantom: influence of two networks agrees as the loss does, rank '
          'correlation', 'stable[influence][phantom / seeds averaged: 1]',
          'stable[loss][phantom / seeds averaged: 1]'),
    Claim('seeds', 'NIH: the same', 'stable[influence][NIH / seeds averaged: 1]',
          'stable[loss][NIH / seeds averaged: 1]'),
    Claim('seeds', 'Phantom: averages over three networks agree by 0.7',
          'stable[influence][phantom / seeds averaged: 3]', .7),
    Claim('seeds', 'NIH: averages over three networks agree by 0.7',
          'stable[influence][NIH / seeds averaged: 3]', .7),
    Claim('seeds', 'NIH, 2,347 images: influence of seed 0 agrees with that of seed 1',
          'seeds[0][influence / 1]', 0.),
    Claim('seeds', 'Phantom, five trainings: mean rank correlation of two',
          'five_seeds[mean][rank correlation]', .7),
    *[_best(data, kind) for data in ['phantom', 'NIH']
      for kind in ['one_finding', 'one_of_fourteen', 'swapped']],
    Claim('errors', 'Phantom, one finding: a tenth inspected by the loss finds more than at '
          'random', 'found[one_finding / standardised_loss][phantom / at 10%]',
          'found[one_finding / random][phantom / at 10%]'),
    Claim('errors', 'NIH, one finding: the same',
          'found[one_finding / standardised_loss][NIH / at 10%]',
          'found[one_finding / random][NIH / at 10%]'),
    Claim('errors', 'NIH, one of fourteen: influence finds more than at random',
          'found[one_of_fourteen / influence][NIH / at 10%]',
          'found[one_of_fourteen / random][NIH / at 10%]'),
    Claim('errors', 'Lesson, 210 images: the observed label alone separates label errors, '
          'AUROC', 'within[label_count][all together]', .5),
    Claim('errors', 'Lesson, 210 images: within the observed label the loss still does',
          'within[standardised_loss][within]', .5),
    Claim('errors', 'Tutorial, 420 images, one of fourteen: within the observed label the '
          'loss does', 'tutorial[standardised_loss][AUROC within the observed label]', .5),
    Claim('errors', 'Experiment, 140 images, one finding: within the observed label the loss '
          'does', 'small_runs[one_finding: worst_loss within][0]', .5),
    _repair('phantom', 'relabel', 'loss'), _repair('phantom', 'relabel', 'cosine'),
    _repair('phantom', 'drop', 'loss'), _repair('NIH', 'relabel', 'loss'),
    _without('influence, 3 seeds', 'top', 'helpful', False),
    _without('influence, 3 seeds', 'stratified_top', "helpful, every finding's share kept,",
             False),
    _without('influence, 3 seeds', 'bottom', 'harmful', True),
    _without('influence', 'bottom', 'harmful', True),
    Claim('help', 'Phantom: to remove 70 % by strata costs less than at random, AUROC',
          'subsets[chance / stratified][0.7]'),
    Claim('help', 'Phantom: to remove the 70 % that influence calls harmful costs less than '
          'a random 70 %, AUROC', 'subsets[influence / bottom][0.7]'),
    Claim('help', 'Phantom, 70 of 350 images: most of what they cost is steps, share',
          'steps[70][share of the apparent loss that was steps]', .5),
    Claim('speed', 'A score of one direction costs less than three inference passes, 224 '
          'pixels', 'passes[one direction][224 px / by hand]', 3., False),
    Claim('speed', 'Influence takes less time than by captum, batches of one, s',
          'jobs[influence][ours]', 'jobs[influence][captum, batches of 1]', False),
    Claim('speed', 'Pairwise influence takes less time than by captum, batches of one, s',
          'jobs[pairs][ours]', 'jobs[pairs][captum, batches of 1]', False),
    Claim('speed', 'Self-influence takes less time than by kronfluence, s',
          'jobs[self-influence][ours]', 'jobs[self-influence][kronfluence]', False),
    Claim('speed', 'Batches from the store come faster than by the usual data set, per s',
          'loading[the store][median]', 'loading[PIL, 1024 px][median]', True,
          ('loading[the store][low]', 'loading[the store][high]')),
    Claim('speed', 'Batches from the store come faster than from the best other way, per s',
          'loading[the store][median]', 'loading[memory map, no workers][median]', True,
          ('loading[the store][low]', 'loading[the store][high]')),
    Claim('speed', 'A training step in float32 is faster than a plain loop, CPU, images per s',
          'training[ours][images per second]', 'training[plain loop][images per second]', True,
          ('training[ours][lowest]', 'training[ours][highest]')),
]
