"""What a deployment on Docker is made of: a compose file for one experiment, with its sites, and the secrets it mounts.

One file holds all that is no secret, the configuration of Dagster, nginx and the experiment included.
"""
