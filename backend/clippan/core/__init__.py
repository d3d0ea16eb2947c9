"""What everything stands on: errors, progress and cancelling, devices and threads, files."""
