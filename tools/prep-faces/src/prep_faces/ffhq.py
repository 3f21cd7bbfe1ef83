"""An image dataset as numbered thumbnails with landmarks, the layout that encoders are trained from."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recon4d import InputError, images
from recon4d.images import natural_key
from recon4d.records import Record, Watch, record, run, unwatched

from prep_faces.detectors import prepare
from prep_faces.image_files import find_images, scaled
from prep_faces.landmarks import record_landmarks

Item = tuple[str, bytes | None]  # a name, and the encoded image, or None where the name is a path


def read_source(source: str, split: str) -> Iterator[Item]:
    """Images of a folder, of parquet files (one, or a folder of them), or of a Hugging Face dataset by its name."""
    path = Path(source)
    if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
        return _read_parquet(path)
    if path.exists():
        return ((str(file.path), None) for file in find_images([source]))
    if source.count("/") == 1 and not source.startswith((".", "/")):
        return read_hub(source, split)
    raise InputError(f"{source} does not exist; give a folder, a parquet file or the name of a Hugging Face dataset")


def _read_parquet(path: Path) -> Iterator[Item]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"reading {path} needs pyarrow; install prep-faces[hub]") from error
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"), key=lambda p: natural_key(p.as_posix()))
    for file in files:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            column = next((name for name in table.schema_arrow.names if name in ("image", "img", "bytes")), None)
            if column is None:
                raise InputError(f"{file} has no column image (only {', '.join(table.schema_arrow.names)})")
            number = itertools.count()
            for batch in table.iter_batches(64, columns=[column]):
                for value in batch.column(0).to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else value
                    yield f"{file.name}[{next(number)}]", data if isinstance(data, bytes) else b""
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(f"{file} is not a readable parquet file ({str(error)[:150]}); get it again") from error


def read_hub(name: str, split: str) -> Iterator[Item]:
    """Images of a split of a dataset that the package `datasets` loads by its name, as they come over the network."""
    try:
        import datasets
        import fsspec  # comes with it
    except ImportError as error:
        raise InputError(f"{name} is no file here, and datasets is not installed; install prep-faces[hub]") from error
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        features = stream.features or {}
        column = next(key for key, kind in features.items() if isinstance(kind, datasets.Image))
        stream = stream.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(stream):
            image = row[column] or {"bytes": b"", "path": None}
            data = image["bytes"]
            if data is None:  # a dataset of files gives their addresses
                with fsspec.open(image["path"], "rb") as file:
                    data = file.read()
            yield f"{name}[{number}]", data
    except StopIteration as error:
        raise InputError(f"the dataset {name} has no column of images; give another") from error
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # no network, no such dataset or split, no permission
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"the dataset {name} cannot be read ({reason}); check name, split and network, or give local files"
        ) from error


def write_ffhq(
    source: str,
    out: str | Path,
    split: str = "train",
    limit: int | None = None,
    size: int | None = None,
    detector: str = "mediapipe",
    device: str = "cpu",
    workers: int | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Write out/thumbnails/thumb_00000.png ... and out/landmarks/thumb_00000.npy, (68, 2) pixels.

    Args:
        source: see `read_source`. split: of a Hugging Face dataset.
        limit: how many images at most. size: scale the longer side to this many pixels.

    Thumbnails of an earlier run with the same options are kept. An image that cannot be read keeps its number and
    is recorded in out/ffhq.jsonl. Returns a summary; raises InputError when there is no image at all.
    """
    out = Path(out)
    items = read_source(source, split)
    first = next(items, None)
    if first is None:
        raise InputError(f"{source} holds no image; give another")
    thumbnails = out / "thumbnails"

    def work(known: dict[str, Record]) -> Iterator[Record]:
        for number, (label, data) in enumerate(itertools.islice(itertools.chain([first], items), limit)):
            name = f"thumb_{number:05d}"
            target = thumbnails / f"{name}.png"
            if name in known and "error" not in known[name] and target.exists():
                yield known[name]
                continue
            item: Record = {"name": name, "source": Path(label).name}
            try:
                image = images.read(label, data=data)
                images.write_png(target, image if size is None else scaled(image, size))
            except InputError as error:
                item["error"] = str(error)
            yield item

    def summary(records: list[Record]) -> dict[str, Any]:
        return {"images": len(records), "unreadable": sum("error" in item for item in records)}

    prepare(detector, device)
    options = {"source": Path(source).name, "split": split, "limit": limit, "size": size}
    names = ("thumbnails", "landmarks", "landmarks.jsonl", "landmarks.json")
    local = [source] if Path(source).exists() else []
    with run(out, "prep-faces ffhq", options, names, inputs=local, force=force) as claimed:
        result = record(claimed, "ffhq", options, work, summary, key="name", total=limit, watch=watch)
        files = find_images([thumbnails])
        points = record_landmarks(
            claimed, files, detector, device, photos=True, points="ibug", workers=workers, watch=watch
        )
    failed = result["unreadable"] + points["failed"]
    return {**result, "written": points["written"], "failed": failed, "kept": points["kept"], "out": str(out)}
