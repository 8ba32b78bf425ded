"""An answer of `GET /metrics`, to be asked for values."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Told:
    """A `GET /metrics`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [one for family in text_string_to_metric_families(text) for one in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Of the samples with these labels, whatever others; their sum, as a query would say it."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, f"{name}{labels} is not told"
        return sum(found)

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is such a sample."""
        return any(one.name == name and labels.items() <= one.labels.items() for one in self.samples)

    def labels(self, name: str) -> set[str]:
        """The values of one label."""
        return {one.labels[name] for one in self.samples if name in one.labels}
