"""One person's dense landmarks in a sequence of pictures: looked for where they were in the picture before."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from recon4d import InputError, images, landmarker
from recon4d.landmarker import Square
from recon4d.records import Record, numbers

from prep_faces.detection import Found
from prep_faces.image_files import ImageFile
from prep_faces.mediapipe_faces import of_dense

AHEAD = 4  # pictures that are read before their turn
MEMORY = 15  # pictures after which a lost face is forgotten


def follow_files(
    files: list[ImageFile], kept: list[Record | None], dense: bool, readers: int = 2
) -> Iterator[tuple[Found, Square | None]]:
    """The person's face in each file that has no `kept` record, in order, and where to look for it in the next one.

    The networks run in this thread, which costs a face that is followed about six milliseconds; `readers` threads read
    the next pictures meanwhile. A kept record says where its face was, so that a run that goes on finds what a whole
    one would have.
    """
    place: Square | None = None
    lost = 0
    with ThreadPoolExecutor(readers) as pool:
        reading: deque[Future[np.ndarray]] = deque()
        coming = (file for file, record in zip(files, kept) if record is None)
        for record in kept:
            while len(reading) < AHEAD and (following := next(coming, None)) is not None:
                reading.append(pool.submit(images.read, following.path))
            found = True
            if record is not None:
                found = "next_square" in record
                place = square_in(record) or place
            else:
                try:
                    image = reading.popleft().result()
                except InputError as error:
                    yield error, None
                    continue
                face = landmarker.follow(image, place, lost)
                found = face is not None
                place = face.next_square() if face is not None else place
                size = image.shape[:2]
                yield (size, of_dense([] if face is None else [face], dense)), place if found else None
            lost = 0 if found else lost + 1
            place = place if lost < MEMORY else None


def square_in(record: Record) -> Square | None:
    """The square that a record of a followed face holds."""
    values = record.get("next_square")
    if not numbers(values, 4):
        return None
    x, y, side, angle = values  # type: ignore[misc]
    return Square((x, y), side, angle) if side > 0 else None
