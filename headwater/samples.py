"""A sample is what is judged: one image, or two of the same place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleKind:
    """What really differs between single images and pairs of them.

    Parameters
    ----------
    name
        Of one sample: ``image`` or ``pair``.
    images
        What each image of a sample is called, in this order.
    verdicts
        The words for a score up to the threshold and above it.
    does
        What a head over such samples does, for messages.

    Examples
    --------
    >>> PAIR.images
    ('current', 'history')
    >>> IMAGE.key("image", "layer2"), PAIR.key("current", "layer2")
    ('layer2', 'current:layer2')
    """

    name: str
    images: tuple[str, ...]
    verdicts: tuple[str, str]
    does: str

    @property
    def paired(self) -> bool:
        """Whether a sample is two images."""
        return len(self.images) > 1

    def key(self, image: str, layer: str) -> str:
        """Return what a batch of features calls this image's maps of a layer."""
        return f"{image}:{layer}" if self.paired else layer


IMAGE = SampleKind("image", ("image",), ("normal", "anomalous"), "looks at single images")
PAIR = SampleKind(
    "pair", ("current", "history"), ("unchanged", "changed"), "compares pairs of images"
)

#: What may be said of a normal: that it is one, however odd, or that it is none.
ACCEPTED, REJECTED = "accepted", "rejected"
#: It came with a retraining's new images and waits for somebody to say which.
HELD = "held"
#: It was taken out of its set.
REMOVED = "removed"
#: Nothing learns from normals of which this was said.
UNLEARNT = (REJECTED, HELD, REMOVED)
