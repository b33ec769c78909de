"""What a thief does to a release before training on it, to be rid of its protection."""
