"""What several experiments share: data sets and schedules, as plain functions of a config."""
