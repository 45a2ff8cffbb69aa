"""What assets declare of their own automation: the report after every segment."""

import dagster as dg

from sensors.membership import DEFAULT_STATUS

automation = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.assets("emissions_report"),
    default_status=DEFAULT_STATUS,
    minimum_interval_seconds=15,
    description="Materialises what has to be refreshed when something it follows from is new.",
)
