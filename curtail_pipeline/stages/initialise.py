"""`ckpt-000000`: the initialised model, committed once."""

from filelock import FileLock

from curtail_pipeline.corpus.dealing import TOKENIZER
from curtail_pipeline.stages.model_worker import ModelWorker
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import FIRST_KEY
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.training.presets import init_checkpoint


def ensure_initialised(project: Project) -> Manifest:
    """Commit the initialised model if it is not there; the same seed and tokenizer give the same bytes.

    By the worker that the environment names, else in this process.

    Raises:
        CorpusError: the tokenizer has not been built, or does not fit the model's vocabulary.
        TrainingError: the worker does not answer, or could not.
    """
    worker = ModelWorker.of_environment()
    if worker is None or project.checkpoints.exists(FIRST_KEY):
        return initialise_here(project)
    worker.initialise()
    return project.checkpoints.check(FIRST_KEY)


def initialise_here(project: Project) -> Manifest:
    """As `ensure_initialised`, in this process, which needs torch."""
    lock = project.store.here("scratch/.initialise.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # of two at once the second finds what the first has made
        if not project.checkpoints.exists(FIRST_KEY):
            project.checkpoints.claim(FIRST_KEY, generation=0)  # a commit that was cut off is carried out
        if project.checkpoints.exists(FIRST_KEY):
            return project.checkpoints.check(FIRST_KEY)
        return _initialise(project)


def _initialise(project: Project) -> Manifest:
    checkpoints, store, experiment = project.checkpoints, project.store, project.experiment
    scratch = f"scratch/{FIRST_KEY}"
    store.delete(scratch)
    folder = store.here(scratch)
    init_checkpoint(experiment.training, store.mirror(TOKENIZER), folder, experiment.seed)
    manifest = checkpoints.commit(
        FIRST_KEY,
        {path.name: path for path in sorted(folder.iterdir())},
        {
            "parent": None,
            "mode": "init",
            "members": [],
            "stop_reason": "initialised",
            "experiment_sha256": project.home.record().sha256,
            "seed": experiment.seed,
            "start": project.start,
            "end": project.start,
            "steps": {"begin": 0, "end": 0},
            "tokens": {"segment": 0},
            "rounds": 0,
            "sites": {},
            "intervals": [],
        },
        generation=0,
    )
    store.delete(scratch)
    return manifest
