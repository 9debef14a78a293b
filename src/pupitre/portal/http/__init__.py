"""HTTP side of the portal: application, guards, problems, templates, static files."""
