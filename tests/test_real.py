"NIH's own table, lists and radiographs, where they are at hand."
import numpy as np

from cxr_influence.training.checkpoints import Recipe
from cxr_influence.data.batches import Data
from cxr_influence.data.nih import (TABLE_NAMES, find_files, find_file, read_lists, read_nih,
    read_table)
from cxr_influence.data.store import decode
from cxr_influence.data.labels import FINDINGS, encode_all
from cxr_influence.attribution.scoring import score_checkpoint
from cxr_influence.training.checkpoints import list_checkpoints
from cxr_influence.training.resume import fit

PUBLISHED = dict(Atelectasis=11559, Cardiomegaly=2776, Effusion=13317, Infiltration=19894, Mass=5782, Nodule=6331,
                 Pneumonia=1431, Pneumothorax=5302, Consolidation=4667, Edema=2303, Emphysema=2516, Fibrosis=1686,
                 Pleural_Thickening=3385, Hernia=227) # of the 2020 version of NIH's table

def test_every_row_of_nihs_table_is_read(real):
    table = read_table(find_file(find_files(real), TABLE_NAMES))
    labels = encode_all(table.labels)
    assert len(table) == 112_120 and table.patient.nunique() == 30_805
    assert labels.sum().astype(int).to_dict() == PUBLISHED and (labels.sum(axis=1) == 0).sum() == 60_361
    assert (table.age.notna() & table.age.between(0, 95)).all() and set(table.sex) == {'M', 'F'} and set(table['view']) == {'PA', 'AP'}

def test_the_official_lists_are_kept_and_no_patient_is_in_two_splits(real):
    frame, lists = read_nih(real), read_lists(find_files(real))
    assert len(lists['train_val']) == 86_524 and len(lists['test']) == 25_596
    assert set(frame.index[frame.split == 'test']) == set(lists['test']) & set(frame.index)
    assert (frame.groupby('patient').split.nunique() == 1).all()
    share = (frame.split == 'validation').sum() / (frame.split != 'test').sum()
    assert abs(share - .125) < .01
    assert read_nih(real).split.equals(frame.split) and not read_nih(real, seed=1).split.equals(frame.split)

def test_validation_has_its_share_of_every_finding(real):
    frame = read_nih(real)
    rest = frame[frame.split != 'test']
    def worst(chosen): return (rest[list(FINDINGS)][chosen].sum() / rest[list(FINDINGS)].sum() - .125).abs().max()
    random = np.random.default_rng(0)
    patients = rest.patient.unique()
    cuts = [np.isin(rest.patient, random.permutation(patients)[:len(patients) // 8]) for _ in range(20)]
    assert worst((rest.split == 'validation').to_numpy()) < min(.012, *map(worst, cuts))

def test_identical_radiographs_get_identical_scores(real, tmp_path):
    frame = read_nih(real)
    twins = ['00002658_001.png', '00002658_002.png']
    assert (frame.split[twins] == 'train').all()
    some = frame.groupby('split', group_keys=False).head(24).index.union(twins)
    frame = frame.loc[frame.index.isin(some)]
    frame.loc[twins, list(FINDINGS)] = frame.loc[twins[0], list(FINDINGS)].to_numpy()
    store = decode(frame, real, 64, tmp_path/'store')
    assert np.array_equal(*store.pixels[frame.index.get_indexer(twins)])
    data = Data(frame, store)
    fit(data, tmp_path/'run', Recipe('densenet_small', epochs=1, batch_size=8), device='cpu')
    scores = score_checkpoint(list_checkpoints(tmp_path/'run')[0], data, tmp_path/'scores.csv').loc[twins]
    np.testing.assert_allclose(scores.iloc[0], scores.iloc[1], rtol=1e-3, atol=1e-4)
