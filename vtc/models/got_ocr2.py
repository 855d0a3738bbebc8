"""GOT-OCR2: the tower's windows and the convolutions after it leave a raster of tokens, but no attention to look at."""

from __future__ import annotations

from vtc.models import register
from vtc.models.base import Place, TowerRun
from vtc.models.generic import pixels_of
from vtc.models.patches_to_tokens import raster_place
from vtc.models.tiles import TilesFromStart


@register("got_ocr2")
class GotOcr2(TilesFromStart):
    """The convolutions' strides make one token of a block of 4x4 patches."""

    def place(self, run: TowerRun, count: int) -> Place:
        pixels, patch = pixels_of(run), self.base.config.vision_config.patch_size
        return raster_place(1, pixels.shape[-2] // (4 * patch), pixels.shape[-1] // (4 * patch))
