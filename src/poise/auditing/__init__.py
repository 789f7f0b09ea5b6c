"""The audit: a model attacked, timed, answered for, and the demo."""
