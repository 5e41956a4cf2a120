"""From records and ground truth to scores, means and intervals."""
