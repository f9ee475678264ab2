"""Pictures that strangers upload: pixels as the model takes them, or one sentence that says why not."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from rdpm.pipeline.images.decode import Reject, center_view

MOST_BYTES = 20_000_000
MOST_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "I;16B", "I;16L")
_GIVE = f"give one as {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"


def picture_of(data: bytes, size: int, channels: int) -> np.ndarray:
    """The centre of an encoded image at the model's size, (size, size, 3) uint8; grey is repeated three times.

    Size and mode are read from the header, before any pixel is decoded. Raises ValueError for what is no picture, for
    one with more than MOST_BYTES or MOST_PIXELS, of an unusual mode, and for a damaged one.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"the file has {len(data)} bytes; give one of at most {MOST_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"the file is no picture that can be read; {_GIVE}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the picture has too many pixels; give one of at most {MOST_PIXELS}") from None
    except Exception as error:  # PIL's readers of headers raise many kinds of errors
        raise ValueError(f"the file is a damaged picture ({type(error).__name__}); {_GIVE}") from None
    if header.width * header.height > MOST_PIXELS:
        raise ValueError(f"the picture has {header.width} x {header.height} pixels; give one of at most {MOST_PIXELS}")
    if header.mode not in _MODES:
        raise ValueError(f"the picture has the mode {header.mode}, which is not shown as usual; save it in RGB or grey")
    try:
        pixels = center_view(data, size, channels)
    except Reject as reason:
        raise ValueError(f"the picture cannot be used ({reason}); {_GIVE}") from None
    return np.ascontiguousarray(np.broadcast_to(pixels, (size, size, 3)))
