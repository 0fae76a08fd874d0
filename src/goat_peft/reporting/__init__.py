"""Tables and pictures drawn from result files."""
