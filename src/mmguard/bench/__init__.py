"""Matrices of releases and audits from one YAML file: the experiments of a paper, or your own."""
