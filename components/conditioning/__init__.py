"""What steers a net, and how a request says it."""
