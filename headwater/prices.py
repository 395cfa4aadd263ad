"""What mistakes cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.errors import ConfigError


@dataclass(frozen=True)
class Prices:
    """What mistakes cost, in any unit.

    Parameters
    ----------
    miss
        A defect that passes.
    false_alarm
        A normal image that does not.
    """

    miss: float
    false_alarm: float

    @classmethod
    def of(cls, text: str) -> Prices:
        """Read ``MISS:FALSE_ALARM``.

        Raises
        ------
        ConfigError
            For anything but two numbers of 0 or more, not both 0.

        Examples
        --------
        >>> Prices.of("100:2.5")
        Prices(miss=100.0, false_alarm=2.5)
        """
        try:
            miss, alarm = (float(part) for part in text.split(":"))
        except ValueError:
            miss = alarm = -1.0
        if not (0 <= miss < math.inf and 0 <= alarm < math.inf and miss + alarm > 0):
            raise ConfigError(f"--costs {text}", expected="MISS:FALSE_ALARM, two prices, as 100:1")
        return cls(miss, alarm)

    def __str__(self) -> str:
        return f"{self.miss:.12g}:{self.false_alarm:.12g}"

    def cost(self, misses: int, false_alarms: int, images: int) -> float:
        """Return what mistakes cost an image, of as many images.

        Examples
        --------
        >>> Prices(100, 1).cost(1, 20, 40)
        3.0
        """
        return (self.miss * misses + self.false_alarm * false_alarms) / images
