"""The configuration: what a user may write in config/, read and checked as a whole before anything runs."""
