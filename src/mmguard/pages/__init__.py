"""Web pages that are one file each: no scripts, nothing loaded from elsewhere, readable on a phone."""
