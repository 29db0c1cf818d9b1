"""What happens on the phones: local training, and what leaves them."""
