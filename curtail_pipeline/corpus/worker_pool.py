"""Worker processes that tokenise slices, within a bound on memory."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import curtail_pipeline
from curtail_pipeline.cores import usable_cores
from curtail_pipeline.corpus.corpus_records import (
    SliceAnswer,
    SliceFailure,
    SliceOrder,
    SliceTokens,
    TokeniseOrder,
)
from curtail_pipeline.corpus.dealing import Dealing
from curtail_pipeline.corpus.encoder import EncodingDiffers, Engine
from curtail_pipeline.corpus.tokenise import SliceBuilder
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.records import Message

WORKER_MIB = 450
"""What one worker takes at most: about 220 MiB of it are fastokens' cache of words (measured with 0.3.5)."""
PREFETCH = "4"
"""Row groups or chunks that polars reads ahead; its default of 128 row groups can be gigabytes."""
INLINE_BYTES = 1 << 24
"""A smaller corpus is done before a worker has started."""

Task = tuple[int, Mapping[str, Path]]
"""Slice number, and per target the path of the part to write."""


class Pool(Protocol):
    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, SliceTokens]]:
        """(slice number, answer of `SliceBuilder.build`) as slices are done, in any order."""


def make_pool(settings: CorpusSettings, dealing: Dealing, tokenizer: Path, engine: Engine) -> Pool:
    """This process for a small corpus, else as many workers as cores and `memory_mib` allow; each worker encodes with
    its share of the cores."""
    cores = usable_cores()
    workers = settings.workers or max(1, min(cores, settings.memory_mib // WORKER_MIB))
    workers = min(workers, len(dealing.source.slices))
    small = sum(file.bytes for file in dealing.source.files) < INLINE_BYTES
    if settings.workers is None and small:
        return _Inline(SliceBuilder(dealing, tokenizer, engine))
    return _Processes(workers, max(1, cores // workers), dealing, tokenizer, engine)


class _Inline:
    def __init__(self, builder: SliceBuilder) -> None:
        self._builder = builder

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, SliceTokens]]:
        for unit, parts in tasks:
            yield unit, self._builder.build(unit, parts)


class _Processes:
    def __init__(self, workers: int, threads: int, dealing: Dealing, tokenizer: Path, engine: Engine) -> None:
        self._workers, self._threads = workers, threads
        self._order = TokeniseOrder(
            dealing=dealing.record(),
            uris=tuple(file.uri for file in dealing.source.files),
            tokenizer=str(tokenizer),
            engine=engine,
        )

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, SliceTokens]]:
        """One thread per worker hands it the next slice; all workers end with this generator."""
        rest, lock = iter(tasks), threading.Lock()
        answers: queue.SimpleQueue[tuple[int, SliceTokens] | BaseException | None] = queue.SimpleQueue()
        workers = [_Worker(self._order, self._threads) for _ in range(self._workers)]

        def drive(worker: _Worker) -> None:
            try:
                while True:
                    with lock:
                        task = next(rest, None)
                    if task is None:
                        break
                    answers.put((task[0], worker.build(*task)))
            except BaseException as error:  # handed to the thread that iterates
                answers.put(error)
            answers.put(None)

        threads = [threading.Thread(target=drive, args=(worker,), daemon=True) for worker in workers]
        try:
            for thread in threads:
                thread.start()
            running = len(threads)
            while running:
                answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    running -= 1
                else:
                    yield answer
        finally:
            for worker in workers:
                worker.stop()
            for thread in threads:
                thread.join()


class _Worker:
    def __init__(self, order: TokeniseOrder, threads: int) -> None:
        count = str(threads)
        package = str(Path(curtail_pipeline.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "curtail_pipeline.corpus.tokenise"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
                "FASTOKENS_BPE_THREADS": count,
                "RAYON_NUM_THREADS": count,
                "POLARS_MAX_THREADS": count,
                "POLARS_ROW_GROUP_PREFETCH_SIZE": PREFETCH,
                "POLARS_CSV_CHUNK_PREFETCH_LIMIT": PREFETCH,
                "TOKENIZERS_PARALLELISM": "true",
            },
        )
        self._send(order)

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message.model_dump_json() + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._died() from error

    def build(self, unit: int, parts: Mapping[str, Path]) -> SliceTokens:
        self._send(SliceOrder(unit=unit, parts={target: str(path) for target, path in parts.items()}))
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        result = SliceAnswer.read(line, "the answer of a tokenising worker").result
        if isinstance(result, SliceFailure):
            raise EncodingDiffers(result.error) if result.kind == "encoding differs" else CorpusError(result.error)
        return result

    def _died(self) -> CorpusError:
        code = self._process.wait()
        return CorpusError(
            f"a tokenising worker ended with status {code}"
            + (", killed for memory perhaps: lower corpus.workers" if code == -9 else "; its log is above")
            + "; building again goes on where it stopped"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with closing(stream):
                    pass
