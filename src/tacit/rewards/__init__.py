"""How good a completion is: verifiers, the user's own function, and the measurement of a policy by either."""
