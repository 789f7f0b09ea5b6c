"""The audit: a model attacked, timed, compared, and the demo."""
