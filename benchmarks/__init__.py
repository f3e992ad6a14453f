"""What things cost here, each measured side by side with what a user would do instead, in one run."""
