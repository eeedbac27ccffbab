"Which training images make a chest X-ray classifier better, which make it worse, and can you prove it?"
import lazy_loader

__version__ = "0.1.0"

# The verbs of the tutorials, `import cxr_influence as cxr`; a module is imported when one of its names is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'data.files': ['project_path'],
    'data.labels': ['findings_of'],
    'data.nih': ['read_nih'],
    'data.tables': ['read_dataset'],
    'data.batches': ['Data', 'load_data'],
    'phantom.dataset': ['make_phantom'],
    'training.checkpoints': ['Recipe', 'list_checkpoints'],
    'training.resume': ['fit', 'trained'],
    'training.evaluation': ['evaluate_checkpoint'],
    'training.imports': ['import_checkpoint'],
    'attribution.scoring': ['influence', 'query_losses'],
    'attribution.pairwise': ['pairwise', 'open_pairwise'],
    'attribution.pools': ['score_images', 'load_pool'],
    'attribution.whole_run': ['unroll', 'along', 'smoothness'],
    'attribution.every_step': ['every_step'],
    'evidence.valuations': ['valuations', 'label_error_scores'],
    'evidence.subsets': ['subset_grid', 'run_subsets'],
    'evidence.comparison': ['subset_draws', 'compare'],
    'evidence.figures': ['show_extremes'],
    'evidence.peers': ['peer_scores'],
    'review.queue': ['review_queue', 'batch_for_review', 'read_review', 'apply_review', 'review_agreement',
                     'review_differences'],
    'review.widget': ['review_page'], # `review` is the wing's name: from cxr_influence.review.widget import review
    'runs.runs': ['run', 'repeat'],
    'runs.sweeps': ['sweep', 'collect', 'plan'],
    'runs.report': ['report'],
})
