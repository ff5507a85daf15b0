"""Looking at runs and models: functions; tools/ holds the commands."""
