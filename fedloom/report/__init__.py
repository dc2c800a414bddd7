"""A page that shows runs: reading them, figures as plain data, and the HTML around them."""
