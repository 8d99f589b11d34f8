"""What every data module shares: manifests, loaders, and going on in the middle of an epoch."""

import logging
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vssl.data.boxes import BoxFile
from lightning_vssl.data.clips import Clips, JitteredClip, UniformClips
from lightning_vssl.data.dataset import VideoDataset
from lightning_vssl.data.manifest import Entry, Manifest, build_manifest, manifest_file, usable
from lightning_vssl.data.sampler import KeyedSampler
from lightning_vssl.data.store import Store
from lightning_vssl.data.tubes import TubeFile, TubeForm
from lightning_vssl.data.video_files import video_name
from lightning_vssl.data.whole import Record, VideoJob
from lightning_vssl.data.windows import ScaleCrop, SizeCrop, Windows
from lightning_vssl.nn.keyed import sample_key

_log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
Batch = dict[str, Tensor]
Loader = DataLoader[Batch]
Regions = TypeVar("Regions", BoxFile, TubeFile)

_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
_SHARED_MEMORY = Path("/dev/shm")


class VideoDataModule(LightningDataModule):
    """Videos of one dataset as batches; a dataset adds `entries` and nothing else.

    A dataset with arguments of its own takes the rest as `lightning_vssl.datamodules.options` says.

    Batches are dicts of tensors on the CPU, `VideoDataset`'s samples stacked: ``video``
    (B, V, T, 3, H, W) uint8, ``crop``, ``key``, ``time``, ``index``, ``replaced``, ``label`` where
    every video of the split has one, ``boxes`` where a box file is given, and ``mask`` and
    ``tracked`` where a tube file is. Views are made by the method, on the accelerator.

    Args:
        root: The dataset's folder.
        clips: Frames of a training sample; None for CtP's.
        window: Crop of a training sample; None for CtP's.
        eval_clips: Frames of an evaluation sample; None for CtP's ten clips.
        eval_window: Crop of an evaluation sample; None for CtP's.
        batch_size: Training samples per step over all processes together.
        eval_batch_size: The same in evaluation; None for ``batch_size``.
        num_workers: Processes per training process that read videos.
        prefetch_factor: Batches that each of them holds ready. Long or large clips need 1.
        seed: Where every draw of the data starts.
        cache_dir: Folder that keeps the list of what was found on disk; None for
            ``~/.cache/lightning_vssl``. The dataset itself is never written to.
        gallery: In tests, walk the training videos first (loader 0), as evaluation reads them, and
            then the test videos (loader 1): for retrieval and k-NN.
        label_fraction: Share of the training videos of each class that are used, in (0, 1].
        video_fraction: Share of the training videos that are used, whatever their class.
        boxes: Box file of the videos (`lightning_vssl.data.boxes`), or None: samples then carry
            ``boxes`` (B, V, T, N, 4), xyxy in pixels of ``video``. An evaluation's videos go
            without where the file knows none of them.
        tubes: Tube file of the videos (`lightning_vssl.data.tubes`), or None: samples then carry
            ``mask`` (B, V, T, h, w) uint8, 1 on the video's object, and ``tracked`` (B, V) bool,
            and clips of the kind `TrackedClips` are drawn where the object is seen. An
            evaluation's videos go without where the file knows none of them.
        tube_form: What the masks are: the object in each frame (``mask``), its bounding box in
            each (``box``), or the object in the middle frame of the clip for all of them
            (``middle``).
        store: Folder that the job of recipes/jobs/transcode.yaml or shards.yaml has left, or one
            with several of them, or None: the videos are then read from there, under their own
            names, with the labels and spans of the dataset's lists (`lightning_vssl.data.store`).
        max_missing: Share of a split's videos, in [0, 1], that may lack their file, and, with
            ``boxes`` or ``tubes``, of those read that may lack those.
        max_unreadable: Share of them, in [0, 1], that may be broken.
        verify: Decode every video in full when it is first listed, so that breaks in the middle
            are known beforehand.
    """

    def __init__(
        self,
        root: Path,
        *,
        clips: Clips | None = None,
        window: Windows | None = None,
        eval_clips: Clips | None = None,
        eval_window: Windows | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        seed: int = 0,
        cache_dir: Path | None = None,
        gallery: bool = False,
        label_fraction: float = 1.0,
        video_fraction: float = 1.0,
        boxes: Path | None = None,
        tubes: Path | None = None,
        tube_form: TubeForm = "mask",
        store: Path | None = None,
        max_missing: float = 0.25,
        max_unreadable: float = 0.05,
        verify: bool = False,
    ) -> None:
        super().__init__()
        _check_share(label_fraction=label_fraction, video_fraction=video_fraction)
        _check_positive(batch_size=batch_size, prefetch_factor=prefetch_factor)
        self.root = Path(root).expanduser()
        self.clips = clips if clips is not None else JitteredClip()
        self.window = window if window is not None else ScaleCrop()
        self.eval_clips = eval_clips if eval_clips is not None else UniformClips()
        self.eval_window = (
            eval_window
            if eval_window is not None
            else SizeCrop(sizes=((171, 128),), place="centre")
        )
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.seed = seed
        self.cache_dir = cache_dir
        self.gallery = gallery
        self.label_fraction = label_fraction
        self.video_fraction = video_fraction
        self.boxes = None if boxes is None else Path(boxes).expanduser()
        self.tubes = None if tubes is None else Path(tubes).expanduser()
        self.tube_form: TubeForm = tube_form
        self.store = None if store is None else Path(store).expanduser()
        self.max_missing = max_missing
        self.max_unreadable = max_unreadable
        self.verify = verify
        self.manifests: dict[Split, Manifest] = {}
        self._classes: tuple[str, ...] = ()
        self._box_file: BoxFile | None = None
        self._tube_file: TubeFile | None = None
        self._store: Store | None = None
        self._train_set: VideoDataset | None = None
        self._sampler: KeyedSampler | None = None
        self._resume: tuple[int, int] | None = None

    @abstractmethod
    def entries(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """The videos of a split and the names of the classes, from the dataset's own lists.

        An empty list says that the dataset has no such split.
        """

    @property
    def num_classes(self) -> int:
        """Classes of the dataset; 0 where it has none. Known after `setup`."""
        return len(self._classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return self._classes

    @property
    def unreadable(self) -> int:
        """Training videos that broke while they were read, so far, in this process."""
        return 0 if self._train_set is None else len(self._train_set.unreadable)

    def prepare_data(self) -> None:
        """Probes the videos of the splits in use, on one process of each machine."""
        for split in self._splits(self._stage()):
            entries, classes = self._placed(split)
            if entries:
                build_manifest(
                    entries, self.root, classes, cache_dir=self.cache_dir, verify=self.verify
                )
        if self.boxes is not None:
            BoxFile(self.boxes, cache_dir=self.cache_dir)
        if self.tubes is not None:
            TubeFile(self.tubes, cache_dir=self.cache_dir)

    def setup(self, stage: str) -> None:
        """Loads the manifests of the splits in use.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self._resume = None
        for split in self._splits(stage):
            self.manifest(split)
        if self.boxes is not None:
            self._box_file = BoxFile(self.boxes, cache_dir=self.cache_dir)
        if self.tubes is not None:
            self._tube_file = TubeFile(self.tubes, cache_dir=self.cache_dir)
        train = self.manifests.get("train")
        if train is not None and stage == "fit":
            self._train_set = self._training_set(train)
            self._warn(self._train_set.unboxed)
            self._warn(self._train_set.untracked)

    def manifest(self, split: Split) -> Manifest:
        """The videos of a split that can be read; row i is ``index`` i of a batch.

        Raises:
            FileNotFoundError: If official lists or too many videos are missing.
            ValueError: If the split is empty, too much of it is broken, or its classes are not
                those of the training videos.
        """
        if split not in self.manifests:
            manifest = usable(
                self._listed(split),
                name=_NAMES[split],
                max_missing=self.max_missing,
                max_unreadable=self.max_unreadable,
                warn=self.trainer is None or self.trainer.is_global_zero,
            )
            self._classes = self._classes or manifest.classes
            self.manifests[split] = self._fraction(manifest) if split == "train" else manifest
            self._check_classes()
        return self.manifests[split]

    def _listed(self, split: Split) -> Manifest:
        """All videos of a split, those that cannot be read too."""
        entries, classes = self._placed(split)
        if not entries:
            raise ValueError(f"{type(self).__name__} at {self.root} has no {split} videos")
        self._warn_of_store(split, entries)
        file = manifest_file(
            entries, self.root, classes, cache_dir=self.cache_dir, verify=self.verify
        )
        return Manifest.load(file)

    def _placed(self, split: Split) -> tuple[list[Entry], tuple[str, ...]]:
        """As `entries`; with ``store``, each with where it lies there."""
        entries, classes = self.entries(split)
        store = self._opened()
        return entries if store is None else store.placed(entries, self.root), classes

    def _opened(self) -> Store | None:
        """The store, read once."""
        if self._store is None and self.store is not None:
            self._store = Store(self.store)
        return self._store

    def _warn_of_store(self, split: Split, entries: Sequence[Entry]) -> None:
        """Says which videos the store lacks, and whether boxes may not fit those it has."""
        if self._store is None:
            return
        left = [entry.path for entry in entries if entry.place is None]
        if left:
            self._warn(
                f"{len(left)} of {len(entries)} {_NAMES[split]} videos are not in the store "
                f"{self.store}, and are read where they lie: {_first(left)}"
            )
        regions = self.boxes is not None or self.tubes is not None
        cut = sum(self._store.cropped(video_name(e.path, self.root)) for e in entries)
        if regions and cut:
            self._warn(
                f"{cut} of {len(entries)} {_NAMES[split]} videos in {self.store} have lost the "
                "black bars at their edges: boxes and tubes fit only if they were found in the "
                "videos of the store, not in the originals"
            )

    def train_dataloader(self) -> Loader:
        """Training videos in an order that depends on (seed, epoch) alone."""
        dataset = self._train_set
        if dataset is None:
            raise RuntimeError("no training videos yet: call prepare_data() and setup('fit')")
        if len(dataset) < self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {len(dataset)} training videos"
            )
        ranks, rank = self._ranks()
        local = self._local(self.batch_size, "batch_size")
        self._sampler = KeyedSampler(len(dataset), seed=self.seed, ranks=ranks, rank=rank)
        if self._resume is not None:
            self._sampler.resume(*self._resume)
        return self._loader(dataset, local, self._sampler)

    def gallery_dataloader(self) -> Loader:
        """Training videos in order, with the evaluation's clips and crops, nothing drawn anew."""
        return self._eval_loader("train")

    def val_dataloader(self) -> Loader | list[Loader]:
        """Validation videos in order; no loader where the dataset has none."""
        return self._eval_loader("val") if "val" in self.manifests else []

    def test_dataloader(self) -> Loader | list[Loader]:
        """Test videos in order; with ``gallery``, [training videos, test videos]."""
        test = self._eval_loader("test")
        return [self.gallery_dataloader(), test] if self.gallery else test

    def predict_dataloader(self) -> Loader | list[Loader] | DataLoader[Record]:
        """As `test_dataloader`; for a job, its videos, each of them whole."""
        job = self._job()
        if job is None:
            return self.test_dataloader()
        return job.video_loader(self._listed(job.split), self.num_workers, self.prefetch_factor)

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch, and the samples all processes took from it.

        Counted in samples, not batches, so that another number of processes can go on.
        """
        if self.trainer is None or self._train_set is None:
            return {}
        batches = self.trainer.num_training_batches
        if not 0 < batches < float("inf"):
            return {}
        total = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_loop.batch_progress.total)
        epoch, batch = divmod(total.processed, int(batches))
        return {
            "epoch": epoch,
            "samples": batch * self.batch_size,
            "batch_size": self.batch_size,
            "videos": len(self._train_set),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Goes on where `state_dict` stood, also in the middle of an epoch."""
        if not state_dict:
            return
        videos = len(self._train_set) if self._train_set is not None else state_dict["videos"]
        now = {"seed": self.seed, "batch_size": self.batch_size, "videos": videos}
        changed = [
            f"{name} was {state_dict[name]} and is {value}"
            for name, value in now.items()
            if state_dict[name] != value
        ]
        if changed:
            _log.warning(
                "resuming with other data than the run began with (%s): the samples to come are "
                "not those of the uninterrupted run",
                "; ".join(changed),
            )
        self._resume = (state_dict["epoch"], state_dict["samples"])
        if self._sampler is not None:
            self._sampler.resume(*self._resume)

    def _stage(self) -> str | None:
        if self.trainer is None or self.trainer.state.fn is None:
            return None
        return str(self.trainer.state.fn.value)

    def _job(self) -> VideoJob | None:
        """The model, where it is one that works on whole videos."""
        model = None if self.trainer is None else self.trainer.lightning_module
        return model if isinstance(model, VideoJob) else None

    def _splits(self, stage: str | None) -> list[Split]:
        """What a stage reads, of what the dataset has; everything where there is no Trainer."""
        stages: dict[str | None, list[Split]] = {
            None: ["train", "val", "test"],
            "fit": ["train", "val"],
            "validate": ["val"],
            "test": ["train", "test"] if self.gallery else ["test"],
            "predict": ["train", "test"] if self.gallery else ["test"],
        }
        splits = stages[stage]
        job = self._job() if stage == "predict" else None
        if job is not None:
            return [job.split]
        unused = self.trainer is not None and self.trainer.limit_val_batches == 0
        if stage == "fit" and (unused or not self.entries("val")[0]):
            splits = ["train"]
        return splits

    def _fraction(self, manifest: Manifest) -> Manifest:
        """The training videos left by ``label_fraction`` and ``video_fraction``, in order.

        A larger fraction contains a smaller one of the same seed.
        """
        if self.label_fraction == self.video_fraction == 1:
            return manifest
        key = sample_key(self.seed, 0, -2) & ((1 << 64) - 1)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(manifest))
        order = order[: max(1, round(self.video_fraction * len(manifest)))]
        if self.label_fraction < 1:
            if not _labelled(manifest):
                raise ValueError(
                    f"label_fraction={self.label_fraction:g} needs labels, and the training "
                    "videos have none: use video_fraction"
                )
            order = _stratified(order, manifest.labels[order], self.label_fraction)
        return manifest.select(np.sort(order))

    def _check_classes(self) -> None:
        """Raises where a split has a class that training lacks, or names classes differently."""
        train = self.manifests.get("train")
        for split, manifest in self.manifests.items():
            if train is None or not _labelled(train) or not _labelled(manifest):
                continue
            extra = [name for name in manifest.classes if name not in train.classes]
            if extra:
                raise ValueError(
                    f"the {_NAMES[split]} videos have classes that training lacks: "
                    f"{_first(extra)}; training has {_first(train.classes)}"
                )
            if manifest.classes != train.classes:
                raise ValueError(
                    f"the classes of the {_NAMES[split]} videos are not in training's order: "
                    f"{_first(manifest.classes)} against {_first(train.classes)}"
                )

    def _ranks(self) -> tuple[int, int]:
        """(processes of the run, this one's number)."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank

    def _local(self, size: int, name: str) -> int:
        """This process's part of a batch."""
        ranks, _ = self._ranks()
        if size % ranks:
            low, high = size // ranks * ranks, (size // ranks + 1) * ranks
            fits = f"{low} or {high}" if low else f"{high}"
            raise ValueError(
                f"{name}={size} does not divide by the {ranks} processes of this run (it counts "
                f"the samples of all of them together): take {fits}"
            )
        return size // ranks

    def _training_set(self, manifest: Manifest) -> VideoDataset:
        """The samples of training."""
        return VideoDataset(
            manifest,
            self.clips,
            self.window,
            seed=self.seed,
            labels=_labelled(manifest),
            max_unreadable=self.max_unreadable,
            boxes=self._box_file,
            tubes=self._tube_file,
            tube_form=self.tube_form,
            max_missing=self.max_missing,
        )

    def _evaluation_set(self, split: Split) -> VideoDataset:
        """The samples of an evaluation."""
        manifest = self.manifest(split)
        return VideoDataset(
            manifest,
            self.eval_clips,
            self.eval_window,
            seed=self.seed,
            labels=_labelled(manifest),
            replace=False,
            boxes=_knowing(self._box_file, manifest),
            tubes=_knowing(self._tube_file, manifest),
            tube_form=self.tube_form,
            max_missing=self.max_missing,
        )

    def _eval_loader(self, split: Split) -> Loader:
        dataset = self._evaluation_set(split)
        self._warn(dataset.unboxed)
        self._warn(dataset.untracked)
        return self._loader(dataset, self._local(self.eval_batch_size, "eval_batch_size"), None)

    def _warn(self, text: str) -> None:
        if text and (self.trainer is None or self.trainer.is_global_zero):
            _log.warning(text)

    def _loader(self, dataset: VideoDataset, batch: int, sampler: KeyedSampler | None) -> Loader:
        """A loader; without a sampler in order and to the last sample."""
        workers = self.num_workers
        if workers:
            self._check_shared_memory(dataset.sample_bytes * batch)
        return DataLoader(
            dataset,
            batch_size=batch,
            sampler=sampler,
            drop_last=sampler is not None,
            num_workers=workers,
            prefetch_factor=self.prefetch_factor if workers else None,
            persistent_workers=workers > 0 and sampler is not None,
            pin_memory=torch.cuda.is_available(),
        )

    def _check_shared_memory(self, batch_bytes: int) -> None:
        """Warns where the batches that workers hold ready may not fit: that is a bus error."""
        if not _SHARED_MEMORY.is_dir():
            return
        processes = self.trainer.num_devices if self.trainer is not None else 1
        needed = batch_bytes * (self.num_workers * self.prefetch_factor + 1) * processes
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            _log.warning(
                "the workers' batches may take %.1f GB of %s, which has %.1f GB free; where it "
                "fills up a worker dies of a bus error. Lower num_workers (%d), prefetch_factor "
                "(%d) or the batch, or enlarge it (docker run --shm-size)",
                needed / 1e9,
                _SHARED_MEMORY,
                free / 1e9,
                self.num_workers,
                self.prefetch_factor,
            )


def require_files(files: Mapping[Path, str], dataset: str) -> None:
    """Raises one error that lists every official file that is missing, and where it comes from.

    Args:
        files: Each file or folder, and where to get it.
        dataset: Name of the dataset.

    Raises:
        FileNotFoundError: If any is missing.
    """
    missing = [f"  {file}: {source}" for file, source in files.items() if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{dataset}: {len(missing)} of {len(files)} official files are missing:\n"
            + "\n".join(missing)
        )


def _knowing(found: Regions | None, manifest: Manifest) -> Regions | None:
    """The box or tube file, if it knows any of an evaluation's videos."""
    return None if found is None or (found.find(manifest) < 0).all() else found


def _labelled(manifest: Manifest) -> bool:
    """Whether any row has a class; then all must."""
    return bool(manifest.classes) and bool((manifest.labels >= 0).any())


def _stratified(
    order: np.ndarray[tuple[int], np.dtype[np.int64]],
    labels: np.ndarray[tuple[int], np.dtype[np.int64]],
    share: float,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The first ``share`` of each class, at least one."""
    kept = [
        rows[: max(1, round(share * len(rows)))]
        for rows in (order[labels == label] for label in np.unique(labels))
    ]
    return np.concatenate(kept)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _check_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value}: a share, above 0 and at most 1")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")
