"""What really starts and stops a site: one thread per site that follows what the controller wants of it.

Whether a site should be up is decided in `scheduling.provision`; here it is done, measured and retried.
"""
