"""The cluster server: takes commands, places desktops, and keeps wanted and seen the same."""
