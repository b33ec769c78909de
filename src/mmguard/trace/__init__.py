"""Where attention goes on a release, against the original and random changes: the mechanism, as a diagnostic."""
