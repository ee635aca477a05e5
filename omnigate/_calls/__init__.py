"""One call, from its arguments to its answer, tried as often as the policy says."""
