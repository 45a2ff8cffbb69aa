"""The pipeline of an experiment whose store is a bucket: Dagster's S3 resource gives it its credentials."""

import dagster as dg
from dagster_aws.s3 import S3Resource

from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.storage.stores import Connect


class BucketPipelineResource(PipelineResource):
    """See `PipelineResource`."""

    s3: S3Resource

    def nested(self) -> "dict[str, dg.ConfigurableResource]":
        return {"s3": self.s3}

    def _connect(self) -> Connect:
        return self.s3.get_client


def s3_resource() -> S3Resource:
    """With the usual AWS settings. A store tries again by itself, and for longer than a client does."""
    return S3Resource(max_attempts=1)
