"""What the HTML pages share: their theme, their charts, and how a template becomes one file."""
