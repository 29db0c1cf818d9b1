"""A phone's keyboard in a browser, its suggestions from the graphs of an exported bundle."""
