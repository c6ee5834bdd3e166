"""Quantiles of a stream of numbers from a fixed-size random sample (reservoir sampling)."""

import random
from bisect import insort
from dataclasses import dataclass, field


@dataclass
class Reservoir:
    size: int = 256
    seen: int = 0
    sample: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.seen += 1
        if len(self.sample) < self.size:
            insort(self.sample, value)
            return
        place = random.randrange(self.seen)
        if place < self.size:
            self.sample.pop(place)
            insort(self.sample, value)

    def quantile(self, q: float) -> float:
        if not self.sample:
            raise ValueError("no values yet")
        index = min(int(q * len(self.sample)), len(self.sample) - 1)
        return self.sample[index]


if __name__ == "__main__":
    reservoir = Reservoir()
    for _ in range(10_000):
        reservoir.add(random.expovariate(1 / 20))
    print(f"p50 {reservoir.quantile(0.5):.1f} ms, p99 {reservoir.quantile(0.99):.1f} ms")
