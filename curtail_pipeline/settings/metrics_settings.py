"""Where a trainer shows its steps beside its JSON lines."""

from pydantic import Field

from curtail_pipeline.settings.section import Section


class MetricsSettings(Section):
    prometheus_port: int | None = Field(default=None, ge=1024, le=65_535)
    """Port on the loopback address where the first site's trainer answers Prometheus; the next site's has the next
    port. Needs `pip install 'curtail_pipeline[metrics]'`. None is opened when not given."""
