"""What a release is worth: attackers train on it, on the original and on controls, and take a clean test."""
