"""Pictures of what a network has learnt, and the page that holds them."""
