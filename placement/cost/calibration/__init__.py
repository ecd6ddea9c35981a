"""The speeds of the step-time model, fitted to measured times of steps."""
